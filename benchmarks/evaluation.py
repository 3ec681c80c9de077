"""Retrieval metrics and re-ranking at the size of MSMT17: CPU seconds beyond the matrix product, and extra memory.

    python benchmarks/run.py evaluation

Seeded 512-d embeddings of 3,060 people from 15 cameras, 11,659 queries and 82,161 gallery images: clustered by person,
as from a trained model, and pure noise. The reference argsorts the gallery for every query of a subset. Times are CPU
seconds of all threads, the least of several alternating rounds. Each part runs in a process of its own; memory is the
peak above what the process held before.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from render import Block, Table
from speed import Speed, memory, written_by
from threadpoolctl import threadpool_limits

from reid_hub.evaluation.metrics import evaluate_retrieval
from reid_hub.evaluation.similarity import block_rows, each_block

QUERIES, GALLERY, PEOPLE, CAMERAS, DIM = 11_659, 82_161, 3_060, 15, 512
NOISE = {"clustered": 2.0, "noise": np.inf}
SUBSET = 8  # the reference evaluates every 8th query


def measure_metrics(kind: str, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Figures of the matrix product, the evaluation and the reference, which take turns."""
    query, gallery = embeddings(kind, options.scale)
    ids = labels(options.scale)
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
    for _ in range(options.rounds):
        for name, run in (("product", product), ("evaluate", lambda: evaluate_retrieval(query, gallery, *ids))):
            costs[name].append(cost_of(run))
        costs["reference"].append(cost_of(plain))
    results = evaluate_retrieval(query, gallery, *ids, per_query=True)
    expected = plain()
    if abs(np.nanmean(results.per_query[::SUBSET]) - expected) > 1e-5:
        raise RuntimeError(f"the reference finds mAP {expected} on its subset: the comparison would mean nothing")
    product_seconds, evaluate_seconds = (min(seconds for seconds, _ in costs[name]) for name in ("product", "evaluate"))
    reference_seconds = SUBSET * min(seconds for seconds, _ in costs["reference"])
    figures = {
        "mAP": results.mAP,
        "product_cpu_seconds": product_seconds,
        "evaluate_cpu_seconds": evaluate_seconds,
        "beyond_product_cpu_seconds": evaluate_seconds - product_seconds,
        "reference_beyond_product_cpu_seconds": reference_seconds - product_seconds,
        "evaluate_extra_bytes": max(extra for _, extra in costs["evaluate"]),
    }
    return {kind: figures}


def measure_rerank(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Figures of re-ranking the clustered embeddings."""
    query, gallery = embeddings("clustered", options.scale)
    ids = labels(options.scale)
    found = {}
    seconds, extra = cost_of(lambda: found.update(results=evaluate_retrieval(query, gallery, *ids, rerank=True)))
    return {"rerank": {"mAP": found["results"].mAP, "rerank_cpu_seconds": seconds, "rerank_extra_bytes": extra}}


def plain_reference(query, gallery, query_pids, gallery_pids, query_camids, gallery_camids) -> float:
    """The mAP as most code computes it, with one argsort of the whole gallery per query."""
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
    """Unit vectors: a centre per person, a smaller shift per camera, and noise per image."""
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
    """CPU seconds of all threads, and peak resident memory above the current one in bytes (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before, start = memory("VmRSS"), time.process_time()
    run()
    return time.process_time() - start, memory("VmHWM") - before


def settings(options: argparse.Namespace) -> dict[str, int]:
    """The settings that results.json keeps."""
    queries, gallery, *_ = labels(options.scale)
    sizes = {"queries": len(queries), "gallery": len(gallery), "people": people(options.scale)}
    return {**sizes, "cameras": CAMERAS, "dimensions": DIM, "rounds": options.rounds}


def page(results: dict[str, Any]) -> Iterator[Block]:
    """Answer, metrics of both kinds of embeddings, and re-ranking."""
    setting, figures = results["setting"], results["figures"]
    seconds = {
        "product_cpu_seconds": "matrix product",
        "beyond_product_cpu_seconds": "`evaluate_retrieval`, beyond the product",
        "reference_beyond_product_cpu_seconds": "argsort per query, beyond the product",
    }

    def cell(part: str, column: str) -> str:
        value = figures[part][column]
        if column not in seconds:
            return f"{value:.4f}" if column == "mAP" else f"{value / 1e9:.2f} GB"
        return f"**{value:.1f} s**" if column == "beyond_product_cpu_seconds" else f"{value:.1f} s"

    yield "# Evaluation: time and memory"
    found = figures["clustered"]
    yield (
        f"**On clustered embeddings, `evaluate_retrieval` takes {found['beyond_product_cpu_seconds']:.1f} CPU seconds "
        f"beyond the matrix product**, an argsort per query {found['reference_beyond_product_cpu_seconds']:.1f}. The "
        f"product itself takes {found['product_cpu_seconds']:.1f}."
    )
    yield (
        f"Setup: {setting['queries']:,} queries x {setting['gallery']:,} gallery images, {setting['dimensions']}-d "
        f"float32, {setting['people']:,} people, {setting['cameras']} cameras; CPU seconds of all threads on a machine "
        f"with {results['machine']['cores']} cores."
    )
    columns = {"mAP": "mAP", **seconds, "evaluate_extra_bytes": "extra memory"}
    yield Table(columns, {part: part for part in NOISE}, cell, "embeddings", right=False)
    rerank, clustered = figures["rerank"], figures["clustered"]
    factor = rerank["rerank_cpu_seconds"] / clustered["product_cpu_seconds"]
    yield (
        "k-reciprocal re-ranking of the clustered embeddings, evaluation included: "
        f"{rerank['rerank_cpu_seconds']:.0f} CPU s ({factor:.1f} times the product of query and gallery), "
        f"{rerank['rerank_extra_bytes'] / 1e9:.2f} GB extra memory, mAP {clustered['mAP']:.3f} to {rerank['mAP']:.3f}."
    )
    yield written_by(results)


OPTIONS = {
    "--scale": {"type": float, "default": 1.0, "help": "scale of all sizes; 0.1 for a quick look"},
    "--rounds": {"type": int, "default": 3},
}
PARTS = {**{kind: partial(measure_metrics, kind) for kind in NOISE}, "rerank": measure_rerank}
BENCHMARK = Speed("evaluation", __doc__, lambda options: PARTS, page, OPTIONS, settings)
