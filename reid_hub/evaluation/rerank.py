"""k-reciprocal re-ranking in bounded memory: sparse, block by block, equal to the dense definition.

Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017, with the strict ">" of all
public implementations, row-wise scaling by the largest distance, and squared Euclidean distances.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import sparse

from reid_hub.errors import ReIDError
from reid_hub.evaluation.similarity import block_rows, comparable, each_block, squared_norms

_TILE = 1024  # images per side of a product: an efficient shape whose distances fit into the cache
_SAMPLE = 12  # every 12th image is used for the first bound on neighbourhoods
_FOLD = 8
_MAX_PAIRS, _MAX_PAIRS_PER_IMAGE = 2**27, 2000  # candidates kept in memory; about 300 per image are typical
_PAIRS = 2**14  # pairs of embeddings whose distances are computed at a time


@dataclass(frozen=True)
class Rerank:
    """Settings of k-reciprocal re-ranking: neighbourhood, query expansion, and weight of the plain distance."""

    k1: int = 20
    k2: int = 6
    lambda_value: float = 0.3

    def __post_init__(self):
        if self.k1 < 1 or self.k2 < 1 or not 0 <= self.lambda_value <= 1:
            raise ReIDError(f"re-ranking needs k1 >= 1, k2 >= 1 and lambda_value in [0, 1], got {self}")

    def to_dict(self) -> dict[str, Any]:
        return {"method": "k-reciprocal encoding (Zhong et al., CVPR 2017), squared distances", **asdict(self)}


def rerank_distances(
    query_embeddings,
    gallery_embeddings,
    rerank: Rerank | None = None,
    *,
    metric: str = "cosine",
    progress: bool = False,
) -> Iterator[np.ndarray]:
    """Yield the re-ranked distances in blocks of query rows, (q, G) float32 each, all queries in order.

    Every row depends on the whole query and gallery sets: report both with the results.

    Args:
        query_embeddings, gallery_embeddings: (Q, D) and (G, D) arrays or tensors.
        metric: "cosine" re-ranks squared distances of unit vectors, "euclidean" those of the unnormalised vectors.

    Raises:
        ValueError: for invalid embeddings, as in `evaluate_retrieval`, or if most embeddings coincide.
    """
    query, gallery = comparable(query_embeddings, gallery_embeddings, metric)
    reranker = Reranker(query, gallery, rerank or Rerank(), progress=progress)
    rows = block_rows(len(gallery))
    return (reranker.distances(start, start + rows) for start in range(0, len(query), rows))


class Reranker:
    """Encodes every image by its k-reciprocal neighbours once, then computes distances for any rows of queries.

    Args:
        query, gallery: (Q, D) and (G, D) float32 as `comparable` returns them. Images are numbered jointly,
            queries first.
    """

    def __init__(self, query: np.ndarray, gallery: np.ndarray, rerank: Rerank, *, progress: bool = False):
        self.weight = rerank.lambda_value
        self.num_queries = len(query)
        images = np.concatenate([query, gallery])
        left, self.right = _distance_factors(images)
        self.left = left[: len(query)]
        nearest, self.farthest = _neighbours(left, self.right, max(rerank.k1 + 1, rerank.k2), progress)
        codes = _encode(images, nearest, self.farthest, rerank)
        self.query_codes, self.gallery_codes = codes[: len(query)], codes[len(query) :].tocsc()

    def distances(self, start: int, stop: int) -> np.ndarray:
        """Return (1 - lambda) * Jaccard + lambda * scaled distance of queries start..stop to the gallery."""
        stop = min(stop, self.num_queries)
        distances = self.left[start:stop] @ self.right[self.num_queries :].T
        for row, farthest in zip(distances, self.farthest[start:stop], strict=True):  # a row fits into the cache
            np.maximum(row, 0, out=row)
            row *= self.weight / farthest
            row += 1 - self.weight
        # Codes sum to one: the Jaccard distance is 1 - m / (2 - m), where m is the sum of the minima.
        shared = self._sum_of_minima(start, stop)
        distances[shared.row, shared.col] -= (1 - self.weight) * (shared.data / (2 - shared.data))
        return distances

    def _sum_of_minima(self, start: int, stop: int) -> sparse.coo_matrix:
        """Sum min(V_q, V_g) over the images in both codes, through the inverted lists of the gallery."""
        query, gallery = self.query_codes[start:stop].tocoo(), self.gallery_codes
        lengths = np.diff(gallery.indptr)[query.col]
        ends = np.cumsum(lengths)
        at = np.arange(lengths.sum()) + np.repeat(gallery.indptr[query.col] - (ends - lengths), lengths)
        minima = np.minimum(np.repeat(query.data, lengths), gallery.data[at])
        pairs = (np.repeat(query.row, lengths), gallery.indices[at])
        return sparse.csr_matrix((minima, pairs), shape=(stop - start, gallery.shape[0])).tocoo()


def _distance_factors(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return two matrices whose row products are the squared distances: [-2 a, |a|^2, 1] and [b, 1, |b|^2]."""
    norms, ones = squared_norms(images), np.ones(len(images), np.float32)
    return np.column_stack([-2 * images, norms, ones]), np.column_stack([images, ones, norms])


