"""Retrieval metrics and re-ranking at the size of MSMT17: CPU seconds beyond the matrix product, and extra memory.

    python benchmarks/evaluation.py

Seeded 512-d embeddings of 3,060 people from 15 cameras, 11,659 queries and 82,161 gallery images: once clustered by
person as those of a trained model, once pure noise. Beside `evaluate_retrieval` runs a plain reference that argsorts
the gallery for every query of a subset. CPU seconds of all threads, the least of several alternating rounds; every
part runs in a process of its own, and memory is the peak above what the process held before.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from reid_hub.evaluation.metrics import evaluate_retrieval
from reid_hub.evaluation.results import public_command, versions
from reid_hub.evaluation.similarity import block_rows, each_block
from reid_hub.files import atomic_file

QUERIES, GALLERY, PEOPLE, CAMERAS, DIM = 11_659, 82_161, 3_060, 15, 512
NOISE = {"clustered": 2.0, "noise": np.inf}
SUBSET = 8  # the reference takes every 8th query
FOLDER = Path(__file__).with_suffix("")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="of all sizes: 0.1 gives a quick look")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--part", choices=[*NOISE, "rerank"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        measure = measure_rerank if arguments.part == "rerank" else measure_metrics
        print(json.dumps(measure(arguments)))
        return

    figures = {}
    for part in (*NOISE, "rerank"):
        print(f"measuring {part} ...", flush=True)
        command = [sys.executable, __file__, f"--scale={arguments.scale}", f"--rounds={arguments.rounds}"]
        child = subprocess.run([*command, f"--part={part}"], check=True, stdout=subprocess.PIPE, text=True)
        figures[part] = json.loads(child.stdout)
    results = {
        "figures": figures,
        "setting": {
            **{
                name: len(values) for name, values in zip(("queries", "gallery"), labels(arguments.scale), strict=False)
            },
            **{"people": people(arguments.scale), "cameras": CAMERAS, "dimensions": DIM, "rounds": arguments.rounds},
        },
        "machine": {"cores": os.cpu_count(), "system": platform.system(), "architecture": platform.machine()},
        "command": public_command(sys.argv),
        "versions": versions(),
    }
    for name, text in (("results.json", json.dumps(results, indent=2) + "\n"), ("README.md", render(results))):
        with atomic_file(arguments.out / name) as temporary:
            temporary.write_text(text)
    print(render(results))


def measure_metrics(arguments: argparse.Namespace) -> dict[str, float]:
    query, gallery = embeddings(arguments.part, arguments.scale)
    ids = labels(arguments.scale)
    rows = block_rows(len(gallery))

    def product() -> None:
        for _ in each_block(
            lambda start: len(query[start : start + rows] @ gallery.T), len(query), rows, progress=None
        ):
            pass

    def plain() -> float:
        query_pids, gallery_pids, query_camids, gallery_camids = ids
        chosen = slice(None, None, SUBSET)
        with threadpool_limits(1, user_api="blas"):  # no BLAS thread spins on its account
            return plain_reference(
                query[chosen], gallery, query_pids[chosen], gallery_pids, query_camids[chosen], gallery_camids
            )

    costs = {"product": [], "evaluate": [], "reference": []}
    for _ in range(arguments.rounds):
        for name, run in (("product", product), ("evaluate", lambda: evaluate_retrieval(query, gallery, *ids))):
            costs[name].append(cost_of(run))
        costs["reference"].append(cost_of(plain))
    results = evaluate_retrieval(query, gallery, *ids, per_query=True)
    expected = plain()
    if abs(np.nanmean(results.per_query[::SUBSET]) - expected) > 1e-5:
        raise RuntimeError(f"the reference finds mAP {expected} on its subset: the comparison would mean nothing")
    product_seconds, evaluate_seconds = (min(seconds for seconds, _ in costs[name]) for name in ("product", "evaluate"))
    reference_seconds = SUBSET * min(seconds for seconds, _ in costs["reference"])
    return {
        "mAP": results.mAP,
        "product_cpu_seconds": product_seconds,
        "evaluate_cpu_seconds": evaluate_seconds,
        "beyond_product_cpu_seconds": evaluate_seconds - product_seconds,
        "reference_beyond_product_cpu_seconds": reference_seconds - product_seconds,
        "evaluate_extra_bytes": max(extra for _, extra in costs["evaluate"]),
    }


def measure_rerank(arguments: argparse.Namespace) -> dict[str, float]:
    query, gallery = embeddings("clustered", arguments.scale)
    ids = labels(arguments.scale)
    found = {}
    seconds, extra = cost_of(lambda: found.update(results=evaluate_retrieval(query, gallery, *ids, rerank=True)))
    return {"mAP": found["results"].mAP, "rerank_cpu_seconds": seconds, "rerank_extra_bytes": extra}


def plain_reference(query, gallery, query_pids, gallery_pids, query_camids, gallery_camids) -> float:
    """The mAP as most code computes it: one argsort of the whole gallery for every query."""
    precisions = []
    for start in range(0, len(query), 256):
        for i, row in enumerate(query[start : start + 256] @ gallery.T, start):
            order = np.argsort(-row)
            same = gallery_pids[order] == query_pids[i]
            hits = same[~(same & (gallery_camids[order] == query_camids[i]))]
            if hits.any():
                ranks = np.flatnonzero(hits) + 1
                precisions.append((np.arange(1, len(ranks) + 1) / ranks).mean())
    return float(np.mean(precisions))


def embeddings(kind: str, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors: a centre for each person, a smaller shift for each camera, and noise for each image."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((people(scale), DIM), dtype=np.float32)
    shifts = 0.5 * random.standard_normal((CAMERAS, DIM), dtype=np.float32)
    query_pids, gallery_pids, query_camids, gallery_camids = labels(scale)

    def draw(pids: np.ndarray, camids: np.ndarray) -> np.ndarray:
        rows = random.standard_normal((len(pids), DIM), dtype=np.float32)
        if np.isfinite(NOISE[kind]):
            rows *= NOISE[kind]
            rows += centres[pids] + shifts[camids]
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    return draw(query_pids, query_camids), draw(gallery_pids, gallery_camids)


def labels(scale: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(1)
    sizes = round(scale * QUERIES), round(scale * GALLERY)
    pids = [random.integers(0, people(scale), size) for size in sizes]
    return *pids, *(random.integers(0, CAMERAS, size) for size in sizes)


def people(scale: float) -> int:
    return max(2, round(scale * PEOPLE))


def cost_of(run: Callable[[], object]) -> tuple[float, int]:
    """CPU seconds of all threads, and bytes of peak resident memory above the present (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    before, start = resident("VmRSS"), time.process_time()
    run()
    return time.process_time() - start, resident("VmHWM") - before


def resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{name}:")))


def render(results: dict) -> str:
    setting, figures = results["setting"], results["figures"]
    rows = [
        f"| {part} | {figures[part]['mAP']:.4f} | {figures[part]['product_cpu_seconds']:.1f} s "
        f"| **{figures[part]['beyond_product_cpu_seconds']:.1f} s** "
        f"| {figures[part]['reference_beyond_product_cpu_seconds']:.1f} s "
        f"| {figures[part]['evaluate_extra_bytes'] / 1e9:.2f} GB |"
        for part in NOISE
    ]
    rerank = figures["rerank"]
    factor = rerank["rerank_cpu_seconds"] / figures["clustered"]["product_cpu_seconds"]
    return f"""# Evaluation: time and memory

{setting["queries"]:,} queries x {setting["gallery"]:,} gallery images, {setting["dimensions"]}-d float32, \
{setting["people"]:,} people, {setting["cameras"]} cameras; CPU seconds of all threads on a machine of \
{results["machine"]["cores"]} cores.

| embeddings | mAP | matrix product | `evaluate_retrieval` beyond it | argsort per query beyond it | extra memory |
|---|---|---|---|---|---|
{chr(10).join(rows)}

k-reciprocal re-ranking of the clustered embeddings, evaluation included: {rerank["rerank_cpu_seconds"]:.0f} CPU s \
({factor:.1f} times the product of query and gallery), {rerank["rerank_extra_bytes"] / 1e9:.2f} GB extra memory, \
mAP {figures["clustered"]["mAP"]:.3f} to {rerank["mAP"]:.3f}.

Rendered from [results.json](results.json), which `{results["command"]}` writes.
"""


if __name__ == "__main__":
    main()
