"""Backends: matrix products in numpy and torch, or in faiss, exact or within the error of a float32 sum.

Products of int8 codes are integers, so every implementation gives the same result. Which one is fastest depends on the
processor, so the first call measures it.
"""

import functools
import importlib.util
import time

import numpy as np
import torch

from reid_hub.compat import has_int8_matmul, int8_matmul
from reid_hub.errors import RunError
from reid_hub.registry import lookup

BACKENDS = dict.fromkeys(("torch", "faiss"))
EXACT_COLUMNS = 2**24 // 127**2  # float32 holds the sum of this many int8 products exactly


def checked_backend(name: str) -> str:
    """Return the name of a backend if it is available.

    Raises:
        ValueError: if the name is unknown.
        RuntimeError: if faiss is requested but not installed.
    """
    lookup(BACKENDS, name, "index backend")
    if name == "faiss" and importlib.util.find_spec("faiss") is None:
        raise RunError("backend='faiss' needs faiss: pip install 'reid-hub[faiss]', or use backend='torch'")
    return name


def shifted_distances(queries: np.ndarray, vectors: np.ndarray, squares: np.ndarray | None, backend: str) -> np.ndarray:
    """|v|^2 - 2 q.v, float32 (Q, D), (N, D) -> (Q, N); just -2 q.v without `squares` (N,), the |v|^2."""
    if backend == "faiss":
        import faiss

        vectors = np.ascontiguousarray(vectors)
        distances = faiss.pairwise_distances(queries, vectors)
        distances -= np.einsum("qd,qd->q", queries, queries)[:, None]
        if squares is None:
            distances -= np.einsum("nd,nd->n", vectors, vectors)
        return distances
    # numpy, not torch: torch's global matmul precision may lower a float32 product to bfloat16 or TF32.
    # For a single query, this order reads the matrix along its rows.
    distances = (-2 * queries) @ vectors.T if len(queries) > 1 else (vectors @ (-2 * queries[0]))[None]
    if squares is not None:
        distances += squares
    return distances


def integer_products(queries: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Exact inner products of int8 (Q, D) and (N, D): int32, or integers in float32, (Q, N)."""
    if _int8_product_is_exact_and_fast():
        return int8_matmul(torch.from_numpy(queries), torch.from_numpy(codes).T).numpy()
    if queries.shape[1] <= EXACT_COLUMNS:
        return queries.astype(np.float32) @ codes.astype(np.float32).T
    total = np.zeros((len(queries), len(codes)), np.int32)
    for start in range(0, queries.shape[1], EXACT_COLUMNS):
        columns = np.s_[:, start : start + EXACT_COLUMNS]
        total += (queries[columns].astype(np.float32) @ codes[columns].astype(np.float32).T).astype(np.int32)
    return total


def nearest_bits(queries: np.ndarray, codes: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The `k` smallest Hamming distances (Q, k) and their rows, by faiss; ties are broken by row."""
    import faiss

    return faiss.knn_hamming(queries, np.ascontiguousarray(codes), k)


@functools.cache
def _int8_product_is_exact_and_fast() -> bool:
    """Whether torch's int8 product accumulates in int32 here (older CPUs saturate in int16) and beats float32."""
    if not has_int8_matmul():
        return False
    random = np.random.default_rng(0)
    codes = random.integers(-127, 128, (1024, 256), dtype=np.int8)
    codes[:256] = 127 * np.sign(codes[:256] | 1)
    codes[0], codes[1] = 127, -127
    queries = codes[:64].copy()
    wide, tensors = codes.astype(np.float32), (torch.from_numpy(queries), torch.from_numpy(codes).T)

    def least(run) -> float:
        seconds = []
        for _ in range(4):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    try:
        if not np.array_equal(int8_matmul(*tensors).numpy(), queries.astype(np.int64) @ codes.astype(np.int64).T):
            return False
        return least(lambda: int8_matmul(*tensors)) < least(lambda: wide[:64] @ wide.T)
    except RuntimeError:  # not built for this processor
        return False
