"""Exact retrieval metrics of person re-identification: mAP, CMC and mINP, without a query x gallery matrix."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from reid_hub.errors import ReIDError
from reid_hub.evaluation.codes import Shortlist
from reid_hub.evaluation.rerank import Rerank, Reranker
from reid_hub.evaluation.similarity import block_rows, comparable, each_block, squared_norms
from reid_hub.index.checks import to_numpy

UNKNOWN_CAMERA = -1
JUNK = -1

_SORT_COST = 50  # sorting a score takes as long as comparing this many


@dataclass(frozen=True, eq=False)
class RetrievalResults:
    """Metrics of a retrieval evaluation, as fractions in [0, 1], averaged over the valid queries.

    `cmc[k - 1]` is the fraction of queries whose first true match is among the best k, (max_rank,) float64.
    `per_query` is the average precision of every query, (num_queries,) float64 with NaN where a query has no true
    match, or None if not requested. `protocol` names every rule that the numbers depend on.
    """

    mAP: float
    rank1: float
    rank5: float
    rank10: float
    mINP: float
    cmc: np.ndarray
    num_valid_queries: int
    num_queries: int
    num_gallery: int
    protocol: dict[str, Any]
    per_query: np.ndarray | None = None

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain numbers, strings and lists, ready for JSON (None for a query without a true match)."""
        values = vars(self) | {"cmc": self.cmc.tolist()}
        if self.per_query is not None:
            values["per_query"] = [None if np.isnan(value) else value for value in self.per_query.tolist()]
        return values


def evaluate_retrieval(
    query_embeddings,
    gallery_embeddings,
    query_pids,
    gallery_pids,
    query_camids,
    gallery_camids,
    *,
    metric: str = "cosine",
    max_rank: int = 50,
    rerank: bool | Rerank = False,
    shortlist: Shortlist | None = None,
    per_query: bool = False,
    progress: bool = False,
) -> RetrievalResults:
    """Rank the gallery for every query and measure the ranks of the true matches (Market-1501 protocol).

    For each query, gallery images of the same person *and* the same camera are dropped, as are junk images (pid -1);
    distractors (pid 0 in Market-1501) match nobody. A camera id of -1 means unknown; nothing is dropped then. Queries
    without a true match are skipped and not counted in `num_valid_queries`.

    AP is the non-interpolated mean over the true matches of (true matches so far / rank). INP is (true matches /
    rank of the last one), Ye et al., "Deep Learning for Person Re-identification", TPAMI 2021. Images at equal
    distance rank by gallery position, as in a stable sort. Scores are float32 sums: they, and ties, are exact for
    embeddings of small integers; otherwise their last bits depend on the BLAS.

    Args:
        query_embeddings, gallery_embeddings: (Q, D) and (G, D) arrays or tensors of any real type; they need not
            be normalised.
        query_pids, gallery_pids, query_camids, gallery_camids: (Q,), (G,), (Q,), (G,) integers.
        max_rank: length of the CMC curve.
        rerank: True or a `Rerank` for k-reciprocal re-ranking. All gallery images take part in it; junk and
            same-camera images are dropped afterwards.
        shortlist: rank by its vectors first, then re-rank its top images by the embeddings; excludes `rerank`.
        per_query: also return the AP of every query.

    Raises:
        ValueError: for inputs of wrong shape or length, NaN or infinite embeddings, zero vectors under cosine, and
            if no query has a true match.
    """
    query, gallery = comparable(query_embeddings, gallery_embeddings, metric)
    query_pids, query_camids = checked_labels(query_pids, query_camids, len(query), "query")
    gallery_pids, gallery_camids = checked_labels(gallery_pids, gallery_camids, len(gallery), "gallery")
    if max_rank < 1:
        raise ReIDError(f"max_rank must be at least 1, got {max_rank}")
    if not isinstance(rerank, bool | Rerank):
        raise ReIDError(f"rerank must be True, False or a Rerank(k1, k2, lambda_value), got {rerank!r}")
    rerank = Rerank() if rerank is True else rerank or None
    if rerank and shortlist:
        raise ReIDError("a shortlist and re-ranking exclude each other: leave one out")

    scores = _reranked(query, gallery, rerank, progress) if rerank else _products(query, gallery, metric)
    if shortlist:
        products, scores = scores, lambda start, stop: shortlist.rescored(start, stop, products(start, stop))
    matches = _Matches(query_pids, gallery_pids, query_camids, gallery_camids)
    precision, inverse_penalty, first = _measure(scores, matches, np.flatnonzero(gallery_pids == JUNK), progress)

    valid = ~np.isnan(precision)
    if not valid.any():
        raise ReIDError(
            f"none of the {len(query)} queries has a true match in the gallery: query and gallery must share "
            "pids, seen by another camera (images whose camera is unknown must carry camid -1)"
        )
    first = first[valid]
    return RetrievalResults(
        mAP=float(precision[valid].mean()),
        **{f"rank{k}": float((first <= k).mean()) for k in (1, 5, 10)},
        mINP=float(inverse_penalty[valid].mean()),
        cmc=(first[:, None] <= np.arange(1, max_rank + 1)).mean(axis=0),
        num_valid_queries=int(valid.sum()),
        num_queries=len(query),
        num_gallery=len(gallery),
        protocol={
            **_protocol(metric, rerank, query_camids, gallery_camids),
            **({"shortlist": shortlist.size} if shortlist else {}),
        },
        per_query=precision if per_query else None,
    )


def average_precision(hits) -> float:
    """Non-interpolated average precision of a ranked list, (N,) zeros and ones, best first.

    Raises:
        ValueError: if the list has no hit.
    """
    ranks = np.flatnonzero(to_numpy(hits)) + 1
    if not ranks.size:
        raise ReIDError("average precision needs at least one hit, got none")
    return _average_precision(ranks)


