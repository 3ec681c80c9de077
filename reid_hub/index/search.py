"""Exact nearest neighbours, identical for every backend: float32 screening, float64 decision.

float32 sums differ in their last bits with the library, the block shape and the position in memory, so the order
of near ties (and of exact duplicates) would depend on all three. The screening therefore keeps some more than `k`
candidates, their distances are computed again in float64, and the result is accepted only where the rounding
error of the screening cannot have hidden a nearer row; other queries are screened again with a longer list.
"""

import numpy as np
import torch

from reid_hub.index.backends import Backend
from reid_hub.index.codecs import Codec

GALLERY_BLOCK = 65_536  # rows; long blocks make the selection cheap
QUERY_BLOCK = 256  # with GALLERY_BLOCK: 64 MiB of float32 distances at a time
EXTRA_CANDIDATES = 32
RESCORE_VALUES = 8_000_000  # float64 numbers in one block of the second pass: 64 MB


def nearest(
    queries: np.ndarray, codes: np.ndarray, codec: Codec, backend: Backend, k: int, keep: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Squared Euclidean distances (Q, k) float64, ascending, and gallery rows (Q, k) int64.

    Equal distances (in float64, between the float32 query and the decoded row) are ordered by gallery row.

    Args:
        queries: float32 (Q, D).
        codes: the gallery's rows as the codec stores them, (N, width).
        k: at most the number of rows searched.
        keep: bool (N,), the rows to search; None for all.
    """
    size = len(codes) if keep is None else int(keep.sum())
    distances = np.empty((len(queries), k), np.float64)
    rows = np.empty((len(queries), k), np.int64)
    for start in range(0, len(queries), QUERY_BLOCK):
        pending = np.arange(start, min(start + QUERY_BLOCK, len(queries)))
        width = min(k + EXTRA_CANDIDATES, size)
        while len(pending):
            near, candidates = _screen(queries[pending], codes, codec, backend, width, keep)
            exact, candidates = _rescore(queries[pending], codes, codec, candidates)
            worst = near.max(1)
            sure = exact[:, k - 1] < worst - _rounding(queries[pending], worst)
            sure |= width == size
            distances[pending[sure]] = exact[sure, :k]
            rows[pending[sure]] = candidates[sure, :k]
            pending = pending[~sure]
            width = min(4 * width, size)
    return distances, rows


def _screen(
    queries: np.ndarray, codes: np.ndarray, codec: Codec, backend: Backend, width: int, keep: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """The `width` smallest float32 distances over all blocks, in any order, and their gallery rows."""
    near = np.empty((len(queries), 0), np.float32)
    rows = np.empty((len(queries), 0), np.int64)
    for start in range(0, len(codes), GALLERY_BLOCK):
        block = codes[start : start + GALLERY_BLOCK]
        numbers = np.arange(start, start + len(block))
        if keep is not None:
            kept = keep[start : start + GALLERY_BLOCK]
            block, numbers = block[kept], numbers[kept]
        if not len(block):
            continue
        block_near, block_rows = backend(queries, block, codec, min(width, len(block)))
        near = np.concatenate([near, block_near], 1)
        rows = np.concatenate([rows, numbers[block_rows]], 1)
        if near.shape[1] > width:
            values, order = torch.topk(torch.from_numpy(near), width, largest=False)
            near, rows = values.numpy(), np.take_along_axis(rows, order.numpy(), 1)
    return near, rows


def _rescore(queries: np.ndarray, codes: np.ndarray, codec: Codec, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Squared distances to the candidate rows (Q, W) in float64, ordered by (distance, row)."""
    exact = np.empty(rows.shape, np.float64)
    step = max(1, RESCORE_VALUES // queries.shape[1])
    for query, row, out in zip(queries.astype(np.float64), rows, exact, strict=True):
        for start in range(0, len(row), step):
            difference = codec.decode(codes[row[start : start + step]]) - query
            np.square(difference, out=difference)
            out[start : start + step] = difference.sum(1)
    order = np.lexsort((rows, exact), axis=-1)
    return np.take_along_axis(exact, order, 1), np.take_along_axis(rows, order, 1)


def _rounding(queries: np.ndarray, near: np.ndarray) -> np.ndarray:
    """A bound (Q,) on the error of the float32 distances up to `near`: dim roundings of terms up to (|q| + |v|)^2."""
    norms = np.linalg.norm(queries, axis=1)
    farthest = norms + np.sqrt(np.maximum(near, 0))  # a row at distance d of the query has a norm of at most |q| + d
    return (queries.shape[1] + 8) * np.finfo(np.float32).eps / 2 * (norms + farthest) ** 2
