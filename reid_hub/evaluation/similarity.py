"""Prepare embeddings for comparison by a float32 matrix product, and compute such products block by block."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from reid_hub.errors import ReIDError
from reid_hub.index.checks import METRICS, chunks, to_numpy, unit_rows

BLOCK_BYTES = 2**26  # one block of float32 scores; at most MAX_THREADS of them are alive at a time
MAX_THREADS = 8

T = TypeVar("T")


def comparable(query_embeddings, gallery_embeddings, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Check two sets of embeddings and convert them to well-conditioned float32 with unchanged ranking.

    For cosine, rows are scaled to unit length. For euclidean, rows are shifted by about the gallery mean and scaled to
    about unit spread, so that squared norms neither overflow nor lose the differences. Shift and scale are multiples of
    a power of two: embeddings of small integers stay exact, and so do their products and ties.

    Args:
        query_embeddings, gallery_embeddings: (Q, D) and (G, D) numbers, arrays or tensors, at least one row each.

    Returns:
        Two new float32 arrays, (Q, D) and (G, D).

    Raises:
        ValueError: for an unknown metric, wrong shapes, NaN or infinite rows, and for cosine rows of zero length.
    """
    return _comparable(query_embeddings, gallery_embeddings, metric)[:2]


def block_distances(
    query_embeddings, gallery_embeddings, metric: str
) -> tuple[Callable[[int, int], np.ndarray], tuple[int, int]]:
    """Distances of two sets of embeddings, computed for a block of queries at a time.

    Args:
        query_embeddings, gallery_embeddings: as for `comparable`.

    Returns:
        A function of (start, stop) that returns the distances of these queries to the whole gallery, float32
        (stop - start, G), 1 - cos for cosine and |q - g| for euclidean; and the numbers of queries and gallery
        images, (Q, G).

    Raises:
        ValueError: as `comparable`.
    """
    query, gallery, unit = _comparable(query_embeddings, gallery_embeddings, metric)
    if metric == "cosine":
        return lambda start, stop: np.maximum(1 - query[start:stop] @ gallery.T, 0), (len(query), len(gallery))
    query_squares, gallery_squares = squared_norms(query), squared_norms(gallery)

    def distances(start: int, stop: int) -> np.ndarray:
        squared = query_squares[start:stop, None] + gallery_squares - 2 * (query[start:stop] @ gallery.T)
        return np.sqrt(np.maximum(squared, 0)) * np.float32(unit)

    return distances, (len(query), len(gallery))


def squared_norms(rows: np.ndarray) -> np.ndarray:
    """Return the squared length of every row, (N, D) -> (N,) float32, summed in float64."""
    norms = np.empty(len(rows), np.float32)
    for chunk in chunks(len(rows)):
        wide = rows[chunk].astype(np.float64)
        norms[chunk] = np.einsum("nd,nd->n", wide, wide)
    return norms


def block_rows(columns: int) -> int:
    """Return the number of rows of `columns` float32 scores in a block of an efficient shape, about BLOCK_BYTES."""
    return int(np.clip(BLOCK_BYTES // (4 * columns), 64, 1024))


def each_block(work: Callable[[int], T], total: int, rows: int, *, progress: str | None) -> Iterator[T]:
    """Yield `work(start)` for start = 0, rows, 2 rows, ... below `total` in order, on as many threads as torch uses.

    BLAS runs single-threaded in each thread: sums, and so the last bits of scores, do not depend on the number of
    threads, and no BLAS thread spins while Python ranks.
    """
    starts = range(0, total, rows)
    threads = min(MAX_THREADS, torch.get_num_threads(), len(starts))
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
        yield from tqdm(pool.map(work, starts), total=len(starts), desc=progress, disable=progress is None)


def _comparable(query_embeddings, gallery_embeddings, metric: str) -> tuple[np.ndarray, np.ndarray, float]:
    """As `comparable`; also returns the original length of one unit of the result."""
    if metric not in METRICS:
        raise ReIDError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
    query, gallery = _matrix(query_embeddings, "query_embeddings"), _matrix(gallery_embeddings, "gallery_embeddings")
    if query.shape[1] != gallery.shape[1]:
        raise ReIDError(
            f"query and gallery embeddings must have the same dimension, got {query.shape[1]} and {gallery.shape[1]}: "
            "embed both sets with the same model"
        )
    if metric == "cosine":
        return _unit_rows(query, "query_embeddings"), _unit_rows(gallery, "gallery_embeddings"), 1.0
    return _shift_and_scale(query, gallery)


def _matrix(embeddings, name: str) -> np.ndarray:
    matrix = to_numpy(embeddings)
    if matrix.ndim != 2 or 0 in matrix.shape or matrix.dtype.kind not in "fiu":
        raise ReIDError(
            f"{name} must be numbers of shape (images, dimensions) with at least one of each, "
            f"got {matrix.dtype} of shape {matrix.shape}"
        )
    bad = np.zeros(len(matrix), bool)
    if matrix.dtype.kind == "f":
        limit = np.finfo(np.float32).max
        for chunk in chunks(len(matrix)):
            bad[chunk] = ~(np.abs(matrix[chunk]) <= limit).all(axis=1)
    _refuse(
        bad, name, "hold NaN, infinity or numbers beyond float32", "look at these images and at the model's precision"
    )
    return matrix


def _unit_rows(matrix: np.ndarray, name: str) -> np.ndarray:
    unit, zero = unit_rows(matrix)
    _refuse(zero, name, "have zero length and so no direction", "drop them or use metric='euclidean'")
    return unit


def _shift_and_scale(query: np.ndarray, gallery: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    mean = gallery.mean(axis=0, dtype=np.float64)
    spread = 0.0
    for chunk in chunks(len(gallery)):
        spread += np.square(gallery[chunk] - mean).sum()
    spread = np.sqrt(spread / gallery.size)
    unit = 2.0 ** np.ceil(np.log2(spread)) if spread > 0 else 1.0
    shift = np.rint(mean / unit) * unit
    scaled = []
    for matrix, name in ((query, "query_embeddings"), (gallery, "gallery_embeddings")):
        out = np.empty(matrix.shape, np.float32)
        with np.errstate(over="ignore"):
            for chunk in chunks(len(matrix)):
                out[chunk] = (matrix[chunk] - shift) / unit
            far = ~np.isfinite(4 * squared_norms(out))
        _refuse(far, name, "lie too far from all others for float32 distances", "look at these images")
        scaled.append(out)
    return scaled[0], scaled[1], unit


def _refuse(bad: np.ndarray, name: str, what: str, advice: str) -> None:
    rows = np.flatnonzero(bad)
    if rows.size:
        named = ", ".join(map(str, rows[:5])) + (", ..." if rows.size > 5 else "")
        raise ReIDError(f"{name}: {rows.size} of {bad.size} rows {what} (rows {named}): {advice}")
