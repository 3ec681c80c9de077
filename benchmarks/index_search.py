"""Search time of int8 and binary galleries against faiss' flat float32 index, on the same vectors in one run.

    python benchmarks/run.py index_search --model DIR --data-dir DIR   # measure all parts without results
    python benchmarks/run.py index_search --render                     # write the page, measure nothing

Queries are searched one per call, and all in one call. All kinds of search take turns and the median of the rounds
counts, so that other work on the machine affects all of them equally. Times are CPU time on one thread, wall time on
several. Every size and number of threads runs in a process of its own. Without --model the vectors are seeded clusters.
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
MODES = {"one_ms": "one query per call", "all_ms": "all in one call"}


def parts(options: argparse.Namespace) -> dict[str, Callable]:
    """A part for each size and number of threads.

    Raises:
        SystemExit: if only one of --model and --data-dir is given.
    """
    if bool(options.model) != bool(options.data_dir):
        raise SystemExit("--model and --data-dir need each other: give both or neither")
    pairs = [(size, threads) for size in options.sizes for threads in options.threads]
    return {key(*pair): partial(measure, *pair) for pair in pairs}


def key(size: int, threads: int) -> str:
    """The name of a part."""
    return f"{size} vectors, {threads} threads"


def measure(size: int, threads: int, options: argparse.Namespace) -> dict[str, Any]:
    """Figures of all kinds of search in a gallery of one size."""
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
    clock = time.process_time if threads == 1 else time.perf_counter  # CPU time is independent of other work
    for name, found in milliseconds(searches, queries, options.rounds, clock).items():
        figures[name] |= found
    return {
        "size": size, "threads": threads, "dim": queries.shape[1], "queries": len(queries), "source": base.source,
        "rounds": options.rounds, "bandwidth_gb_s": bandwidth / 1e9, "candidates": candidates, "searches": figures,
    }  # fmt: skip


def opened(
    name: str, base: Vectors, size: int, rotation: np.ndarray | None, true: np.ndarray, ids: list[str], work: Path
) -> tuple[dict[str, Any], Callable[[np.ndarray], object]]:
    """Figures of an index of one form, and its search function; the index is built if it is missing."""

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
    """Median milliseconds per query: with one query per call, and with all in one call."""
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
    """Overlap by rescore factor; the index keeps the smallest factor that reaches ENOUGH."""
    found = {}
    for factor in FACTORS:
        index.rescore_factor = factor
        found[factor] = overlap(index.search(queries, TOP)[1], true, ids)
        if found[factor] >= ENOUGH:
            break
    return found


def overlap(found: np.ndarray, true: np.ndarray, ids: list[str]) -> float:
    """Mean share of the true nearest vectors that are found."""
    return float(
        np.mean([len(set(row) & {ids[i] for i in right}) / TOP for row, right in zip(found, true, strict=True)])
    )


def needed(gallery: np.ndarray, queries: np.ndarray, true: np.ndarray) -> dict[int, float]:
    """Share of the true nearest among the first candidates by Hamming distance, for every fourth query."""
    bits = [np.packbits(rows > 0, axis=1) for rows in (queries[::4], gallery)]
    near = faiss.knn_hamming(*bits, min(1600, len(gallery)))[1]
    hits = (near[:, :, None] == true[::4, None]).any(2).cumsum(1) / TOP
    return {
        count: float(hits[:, count - 1].mean()) for count in (50, 100, 200, 400, 800, 1600) if count <= hits.shape[1]
    }


def random_rotation(dim: int) -> np.ndarray:
    """A random orthogonal matrix (D, D): it keeps all distances, and spreads the variance over all bits."""
    random = np.random.default_rng(2).standard_normal((dim, dim))
    return np.linalg.qr(random)[0].astype(np.float32)


def read_bandwidth(array: np.ndarray) -> float:
    """Bytes per second when reading an array that is larger than the caches."""
    tensor, seconds = torch.from_numpy(array), []
    for _ in range(5):
        start = time.perf_counter()
        tensor.max()
        seconds.append(time.perf_counter() - start)
    return array.nbytes / min(seconds)


def page(results: dict[str, Any]) -> Iterator[Block]:
    """Answer, a table for each size and number of threads, missed targets, and candidates that the bits must give."""
    runs = sorted(results["figures"].values(), key=lambda run: (run["size"], run["threads"]))
    bandwidth = max(run["bandwidth_gb_s"] for run in runs)  # other work on the machine can only lower it
    libraries = results["versions"]
    yield "# Search time of compressed galleries"
    yield answer(runs)
    yield (
        f"Setup: {runs[0]['dim']} dimensions, top 10 of {runs[0]['queries']} queries, "
        f"{results['machine']['processor']} with {results['machine']['cores']} cores shared with other work, faiss "
        f"{libraries.get('faiss') or results['setting']['faiss']}, backend faiss."
    )
    source = runs[0]["source"].replace("picture", "image")  # results of earlier versions say "picture"
    yield (
        f"Gallery: {source}. Galleries above 80,000 vectors add mixtures of two images of one person plus half the "
        "difference of two crops of one image; they are denser than real galleries of that size."
    )
    yield (
        "Times are milliseconds per query, medians of searches that took turns; CPU time on one thread, wall time on "
        "several. *One*: one query per call. *All*: all queries in one call; float32 and int8 then read each block of "
        "the gallery once for hundreds of queries, so arithmetic is their limit, not memory. *Ratio*: speed-up over "
        "faiss' flat float32 index in the same run. *Limit*: milliseconds to read the data of a single query from "
        f"memory at {bandwidth:.1f} GB/s, the highest bandwidth of any run. With several threads, other work on the "
        "machine slows single queries of the flat index most, because threads wait for one another: compare the "
        "results of one thread."
    )
    for run in runs:
        yield f"## {run['size']:,} vectors, {run['threads']} thread{'s' * (run['threads'] > 1)}"
        yield table(run, bandwidth)
    if missed := misses(runs):
        flat = [run["searches"]["float32 flat"]["all_ms"] / run["searches"]["binary"]["all_ms"] for run in runs]
        yield "## Missed targets"
        yield missed
        yield (
            f"With all queries in one call, comparing the bits alone is {min(flat):.1f} to {max(flat):.1f} times as "
            "fast as the float32 product, which reads little memory in such a call. No rescoring can make that ten "
            "times."
        )
    yield "## Candidates needed for rescoring"
    yield (
        "Share of the true top 10 among the nearest by Hamming distance. A random rotation of all embeddings, in the "
        "gallery and in the queries, keeps their distances and needs no support by the index."
    )
    for run in runs:
        if run["threads"] == runs[0]["threads"]:
            found = run["candidates"]
            counts = {count: f"first {int(count):,}" for count in next(iter(found.values()))}
            rows = {name: name for name in found}
            share = lambda name, count, found=found: f"{found[name][count]:.4f}"  # noqa: E731
            yield Table(counts, rows, share, f"{run['size']:,} vectors")
    yield written_by(results)


def answer(runs: list[dict]) -> str:
    """Speed-ups over the flat index on one thread, or on the fewest threads that were measured."""
    runs = [run for run in runs if run["threads"] == min(run["threads"] for run in runs)]

    def span(name: str, mode: str) -> str:
        ratios = [run["searches"]["float32 flat"][mode] / run["searches"][name][mode] for run in runs]
        return f"{min(ratios):.1f} to {max(ratios):.1f}"

    names = ("binary + float32", "int8")
    all_at_once = ", ".join(f"{name} {span(name, 'all_ms')} times" for name in names)
    overlaps = [f"{min(run['searches'][name]['overlap'] for run in runs):.4f}" for name in names]
    return (
        f"**On {runs[0]['threads']} thread{'s' * (runs[0]['threads'] > 1)}, binary + float32 answers a single query "
        f"{span('binary + float32', 'one_ms')} times as fast as faiss' flat float32 index, int8 "
        f"{span('int8', 'one_ms')} times.** With all queries in one call: "
        f"{all_at_once}. Overlap with the exact top 10: at least "
        f"{' and '.join(overlaps)}."
    )


COLUMNS = {
    "bytes": "bytes per vector, read + kept", "one": "one", "one ratio": "ratio", "limit": "limit", "all": "all",
    "all ratio": "ratio", "overlap": "overlap", "open": "time to open", "first": "read by the first query",
}  # fmt: skip


def table(run: Mapping[str, Any], bandwidth: float) -> Table:
    """Table of the time, memory and overlap of every kind of search."""
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
    """Missed targets: int8 no slower than flat, binary with rescoring ten times as fast at overlap 0.99."""
    items = []
    for run in runs:
        flat, vectors = run["searches"]["float32 flat"], f"{run['size']:,} vectors"
        for name, wanted in WANTED.items():
            found = run["searches"][name]
            for mode, what in MODES.items():
                if (ratio := flat[mode] / found[mode]) < wanted:
                    where = f"{vectors}, threads: {run['threads']}"
                    items.append(f"{name}, {where}, {what}: {ratio:.1f} times as fast as flat, target {wanted:.0f}.")
            if name != "int8" and found["overlap"] < ENOUGH:
                items.append(f"{name}, {vectors}: overlap {found['overlap']:.4f}, target {ENOUGH}.")
    return items


OPTIONS = {
    "--model": {"help": "checkpoint whose embeddings to search"},
    "--data-dir": {"help": "images in Market-1501's layout, for --model"},
    "--sizes": {"type": int, "nargs": "+", "default": [REAL, 1_000_000]},
    "--threads": {"type": int, "nargs": "+", "default": sorted({1, os.cpu_count()})},
    "--rounds": {"type": int, "default": 5},
    "--work": {"type": Path, "default": Path("runs/index_search"), "help": "folder of vectors and indexes"},
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