def _average_precision(ranks: np.ndarray) -> float:
    return float((np.arange(1, len(ranks) + 1) / ranks).mean())


class _Matches:
    """Looks up the gallery images of each query's person, in gallery order, without comparing all pairs."""

    def __init__(self, query_pids, gallery_pids, query_camids, gallery_camids):
        self.order = np.argsort(gallery_pids, kind="stable")
        sorted_pids = gallery_pids[self.order]
        self.starts, self.stops = (sorted_pids.searchsorted(query_pids, side) for side in ("left", "right"))
        # A junk query has no identity: junk in the gallery does not match it.
        self.stops = np.where(query_pids == JUNK, self.starts, self.stops)
        self.query_camids, self.gallery_camids = query_camids, gallery_camids

    def split(self, query: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the true matches of a query, and the images of its person from its own camera."""
        same = self.order[self.starts[query] : self.stops[query]]
        camid = self.query_camids[query]
        if camid == UNKNOWN_CAMERA:
            return same, same[:0]
        dropped = self.gallery_camids[same] == camid
        return same[~dropped], same[dropped]


def _measure(
    scores: Callable[[int, int], np.ndarray], matches: _Matches, junk: np.ndarray, progress: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return AP, INP and the rank of the first true match for every query, NaN if there is no true match."""
    count, rows = len(matches.starts), block_rows(len(matches.order))

    def measure_block(start: int) -> np.ndarray:
        block = scores(start, min(start + rows, count))
        block[:, junk] = -np.inf
        measured = np.full((len(block), 3), np.nan)
        for i, row in enumerate(block):
            true, dropped = matches.split(start + i)
            if true.size:
                row[dropped] = -np.inf
                ranks = match_ranks(row, true)
                measured[i] = _average_precision(ranks), len(ranks) / ranks[-1], ranks[0]
        return measured

    blocks = each_block(measure_block, count, rows, progress="ranking" if progress else None)
    return tuple(np.concatenate(list(blocks)).T)


def match_ranks(scores: np.ndarray, matches: np.ndarray) -> np.ndarray:
    """Return the ranks of the true matches in increasing order, counted from 1; the highest score ranks first.

    The row is never sorted as a whole: only the scores at least as high as that of the worst match are, unless it is
    cheaper to count the images before each match.

    Args:
        scores: (G,) float32; -inf drops an image.
        matches: (M,) increasing positions of the true matches, M > 0.
    """
    values = scores[matches]
    kept = scores >= values.min()
    if np.count_nonzero(kept) * _SORT_COST > len(matches) * len(scores):
        return np.sort([_rank(scores, match) for match in matches])
    ahead = np.sort(scores[np.flatnonzero(kept)])
    not_closer = ahead.searchsorted(values, side="right")
    ranks = len(ahead) - not_closer + 1
    tied = not_closer - ahead.searchsorted(values) > 1
    ranks[tied] = [_rank(scores, match) for match in matches[tied]]
    return np.sort(ranks)


def _rank(scores: np.ndarray, match: int) -> int:
    """Rank of a match; an equal score comes before it only if it is earlier in the gallery."""
    score = scores[match]
    return 1 + np.count_nonzero(scores[:match] >= score) + np.count_nonzero(scores[match + 1 :] > score)


def _products(query: np.ndarray, gallery: np.ndarray, metric: str) -> Callable[[int, int], np.ndarray]:
    if metric == "euclidean":
        # |q - g|^2 decreases with q.g - |g|^2 / 2, which one more column makes a single product.
        query = np.column_stack([query, np.ones(len(query), np.float32)])
        gallery = np.column_stack([gallery, squared_norms(gallery) / -2])
    return lambda start, stop: query[start:stop] @ gallery.T


def _reranked(
    query: np.ndarray, gallery: np.ndarray, rerank: Rerank, progress: bool
) -> Callable[[int, int], np.ndarray]:
    reranker = Reranker(query, gallery, rerank, progress=progress)

    def scores(start: int, stop: int) -> np.ndarray:
        distances = reranker.distances(start, stop)
        return np.negative(distances, out=distances)

    return scores


def checked_labels(pids, camids, count: int, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Check pids and camids; returns two int64 arrays (count,).

    Raises:
        ValueError: if they are not one integer per embedding.
    """
    labels = []
    for name, values in ((f"{split}_pids", to_numpy(pids)), (f"{split}_camids", to_numpy(camids))):
        if values.shape != (count,) or values.dtype.kind not in "iu":
            raise ReIDError(
                f"{name} must be {count} integers, one for each row of {split}_embeddings, "
                f"got {values.dtype} of shape {values.shape}"
            )
        labels.append(values.astype(np.int64))
    return labels[0], labels[1]


def _protocol(
    metric: str, rerank: Rerank | None, query_camids: np.ndarray, gallery_camids: np.ndarray
) -> dict[str, Any]:
    cameras_known = (query_camids != UNKNOWN_CAMERA).any() and (gallery_camids != UNKNOWN_CAMERA).any()
    return {
        "metric": metric,
        "average_precision": "non-interpolated: mean over true matches of (true matches so far / rank)",
        "ties": "equal distances rank by gallery position, earlier first",
        "junk": "gallery images with pid -1 are dropped",
        "same_camera": "gallery images with the pid and the camid of the query are dropped"
        if cameras_known
        else "not applied, cameras are unknown: near-duplicates of the query count as true matches, so results are "
        "higher than across cameras",
        "rerank": rerank.to_dict() if rerank else None,
    }
