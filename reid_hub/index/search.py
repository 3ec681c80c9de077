"""Exact nearest neighbours, identical for every backend, block size and history of the gallery.

Each block of the gallery is screened in float32 (or integers); rows that may be among the best `k` so far get an exact
key. As the bound falls, few rows pass the screen, so selection costs less than multiplication.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from reid_hub.index.backends import nearest_bits
from reid_hub.index.columns import KEPT
from reid_hub.index.parts import Part
from reid_hub.index.scores import HammingScores, Scores
from reid_hub.index.table import NOWHERE

QUERY_BLOCK = 256
SCREEN_VALUES = 2**20  # one block of float32 scores: 4 MiB, which fit in the cache
GALLERY_BLOCK = (4096, 32_768)  # rows, at least and at most
BITS_BLOCK = 2**20  # rows that faiss searches at once
ROW_BITS = 40  # below the Hamming distance in one integer
GATHERED_VALUES = 2**21  # values of candidates gathered at once: 8 MiB of float32, which fit in the cache


class Best:
    """The `k` smallest (key, row) of each query."""

    def __init__(self, queries: int, k: int):
        self.keys = np.full((queries, k), np.inf)
        self.rows = np.full((queries, k), NOWHERE)
        self.bound = np.full(queries, np.inf)  # no result has a larger key
        self._pending: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._waiting = 0

    def offer(self, query: np.ndarray, keys: np.ndarray, rows: np.ndarray) -> None:
        """Consider pairs (H,) of query and row; they are merged by `settle`, or earlier."""
        self._pending.append((query, keys, rows))
        self._waiting += len(query)
        if self._waiting > self.keys.size:
            self.settle()

    def settle(self) -> None:
        if not self._waiting:
            return
        queries, k = self.keys.shape
        old = np.repeat(np.arange(queries), k), self.keys.ravel(), self.rows.ravel()
        query, keys, rows = (np.concatenate(parts) for parts in zip(old, *self._pending, strict=True))
        order = np.lexsort((rows, keys, query))
        starts = np.searchsorted(query[order], np.arange(queries))
        first = order[starts[:, None] + np.arange(k)]
        self.keys, self.rows = keys[first], rows[first]
        self.bound = np.minimum(self.bound, self.keys[:, -1])
        self._pending, self._waiting = [], 0


def nearest(
    scores: Scores, parts: Sequence[Part], k: int, excluded: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Keys (Q, k) float64, ascending, and gallery rows (Q, k) int64; ties are ordered by row.

    Args:
        excluded: camera (Q,) whose rows are skipped, -1 for none. Places left over hold inf and NOWHERE.
    """
    keys, rows = np.empty((len(scores), k)), np.empty((len(scores), k), np.int64)
    for start in range(0, len(scores), QUERY_BLOCK):
        some = slice(start, start + QUERY_BLOCK)
        cameras = None if excluded is None or (excluded[some] == -1).all() else excluded[some]
        if isinstance(scores, HammingScores) and scores.backend == "faiss":
            keys[some], rows[some] = _scan_bits(scores.part(some), parts, k, cameras)
        else:
            keys[some], rows[some] = _scan(scores.part(some), parts, k, cameras)
    return keys, rows


