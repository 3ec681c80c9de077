"""Search time of int8 and binary galleries against faiss' float32 flat index, on the same vectors in one run.

    python benchmarks/run.py index_search --model DIR --data-dir DIR   # what is not measured yet; stop it any time
    python benchmarks/run.py index_search --render                     # only the page

Queries are searched one at a time, and all in one call. The ways of searching take turns and the median over the rounds
is taken, so that other work on the machine disturbs all alike; on one thread CPU time is counted, on more the time that
passes. Every size and number of threads is a process of its own. Without --model the vectors are seeded clusters.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import faiss
import numpy as np
import torch
from index_search_vectors import REAL, Vectors, base_vectors, enlarged
from render import Block, Table
from speed import Speed, take_turns, written_by
from threadpoolctl import threadpool_limits

from reid_hub import GalleryIndex

TOP, SINGLE, FACTORS, ENOUGH = 10, 24, (5, 10, 15, 20, 30, 40, 60, 80, 120, 160), 0.99
FORMS = {
    "int8": {"codec": "int8"},
    "binary": {"codec": "binary"},
    "binary + float32": {"codec": "binary", "rescore": "float32"},
    "binary + int8": {"codec": "binary", "rescore": "int8"},
    "rotated, binary + float32": {"codec": "binary", "rescore": "float32"},
}
WANTED = {"int8": 1.0, "binary + float32": 10.0, "rotated, binary + float32": 10.0}
MODES = {"one_ms": "one query a call", "all_ms": "all in one call"}


def parts(options: argparse.Namespace) -> dict[str, Callable]:
    """One for each size and number of threads.

    Raises:
        SystemExit: for a model without images, or images without a model.
    """
    if bool(options.model) != bool(options.data_dir):
        raise SystemExit("--model and --data-dir go together")
    pairs = [(size, threads) for size in options.sizes for threads in options.threads]
    return {key(*pair): partial(measure, *pair) for pair in pairs}


def key(size: int, threads: int) -> str:
    """The name of a part."""
    return f"{size} vectors, {threads} threads"


def measure(size: int, threads: int, options: argparse.Namespace) -> dict[str, Any]:
    """All ways of searching a gallery of a size."""
    with threadpool_limits(threads):
        faiss.omp_set_num_threads(threads)
        torch.set_num_threads(threads)
        return {key(size, threads): searched(size, threads, options)}


def searched(size: int, threads: int, options: argparse.Namespace) -> dict[str, Any]:
    base = base_vectors(options.model, options.data_dir, options.work)
    gallery, queries = enlarged(base, size), base.queries
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
    del gallery
    figures: dict[str, dict] = {}
    searches: dict[str, Callable[[np.ndarray], object]] = {"float32 flat": lambda some: flat.search(some, TOP)}
    for name in FORMS:
        turn = rotation if name.startswith("rotated") else None
        figures[name], searches[name] = opened(name, base, size, turn, true, ids, options.work)
    figures["float32 flat"] = {}
    clock = time.process_time if threads == 1 else time.perf_counter  # other work takes nothing of CPU time
    for name, found in milliseconds(searches, queries, options.rounds, clock).items():
        figures[name] |= found
    return {
        "size": size, "threads": threads, "dim": queries.shape[1], "queries": len(queries), "source": base.source,
        "rounds": options.rounds, "bandwidth_gb_s": bandwidth / 1e9, "candidates": candidates, "searches": figures,
    }  # fmt: skip


def opened(
    name: str, base: Vectors, size: int, rotation: np.ndarray | None, true: np.ndarray, ids: list[str], work: Path
) -> tuple[dict[str, Any], Callable[[np.ndarray], object]]:
    """What an index of a form takes and finds, and how it is searched; it is built where it is missing."""

    def turned(rows: np.ndarray) -> np.ndarray:
        return rows if rotation is None else rows @ rotation

    folder = work / f"{size}-{name.replace(' ', '')}"
    if not folder.is_dir():
        vectors = enlarged(base, size)
        built = GalleryIndex(vectors.shape[1], backend="faiss", **FORMS[name])
        built.add(turned(vectors), ids)
        built.save(folder)
        del built, vectors
    asked = turned(base.queries)
    start = time.perf_counter()
    index = GalleryIndex.load(folder, backend="faiss")
    figures = {"open_ms": 1000 * (time.perf_counter() - start)}
    index.search(asked[:1], TOP)
    figures["first_query_bytes"] = sum(segment.file.bytes_read for segment in index._stored.segments)
    index = GalleryIndex.load(folder, backend="faiss", verify=True)
    figures["bytes"] = index.bytes_per_vector
    figures["folder_bytes"] = sum(file.stat().st_size for file in folder.iterdir())
    if index.rescore is not None:
        figures["curve"] = curve(index, asked, true, ids)
    figures["overlap"] = overlap(index.search(asked, TOP)[1], true, ids)
    return figures, lambda some: index.search(turned(some), TOP)


def milliseconds(
    searches: Mapping[str, Callable], queries: np.ndarray, rounds: int, clock: Callable[[], float]
) -> dict[str, dict[str, float]]:
    """Median milliseconds a query: one query a call, and all in one call."""
    some = queries[np.arange(SINGLE) * len(queries) // SINGLE]

    def one_by_one(search: Callable) -> None:
        for query in some:
            search(query[None])

    runs = {}
    for name, search in searches.items():
        runs[name, "one_ms"], runs[name, "all_ms"] = partial(one_by_one, search), partial(search, queries)
    counts, found = {"one_ms": len(some), "all_ms": len(queries)}, {name: {} for name in searches}
    for (name, mode), seconds in take_turns(runs, rounds, clock).items():
        found[name][mode] = 1000 * median(seconds) / counts[mode]
    return found


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


def page(results: dict[str, Any]) -> Iterator[Block]:
    """A table for each size and number of threads, where targets are missed, and how many candidates bits must give."""
    runs = sorted(results["figures"].values(), key=lambda run: (run["size"], run["threads"]))
    bandwidth = max(run["bandwidth_gb_s"] for run in runs)  # other work on the machine only takes from it
    libraries = results["versions"]
    yield "# Search time of compressed galleries"
    yield (
        f"{written_by(results)}: {runs[0]['dim']} dimensions, top 10 of {runs[0]['queries']} queries, "
        f"{results['machine']['processor']} with {results['machine']['cores']} cores that other work shared, faiss "
        f"{libraries.get('faiss') or results['setting']['faiss']}, backend faiss."
    )
    yield (
        f"Gallery: {runs[0]['source']}. Above 80,000 vectors: these, and mixtures of two pictures of one person plus "
        "half the difference of two crops of one picture, which makes it denser than a real one of that size."
    )
    yield (
        "Milliseconds a query, medians of searches that took turns; CPU time on one thread, else the time that passes. "
        "*One*: one query a call. *All*: all in one call, where float32 and int8 read a block of the gallery once for "
        "hundreds of queries, so that arithmetic and not memory is their limit. Ratios are to faiss' float32 flat "
        "index in the same run. Limit: milliseconds in which the memory of this machine delivers what a single query "
        f"must read, at {bandwidth:.1f} GB/s, the most that any run measured. Where threads wait for one another, "
        "other work on the machine slows single queries of the flat index most: compare one thread."
    )
    for run in runs:
        yield f"## {run['size']:,} vectors, {run['threads']} thread{'s' * (run['threads'] > 1)}"
        yield table(run, bandwidth)
    if missed := misses(runs):
        flat = [run["searches"]["float32 flat"]["all_ms"] / run["searches"]["binary"]["all_ms"] for run in runs]
        yield "## Where a target is missed"
        yield missed
        yield (
            f"In one call, comparing the bits alone is {min(flat):.1f} to {max(flat):.1f} times as fast as the float32 "
            "product, which such a call spares from reading memory: no way of ranking again can make it ten times."
        )
    yield "## How many candidates the bits must give"
    yield (
        "Share of the true top 10 among the nearest by Hamming distance. A random rotation of all embeddings, of the "
        "gallery and of the queries, leaves their distances as they are: it needs nothing of the index."
    )
    for run in runs:
        if run["threads"] == runs[0]["threads"]:
            found = run["candidates"]
            counts = {count: f"first {int(count):,}" for count in next(iter(found.values()))}
            rows = {name: name for name in found}
            share = lambda name, count, found=found: f"{found[name][count]:.4f}"  # noqa: E731
            yield Table(counts, rows, share, f"{run['size']:,} vectors")


COLUMNS = {
    "bytes": "bytes a vector, read + kept", "one": "one", "one ratio": "ratio", "limit": "limit", "all": "all",
    "all ratio": "ratio", "overlap": "overlap", "open": "opens in", "first": "read by the first query",
}  # fmt: skip


def table(run: Mapping[str, Any], bandwidth: float) -> Table:
    """Time, memory and overlap of every way of searching."""
    searches = run["searches"]
    flat = searches["float32 flat"]

    def cell(name: str, column: str) -> str:
        found = searches[name]
        kept = found.get("bytes", {"memory": 4 * run["dim"], "disk": 0})
        opens = "open_ms" in found
        return {
            "bytes": f"{kept['memory']:,} + {kept['disk']:,}",
            "one": f"{found['one_ms']:.2f}",
            "one ratio": f"{flat['one_ms'] / found['one_ms']:.1f}",
            "limit": f"{1000 * run['size'] * kept['memory'] / bandwidth / 1e9:.2f}",
            "all": f"{found['all_ms']:.3f}",
            "all ratio": f"{flat['all_ms'] / found['all_ms']:.1f}",
            "overlap": f"{found['overlap']:.4f}" if opens else "1",
            "open": f"{found['open_ms']:.1f} ms" if opens else "-",
            "first": f"{found['first_query_bytes'] / 1e6:,.0f} MB" if opens else "-",
        }[column]

    labels = {
        name: name + (f" (first {10 * max(map(int, found['curve']))})" if "curve" in found else "")
        for name, found in searches.items()
    }
    return Table(COLUMNS, labels, cell, "search")


def misses(runs: list[dict]) -> list[str]:
    """Where a target is not met: int8 no slower than flat, binary with rescoring ten times faster at overlap 0.99."""
    items = []
    for run in runs:
        flat, vectors = run["searches"]["float32 flat"], f"{run['size']:,} vectors"
        for name, wanted in WANTED.items():
            found = run["searches"][name]
            for mode, what in MODES.items():
                if (ratio := flat[mode] / found[mode]) < wanted:
                    where = f"{vectors}, threads: {run['threads']}"
                    items.append(f"{name}, {where}, {what}: {ratio:.1f} times as fast as flat, wanted {wanted:.0f}.")
            if name != "int8" and found["overlap"] < ENOUGH:
                items.append(f"{name}, {vectors}: overlap {found['overlap']:.4f}, wanted {ENOUGH}.")
    return items


OPTIONS = {
    "--model": {"help": "checkpoint whose embeddings are searched"},
    "--data-dir": {"help": "images in Market-1501's layout, for --model"},
    "--sizes": {"type": int, "nargs": "+", "default": [REAL, 1_000_000]},
    "--threads": {"type": int, "nargs": "+", "default": sorted({1, os.cpu_count()})},
    "--rounds": {"type": int, "default": 5},
    "--work": {"type": Path, "default": Path("runs/index_search"), "help": "vectors and indexes are kept here"},
}
BENCHMARK = Speed(
    "index_search",
    __doc__,
    parts,
    page,
    OPTIONS,
    lambda options: {"rounds": options.rounds, "faiss": version("faiss-cpu")},
    resumes=True,
)
