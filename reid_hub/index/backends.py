"""Backends: the nearest `k` rows of one gallery block for each query, in float32.

A backend only proposes candidates. `search.py` computes their distances again in float64 and decides, so that
every backend gives the same answer.
"""

import importlib.util
from collections.abc import Callable

import numpy as np
import torch

from reid_hub.index.codecs import Codec
from reid_hub.registry import lookup

Backend = Callable[[np.ndarray, np.ndarray, Codec, int], tuple[np.ndarray, np.ndarray]]


def torch_candidates(queries: np.ndarray, codes: np.ndarray, codec: Codec, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Squared distances (Q, k) float32 in any order and rows (Q, k) int64 of the block `codes`."""
    vectors = codec.decode(codes)
    squares = np.einsum("nd,nd->n", vectors, vectors)
    distances = codec.inner_products(queries, codes)
    distances *= -2
    distances += squares
    distances += np.einsum("qd,qd->q", queries, queries)[:, None]
    values, rows = torch.topk(torch.from_numpy(distances), k, largest=False)
    return values.numpy(), rows.numpy()


def faiss_candidates(queries: np.ndarray, codes: np.ndarray, codec: Codec, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The same by faiss' exact search (what its `IndexFlat` runs), without a second copy of the block."""
    import faiss

    return faiss.knn(queries, np.ascontiguousarray(codec.decode(codes)), k, metric=faiss.METRIC_L2)


BACKENDS: dict[str, Backend] = {"torch": torch_candidates, "faiss": faiss_candidates}


def find_backend(name: str) -> Backend:
    """Look a backend up.

    Raises:
        ValueError: if the name is unknown.
        RuntimeError: if faiss is asked for and not installed.
    """
    backend = lookup(BACKENDS, name, "index backend")
    if backend is faiss_candidates and importlib.util.find_spec("faiss") is None:
        raise RuntimeError("backend='faiss' needs faiss: pip install 'reid-hub[faiss]', or use backend='torch'")
    return backend