def _scan(scores: Scores, parts: Sequence[Part], k: int, cameras: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    best = Best(len(scores), k)
    size = int(np.clip(SCREEN_VALUES // len(scores), *GALLERY_BLOCK))
    for part, start, stop in _blocks(parts, size):
        block = part.block(start, stop, scores.columns)
        screen = scores.screen(block)
        out = part.dead(start, stop)
        if out is not None:
            screen[:, out] = np.inf
        if cameras is not None:
            screen[_same_camera(cameras, part.camids(start, stop))] = np.inf
        if np.isinf(best.bound).any():
            _lower_bound(scores, screen, block, best)
        limit = scores.limit(best.bound)
        np.minimum(limit, np.finfo(np.float32).max, out=limit)  # excluded rows never pass
        query, row = _true_places(torch.from_numpy(screen) <= torch.from_numpy(limit)[:, None])
        if len(query):
            best.offer(query, scores.keys(screen, block, query, row), row + (part.offset + start))
    best.settle()
    return best.keys, best.rows


def _true_places(mask: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of true values, which are few; tests eight at once."""
    flat = mask.numpy().ravel()
    if flat.size % 8:
        places = np.flatnonzero(flat)
    else:
        words = np.flatnonzero(flat.view(np.uint64))
        places = np.add.outer(8 * words, np.arange(8))[flat.reshape(-1, 8)[words]]
    return np.divmod(places, mask.shape[1])


def _lower_bound(scores: Scores, screen: np.ndarray, block: dict, best: Best) -> None:
    """Bound the result by the exact keys of a block's `k` smallest screen values."""
    k = best.keys.shape[1]
    if screen.shape[1] < k:
        return
    values, rows = torch.topk(torch.from_numpy(screen), k, largest=False)
    query, rows = np.repeat(np.arange(len(screen)), k), rows.numpy().ravel()
    keys = scores.keys(screen, block, query, rows).reshape(len(screen), k)
    keys[np.isinf(values.numpy())] = np.inf
    best.bound = np.minimum(best.bound, keys.max(1))


def _scan_bits(
    scores: HammingScores, parts: Sequence[Part], k: int, cameras: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """`_scan` with faiss, which cannot skip rows: it searches a copy without the rows to skip."""
    best = np.full((len(scores), k), NOWHERE)  # distance and row in one integer, which sorts fast
    groups = [(-1, slice(None))] if cameras is None else [(c, np.flatnonzero(cameras == c)) for c in np.unique(cameras)]
    for part, start, stop in _blocks(parts, BITS_BLOCK):
        codes, dead = part.block(start, stop, scores.columns)["codes"], part.dead(start, stop)
        for camera, asked in groups:
            keep = None if dead is None else ~dead
            if camera != -1:
                other = part.camids(start, stop) != camera
                keep = other if keep is None else keep & other
            kept = codes if keep is None else codes[keep]
            if not len(kept):
                continue
            near, rows = nearest_bits(scores.queries[asked], kept, min(k, len(kept)))
            rows = (rows if keep is None else np.flatnonzero(keep)[rows]) + (part.offset + start)
            merged = np.concatenate([best[asked], near.astype(np.int64) << ROW_BITS | rows], 1)
            best[asked] = np.sort(merged, 1)[:, :k]
    keys, rows = (best >> ROW_BITS).astype(np.float64), best & (2**ROW_BITS - 1)
    keys[best == NOWHERE], rows[best == NOWHERE] = np.inf, NOWHERE
    return keys, rows


def rescored(
    scores: Scores, parts: Sequence[Part], candidates: np.ndarray, k: int, dim: int
) -> tuple[np.ndarray, np.ndarray]:
    """Keys (Q, k) and rows (Q, k) of the nearest candidates (Q, R), re-ranked by the finer codes of their vectors."""
    keys, rows = np.full((len(scores), k), np.inf), np.full((len(scores), k), NOWHERE)
    step = max(1, GATHERED_VALUES // (candidates.shape[1] * dim))
    for start in range(0, len(scores), step):
        some = slice(start, start + step)
        best, wanted, queries = Best(len(keys[some]), k), candidates[some], scores.part(some)
        for part in parts:
            here = (wanted >= part.offset) & (wanted < part.offset + part.size)
            row = wanted[here]
            if len(row):
                block = part.gather(row - part.offset, [KEPT + name for name in scores.columns])
                block = {name: block[KEPT + name] for name in scores.columns}
                starts = np.concatenate([[0], np.cumsum(here.sum(1))])
                found = queries.pair_keys(block, starts, k)
                near = np.flatnonzero(found < np.inf)
                best.offer(np.searchsorted(starts, near, "right") - 1, found[near], row[near])
        best.settle()
        keys[some], rows[some] = best.keys, best.rows
    return keys, rows


def _blocks(parts: Sequence[Part], size: int) -> Iterator[tuple[Part, int, int]]:
    for part in parts:
        for start in range(0, part.size, size):
            yield part, start, min(start + size, part.size)


def _same_camera(cameras: np.ndarray, camids: np.ndarray) -> np.ndarray:
    return (cameras[:, None] == camids) & (cameras != -1)[:, None]
