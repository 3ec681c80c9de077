"""Search time of int8 and binary galleries against faiss' float32 flat index, on the same vectors in one run.

    python benchmarks/index_search.py --model DIR --data-dir DIR   # what is not measured yet; stop it any time
    python benchmarks/index_search.py --render                     # table from what is measured

Queries are searched one at a time, and all in one call. The ways of searching take turns and the median over the rounds
is taken, so that other work on the machine disturbs all alike; on one thread CPU time is counted, on more the time that
passes. Every size and number of threads is a process of its own. Without --model the vectors are seeded clusters.
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
from statistics import median

import faiss
import numpy as np
import torch
from index_search_table import render
from index_search_vectors import REAL, base_vectors, enlarged

from reid_hub import GalleryIndex
from reid_hub.evaluation.results import public_command, versions
from reid_hub.files import atomic_file

FOLDER = Path(__file__).with_suffix("")
TOP, SINGLE, FACTORS, ENOUGH = 10, 24, (5, 10, 15, 20, 30, 40, 60, 80, 120, 160), 0.99
FORMS = {
    "int8": {"codec": "int8"},
    "binary": {"codec": "binary"},
    "binary + float32": {"codec": "binary", "rescore": "float32"},
    "binary + int8": {"codec": "binary", "rescore": "int8"},
    "rotated, binary + float32": {"codec": "binary", "rescore": "float32"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint whose embeddings are searched")
    parser.add_argument("--data-dir", help="pictures in Market-1501's layout, for --model")
    parser.add_argument("--sizes", type=int, nargs="+", default=[REAL, 1_000_000])
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, os.cpu_count()}))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--work", type=Path, default=Path("runs/index_search"), help="vectors and indexes are kept here"
    )
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--again", action="store_true", help="measure what is measured already")
    parser.add_argument("--render", action="store_true", help="only write the table")
    parser.add_argument("--one", nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if bool(options.model) != bool(options.data_dir):
        parser.error("--model and --data-dir go together")
    if options.one:
        print(json.dumps(measure(*options.one, options)))
        return
    path = options.out / "results.json"
    results = json.loads(path.read_text()) if path.is_file() else {"runs": {}}
    for size in options.sizes if not options.render else ():
        for threads in options.threads:
            key = f"{size} vectors, {threads} threads"
            if key in results["runs"] and not options.again:
                continue
            print(f"measuring {key} ...", flush=True)
            command = [sys.executable, *sys.argv, "--one", str(size), str(threads)]
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
            results["runs"][key] = json.loads(ran.stdout.splitlines()[-1])
            results |= {
                "machine": {"cores": os.cpu_count(), "processor": processor(), "architecture": platform.machine()},
                "command": public_command(sys.argv),
                "versions": {**versions(), "faiss": faiss.__version__},
            }
            with atomic_file(path) as temporary:
                temporary.write_text(json.dumps(results, indent=2) + "\n")
    with atomic_file(options.out / "README.md") as temporary:
        temporary.write_text(render(results))
    print(render(results))


def measure(size: int, threads: int, options: argparse.Namespace) -> dict:
    faiss.omp_set_num_threads(threads)
    torch.set_num_threads(threads)
    base = base_vectors(options.model, options.data_dir, options.work)
    gallery = base.gallery[:size] if size <= len(base.gallery) else enlarged(base, size)
    queries, figures = base.queries, {}
    ids = [f"camera/{number:08d}.jpg" for number in range(size)]

    flat = faiss.IndexFlatIP(gallery.shape[1])
    flat.add(gallery)
    true = flat.search(queries, TOP)[1]
    bandwidth = read_bandwidth(gallery)
    rotation = random_rotation(queries.shape[1])
    candidates = {
        "as they are": needed(gallery, queries, true),
        "rotated at random": needed(gallery @ rotation, queries @ rotation, true),
    }
    if size > len(base.gallery):
        del gallery
    searches: dict[str, Callable[[np.ndarray], object]] = {"float32 flat": lambda some: flat.search(some, TOP)}
    for name, form in FORMS.items():
        folder = options.work / f"{size}-{name.replace(' ', '')}"
        if not folder.is_dir():
            vectors = base.gallery[:size] if size <= len(base.gallery) else enlarged(base, size)
            built = GalleryIndex(vectors.shape[1], backend="faiss", **form)
            built.add(vectors @ rotation if name.startswith("rotated") else vectors, ids)
            built.save(folder)
            del built, vectors
        asked = queries @ rotation if name.startswith("rotated") else queries
        start = time.perf_counter()
        index = GalleryIndex.load(folder, backend="faiss")
        opened = time.perf_counter() - start
        index.search(asked[:1], TOP)
        touched = sum(segment.file.bytes_read for segment in index._stored.segments)
        index = GalleryIndex.load(folder, backend="faiss", verify=True)
        figures[name] = {"open_ms": 1000 * opened, "bytes": index.bytes_per_vector, "first_query_bytes": touched}
        figures[name] |= {"folder_bytes": sum(file.stat().st_size for file in folder.iterdir())}
        if index.rescore is not None:
            figures[name]["curve"] = curve(index, asked, true, ids)
        searches[name] = lambda some, index=index: index.search(some, TOP)
        if name.startswith("rotated"):
            searches[name] = lambda some, index=index: index.search(some @ rotation, TOP)
        figures[name]["overlap"] = overlap(index.search(asked, TOP)[1], true, ids)
    figures["float32 flat"] = {}
    clock = time.process_time if threads == 1 else time.perf_counter  # other work takes nothing of CPU time
    for mode, seconds in take_turns(searches, queries, options.rounds, clock).items():
        for name, value in seconds.items():
            figures[name][mode] = value
    return {
        "size": size, "threads": threads, "dim": queries.shape[1], "queries": len(queries), "source": base.source,
        "rounds": options.rounds, "bandwidth_gb_s": bandwidth / 1e9, "candidates": candidates, "searches": figures,
    }  # fmt: skip


def take_turns(
    searches: dict, queries: np.ndarray, rounds: int, clock: Callable[[], float]
) -> dict[str, dict[str, float]]:
    """Median milliseconds a query: one query a call, and all in one call."""
    found = {"one_ms": {name: [] for name in searches}, "all_ms": {name: [] for name in searches}}
    for number in range(rounds + 1):
        for name, search in searches.items():
            some = queries[np.arange(SINGLE) * len(queries) // SINGLE]
            start = clock()
            for query in some:
                search(query[None])
            middle = clock()
            search(queries)
            if number:  # the first fills caches
                found["one_ms"][name].append(1000 * (middle - start) / len(some))
                found["all_ms"][name].append(1000 * (clock() - middle) / len(queries))
    return {mode: {name: median(values) for name, values in times.items()} for mode, times in found.items()}


def curve(index: GalleryIndex, queries: np.ndarray, true: np.ndarray, ids: list[str]) -> dict[int, float]:
    """Overlap by rescore factor; the index is left with the least that reaches ENOUGH."""
    found = {}
    for factor in FACTORS:
        index.rescore_factor = factor
        found[factor] = overlap(index.search(queries, TOP)[1], true, ids)
        if found[factor] >= ENOUGH:
            break
    return found


def overlap(found: np.ndarray, true: np.ndarray, ids: list[str]) -> float:
    """Mean share of the true nearest that were found."""
    return float(
        np.mean([len(set(row) & {ids[i] for i in right}) / TOP for row, right in zip(found, true, strict=True)])
    )


def needed(gallery: np.ndarray, queries: np.ndarray, true: np.ndarray) -> dict[int, float]:
    """Share of the true nearest among the first candidates by Hamming distance, every fourth query."""
    bits = [np.packbits(rows > 0, axis=1) for rows in (queries[::4], gallery)]
    near = faiss.knn_hamming(*bits, min(1600, len(gallery)))[1]
    hits = (near[:, :, None] == true[::4, None]).any(2).cumsum(1) / TOP
    return {
        count: float(hits[:, count - 1].mean()) for count in (50, 100, 200, 400, 800, 1600) if count <= hits.shape[1]
    }


def random_rotation(dim: int) -> np.ndarray:
    """Orthogonal (D, D): it leaves all distances as they are, and spreads over all bits what few dimensions say."""
    random = np.random.default_rng(2).standard_normal((dim, dim))
    return np.linalg.qr(random)[0].astype(np.float32)


def read_bandwidth(array: np.ndarray) -> float:
    """Bytes a second of reading an array that caches cannot hold."""
    tensor, seconds = torch.from_numpy(array), []
    for _ in range(5):
        start = time.perf_counter()
        tensor.max()
        seconds.append(time.perf_counter() - start)
    return array.nbytes / min(seconds)


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