def _neighbours(left: np.ndarray, right: np.ndarray, k: int, progress: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the k nearest images of every image (itself included) and its largest squared distance.

    Ties are ordered by index. To halve the number of products, a tile of rows is multiplied only with columns from its
    own first image on, and used for the images of both sides. Pairs are kept up to the k-th smallest distance to a
    sample of the images, an upper bound of that to all images.

    Returns:
        (N, min(k, N)) int32 and (N,) float32, 1 where all images coincide.
    """
    count = len(left)
    k = min(k, count)
    bound = _bound_by_sample(left, right, k, progress)

    def candidates(start: int):
        own = slice(start, start + _TILE)
        farthest = np.zeros(count, np.float32)
        pairs = []
        for column in range(start, count, _TILE):
            other = slice(column, column + _TILE)
            tile = left[own] @ right[other].T
            if column == start:
                np.fill_diagonal(tile, 0)
            farthest[own] = np.maximum(farthest[own], tile.max(axis=1))
            row, col = np.divmod(np.flatnonzero(tile <= bound[own, None]), tile.shape[1])
            pairs.append((start + row, column + col, tile[row, col]))
            if column > start:
                farthest[other] = tile.max(axis=0)
                row, col = np.divmod(np.flatnonzero(tile <= bound[other]), tile.shape[1])
                pairs.append((column + col, start + row, tile[row, col]))
        images, others, distances = (np.concatenate(part) for part in zip(*pairs, strict=True))
        return farthest, images.astype(np.int32), others.astype(np.int32), np.maximum(distances, 0)

    found = []
    farthest = np.zeros(count, np.float32)
    for far, *pairs in each_block(candidates, count, _TILE, progress="finding neighbours" if progress else None):
        np.maximum(farthest, far, out=farthest)
        found.append(pairs)
    images, others, distances = (np.concatenate(part) for part in zip(*found, strict=True))
    del found
    return _nearest(images, others, distances, count, k), np.where(farthest > 0, farthest, 1)


def _bound_by_sample(left: np.ndarray, right: np.ndarray, k: int, progress: bool) -> np.ndarray:
    """Return a distance for each image, (N,) float32, within which there are at least k images."""
    count = len(left)
    sample = right[:: max(1, min(_SAMPLE, count // (_FOLD * 4 * k)))]
    fold = max(1, min(_FOLD, len(sample) // (4 * k)))
    sample = sample[: len(sample) // fold * fold]
    rows = block_rows(len(sample))

    norms = left[:, -2]
    # Products of other shapes differ in their last bits; the margin is far larger than that.
    margin = 1e-5 * (norms + norms.max())

    def bounds(start: int) -> tuple[np.ndarray, int]:
        distances = left[start : start + rows] @ sample.T
        # The k-th smallest minimum of groups is hardly larger than that of all distances, and far cheaper.
        minima = distances.reshape(len(distances), fold, -1).min(axis=1)
        bound = np.partition(minima, k - 1, axis=1)[:, k - 1] + margin[start : start + rows]
        return bound, np.count_nonzero(distances <= bound[:, None])

    blocks = each_block(bounds, count, rows, progress="sampling neighbours" if progress else None)
    bound, within = zip(*blocks, strict=True)
    pairs = sum(within) * (count / len(sample))
    if pairs > max(_MAX_PAIRS, _MAX_PAIRS_PER_IMAGE * count):
        raise ReIDError(
            f"an image has about {pairs / count:.0f} others as near as its {k} nearest: most of the {count} embeddings "
            "coincide, so re-ranking them is meaningless; check the model, or evaluate with rerank=False"
        )
    return np.concatenate(bound)


def _nearest(images: np.ndarray, others: np.ndarray, distances: np.ndarray, count: int, k: int) -> np.ndarray:
    """Keep the k smallest distances of each image, from unordered (image, other, distance) triplets."""
    # With sorted columns, a stable sort breaks ties by index.
    table = sparse.csr_matrix((distances, (images, others)), shape=(count, count))
    table.sort_indices()
    nearest = np.empty((count, k), np.int32)
    for i, (start, stop) in enumerate(zip(table.indptr[:-1], table.indptr[1:], strict=True)):
        order = np.argsort(table.data[start:stop], kind="stable")[:k]
        nearest[i] = table.indices[start:stop][order]
    return nearest


def _encode(images: np.ndarray, nearest: np.ndarray, farthest: np.ndarray, rerank: Rerank) -> sparse.csr_matrix:
    """Return the (N, N) sparse codes V of the images: Gaussian weights of reciprocal neighbours, rows of sum 1."""
    reciprocal = _reciprocal(nearest, rerank.k1)
    half = _reciprocal(nearest, round(rerank.k1 / 2))
    sizes = np.diff(half.indptr)
    # A neighbour extends the set if more than two thirds of its own half-size neighbourhood are in the image's.
    common = (reciprocal @ half.T).multiply(reciprocal).tocsr()
    common.data = (3 * common.data > 2 * sizes[common.indices]).astype(np.int32)
    common.eliminate_zeros()
    members = (reciprocal + common @ half).tocsr()

    rows = np.repeat(np.arange(len(images), dtype=np.int32), np.diff(members.indptr))
    weights = np.empty(members.nnz, np.float32)
    for start in range(0, members.nnz, _PAIRS):
        pairs = slice(start, start + _PAIRS)
        gap = images[rows[pairs]] - images[members.indices[pairs]]
        weights[pairs] = np.exp(-np.einsum("nd,nd->n", gap, gap) / farthest[rows[pairs]])
    # With more than k1 exact copies an image may be missing from its own neighbourhood; its code is then empty.
    weights /= np.bincount(rows, weights, minlength=len(images)).astype(np.float32)[rows]
    codes = sparse.csr_matrix((weights, members.indices, members.indptr), shape=members.shape)
    if rerank.k2 == 1:
        return codes
    expansion = _indicator(nearest[:, : rerank.k2])
    return expansion.astype(np.float32).multiply(np.float32(1 / min(rerank.k2, len(images)))).tocsr() @ codes


def _reciprocal(nearest: np.ndarray, k: int) -> sparse.csr_matrix:
    """Return pairs of images that are among each other's k nearest, besides themselves, as an (N, N) matrix of ones."""
    window = _indicator(nearest[:, : k + 1])
    return window.multiply(window.T).tocsr()


def _indicator(columns: np.ndarray) -> sparse.csr_matrix:
    count, width = columns.shape
    return sparse.csr_matrix(
        (np.ones(columns.size, np.int32), columns.ravel(), np.arange(0, columns.size + 1, width)), shape=(count, count)
    )
