"""Compare queries with blocks of stored vectors: a fast screen, then exact keys for ranking.

Screen values have a bounded error. Keys are exact (integers, or float64 computed from the stored vectors), increase
with the distance, and do not depend on how the screen was computed. So neither backend nor block size changes results.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch

from reid_hub.index.backends import integer_products, shifted_distances

HALF_ULP = np.finfo(np.float32).eps / 2
PIECE = 2048  # rows decoded at a time
Block = dict[str, np.ndarray]


class Scores(Protocol):
    """Queries prepared for comparison with the `columns` of a block."""

    columns: tuple[str, ...]

    def __len__(self) -> int:
        """Number of queries."""

    def part(self, chosen: slice | np.ndarray) -> "Scores":
        """A subset of the queries."""

    def screen(self, block: Block) -> np.ndarray:
        """Values (Q, N) float32 that increase with the distance, up to their error."""

    def keys(self, screen: np.ndarray, block: Block, query: np.ndarray, row: np.ndarray) -> np.ndarray:
        """Exact keys (H,) float64 of pairs of a query and a row of the block that was screened last."""

    def pair_keys(self, block: Block, starts: np.ndarray, k: int) -> np.ndarray:
        """Exact keys (H,) of the rows of a block, starts[q] to starts[q + 1] for query q; all but the `k` smallest of
        a query may be inf."""

    def limit(self, keys: np.ndarray) -> np.ndarray:
        """The largest screen value (Q,) float32 that a row with at most the key (Q,) can have."""

    def distances(self, keys: np.ndarray) -> np.ndarray:
        """Keys (Q, K) -> distances float64; inf stays inf."""


class FloatScores:
    """Squared Euclidean distances of decoded vectors, at unit length for cosine; float32 screen, float64 key.

    Args:
        queries: float32 (Q, D).
        decode: codes -> float32 (N, D); None if vectors are stored as they are compared.
    """

    columns = ("codes",)

    def __init__(
        self, queries: np.ndarray, decode: Callable[[np.ndarray], np.ndarray] | None, metric: str, backend: str
    ):
        self.metric, self.backend, self.decode = metric, backend, decode or (lambda codes: codes)
        self.stored_unit = decode is None and metric == "cosine"
        self.exact = self._exact(queries)
        self.queries = self.exact.astype(np.float32)
        self.squares = np.einsum("qd,qd->q", self.exact, self.exact)

    def __len__(self) -> int:
        return len(self.queries)

    def part(self, chosen):
        some = object.__new__(FloatScores)
        some.__dict__ = {**self.__dict__, "exact": self.exact[chosen], "queries": self.queries[chosen]}
        some.squares = self.squares[chosen]
        return some

    def screen(self, block):
        if self.stored_unit:
            return shifted_distances(self.queries, block["codes"], None, self.backend)
        return _in_pieces(self._screen_decoded, block["codes"], len(self))

    def _screen_decoded(self, codes: np.ndarray) -> np.ndarray:
        vectors = self.decode(codes)
        squares = np.einsum("nd,nd->n", vectors, vectors)
        if self.metric == "euclidean":
            return shifted_distances(self.queries, vectors, squares, self.backend)
        return shifted_distances(self.queries, vectors, None, self.backend) / np.sqrt(squares)

    def keys(self, screen, block, query, row):
        return self._keys(block["codes"][row], query)

    def pair_keys(self, block, starts, k):
        """Only candidates for the `k` nearest get an exact key; float32 tells which these are."""
        query = np.repeat(np.arange(len(self)), np.diff(starts))
        vectors, screen = self.decode(block["codes"]), np.empty(len(query), np.float32)
        for row, (start, stop) in zip(self.queries, pairwise(starts), strict=True):
            screen[start:stop] = vectors[start:stop] @ row
        if self.stored_unit:
            screen *= -2
        else:
            squares = np.einsum("nd,nd->n", vectors, vectors)
            screen = -2 * screen / np.sqrt(squares) if self.metric == "cosine" else squares - 2 * screen
        bound = np.full(len(self), np.inf)
        for row, (start, stop) in enumerate(pairwise(starts)):
            if stop - start > k:
                bound[row] = np.partition(screen[start:stop], k - 1)[k - 1]
        # The k-th exact key is at most that of the k-th screen value and its error; others are within their own error.
        near = np.flatnonzero(screen <= self._twice_limit(bound)[query])
        keys = np.full(len(query), np.inf)
        keys[near] = self._keys(block["codes"][near], query[near])
        return keys

    def limit(self, keys):
        # dim + 16 roundings (those of unit length included) of terms up to (|q| + |v|)^2; a row at distance d of the
        # query has a norm of at most |q| + d.
        error = (2 * np.sqrt(self.squares) + np.sqrt(np.maximum(keys, 0))) ** 2
        error *= (self.queries.shape[1] + 16) * HALF_ULP
        return (keys - self._shift() + error).astype(np.float32)

    def _twice_limit(self, screen: np.ndarray) -> np.ndarray:
        """The largest screen value of rows whose key is at most that of a row with this screen value (Q,)."""
        return self.limit(self.limit(screen + self._shift()) + self._shift())

    def _shift(self) -> np.ndarray:
        """Squared distance minus screen value (Q,): |q|^2, and for cosine also |v|^2."""
        return self.squares + (self.metric == "cosine")

    def _keys(self, codes: np.ndarray, query: np.ndarray) -> np.ndarray:
        keys = np.empty(len(query), np.float64)
        for start in range(0, len(query), 512):  # fits in the cache
            part = slice(start, start + 512)
            difference = self._exact(self.decode(codes[part]))
            difference -= self.exact[query[part]]
            np.square(difference, out=difference)
            keys[part] = difference.sum(1)
        return keys

    def distances(self, keys):
        # For unit vectors |q - v|^2 = 2 - 2 cos; unlike 1 - cos it is exactly 0 for equal vectors and never negative.
        return keys / 2 if self.metric == "cosine" else np.sqrt(keys)

    def _exact(self, vectors: np.ndarray) -> np.ndarray:
        exact = vectors.astype(np.float64)
        if self.metric == "cosine":
            exact /= np.sqrt(np.einsum("nd,nd->n", exact, exact))[:, None]
        return exact


class IntegerScores:
    """int8 codes compared in integers: dot products d and squared lengths n.

    The key is n - 2d for euclidean and -d|d|/n for cosine. That is a quotient of integers below 2^53, so equal angles
    give equal keys; square roots would not.

    Args:
        queries: int8 (Q, D).
        scale: size of one step, for euclidean distances.
    """

    columns = ("codes", "squares")

    def __init__(self, queries: np.ndarray, scale: float, metric: str):
        self.queries, self.scale, self.metric = queries, scale, metric
        wide = queries.astype(np.int64)
        self.squares = np.einsum("qd,qd->q", wide, wide)

    def __len__(self) -> int:
        return len(self.queries)

    def part(self, chosen):
        return IntegerScores(self.queries[chosen], self.scale, self.metric)

    def screen(self, block):
        self._dots = integer_products(self.queries, block["codes"])
        squares = torch.from_numpy(block["squares"])
        screen = torch.from_numpy(self._dots).to(torch.float32, copy=True)  # torch, for it uses all threads
        if self.metric == "cosine":
            return screen.mul_(-1 / squares.float().sqrt()).numpy()
        return screen.mul_(-2).add_(squares).numpy()

    def keys(self, screen, block, query, row):
        return self._key(self._dots[query, row], block["squares"][row])

    def pair_keys(self, block, starts, k):
        dots = np.empty(starts[-1])
        for row, (start, stop) in enumerate(pairwise(starts)):
            if stop > start:
                dots[start:stop] = integer_products(self.queries[row : row + 1], block["codes"][start:stop])[0]
        return self._key(dots, block["squares"])

    def _key(self, dots: np.ndarray, squares: np.ndarray) -> np.ndarray:
        dots, squares = dots.astype(np.float64), squares.astype(np.float64)
        return -dots * np.abs(dots) / squares if self.metric == "cosine" else squares - 2 * dots

    def limit(self, keys):
        if self.metric == "cosine":
            screen = np.sign(keys) * np.sqrt(np.abs(keys))
            return (screen + 16 * HALF_ULP * np.abs(screen)).astype(np.float32)
        # |v|^2 of a row at squared distance d of the query is at most (|q| + d)^2
        longest = (np.sqrt(self.squares) + np.sqrt(np.maximum(keys + self.squares, 0))) ** 2
        return (keys + 16 * HALF_ULP * (longest + self.squares)).astype(np.float32)

    def distances(self, keys):
        with np.errstate(invalid="ignore"):
            if self.metric == "euclidean":
                return self.scale * np.sqrt(keys + self.squares[:, None])
            cosines = -np.sign(keys) * np.sqrt(np.abs(keys) / self.squares[:, None])
        return np.where(np.isinf(keys), np.inf, np.clip(1 - cosines, 0, 2))


class HammingScores:
    """Packed bits; the key is the number of bits that differ.

    Args:
        queries: uint8 (Q, bytes).
        backend: with "faiss", `search.nearest` scans large blocks at once.
    """

    columns = ("codes",)

    def __init__(self, queries: np.ndarray, backend: str):
        self.queries, self.backend = queries, backend

    def __len__(self) -> int:
        return len(self.queries)

    def part(self, chosen):
        return HammingScores(self.queries[chosen], self.backend)

    def screen(self, block):
        # The inner product of +1/-1 vectors counts equal bits minus different ones.
        signs, bits = _signs(self.queries), 8 * self.queries.shape[1]
        screen = _in_pieces(lambda codes: integer_products(signs, _signs(codes)), block["codes"], len(self))
        screen *= -0.5
        screen += bits / 2
        return screen

    def keys(self, screen, block, query, row):
        return screen[query, row].astype(np.float64)

    def limit(self, keys):
        return keys.astype(np.float32)

    def distances(self, keys):
        return keys


def _in_pieces(screen: Callable[[np.ndarray], np.ndarray], codes: np.ndarray, queries: int) -> np.ndarray:
    """`screen` of all codes, in pieces that stay in the cache."""
    values = np.empty((queries, len(codes)), np.float32)
    for start in range(0, len(codes), PIECE):
        values[:, start : start + PIECE] = screen(codes[start : start + PIECE])
    return values


def _signs(codes: np.ndarray) -> np.ndarray:
    signs = np.unpackbits(codes, axis=1).view(np.int8)
    signs *= 2
    signs -= 1
    return signs
