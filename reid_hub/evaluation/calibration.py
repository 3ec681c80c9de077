"""Calibrate a distance threshold on labelled images: do two images show the same person?"""

from dataclasses import asdict, dataclass, fields

import numpy as np
from scipy.stats import beta

from reid_hub.errors import ReIDError
from reid_hub.evaluation.metrics import JUNK, UNKNOWN_CAMERA, checked_labels
from reid_hub.evaluation.similarity import block_distances, block_rows, each_block

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Decision:
    """A distance threshold and its error rates on the labelled pairs it was calibrated on.

    Two images match when their distance is at most `threshold`: 1 - cos for "cosine", |a - b| for "euclidean", as
    `GalleryIndex.search` returns, up to float32 rounding. Rates are fractions: `false_match_rate` of impostor pairs and
    `true_match_rate` of genuine pairs that match. `false_match_interval` is the 95 % Clopper-Pearson interval of the
    false match rate. It assumes independent pairs; pairs that share an image are not, so the true interval is wider.
    """

    threshold: float
    metric: str
    wanted_false_match_rate: float
    false_match_rate: float
    false_match_interval: tuple[float, float]
    true_match_rate: float
    genuine_pairs: int
    impostor_pairs: int
    dataset: str | None = None
    precision: str = "float32"
    flip: bool = False

    def matches(self, distances) -> np.ndarray:
        """Whether each distance is a match: bool of the same shape."""
        return np.asarray(distances) <= np.float32(self.threshold)

    def to_dict(self) -> dict:
        """Convert to plain numbers, strings and lists, ready for JSON."""
        return asdict(self) | {"false_match_interval": list(self.false_match_interval)}

    @classmethod
    def from_dict(cls, values: dict) -> "Decision":
        """The inverse of `to_dict`.

        Raises:
            ValueError: for a missing or unknown key, or a threshold that is not a distance.
        """
        names = {field.name for field in fields(cls)}
        required = names - {"dataset", "precision", "flip"}
        if not required <= values.keys() <= names:
            raise ReIDError(
                f"a decision needs {', '.join(sorted(required))} and may have dataset, precision and flip, "
                f"got {', '.join(sorted(values)) or 'nothing'}: write it with reid-hub calibrate"
            )
        decision = cls(**values | {"false_match_interval": tuple(values["false_match_interval"])})
        if not (np.isfinite(decision.threshold) and decision.threshold >= 0):
            raise ReIDError(f"the threshold of a decision must be a distance, 0 or more, got {decision.threshold}")
        return decision


def calibrate(
    query_embeddings,
    gallery_embeddings,
    query_pids,
    gallery_pids,
    query_camids,
    gallery_camids,
    *,
    false_match_rate: float = 1e-3,
    metric: str = "cosine",
    dataset: str | None = None,
    precision: str = "float32",
    flip: bool = False,
    progress: bool = False,
) -> Decision:
    """Find the largest distance threshold with at most the given false match rate.

    Every query is paired with every gallery image, by the rules of `evaluate_retrieval`: junk (pid -1, on either side)
    and pairs of one person from one camera are excluded (an unknown camera, -1, never counts as the same). The other
    pairs are genuine (same pid) or impostor. The result is exact: of n impostor pairs at most f = floor(rate * n) may
    match, so the threshold is the largest float32 below the (f + 1)-th smallest impostor distance. Pairs at equal
    distance all match or all do not.

    Memory: the f + 1 smallest impostor distances, all genuine distances, and blocks of products as in
    `evaluate_retrieval`; never all pairs.

    Args:
        query_embeddings, gallery_embeddings: (Q, D) and (G, D) arrays or tensors of any real type.
        query_pids, gallery_pids, query_camids, gallery_camids: (Q,), (G,), (Q,), (G,) integers.
        false_match_rate: allowed share of impostor pairs that match, in (0, 1).
        dataset, precision, flip: recorded in the decision.

    Raises:
        ValueError: for a rate out of range, inputs of wrong shape or value, no genuine pair, fewer than 1 / rate
            impostor pairs, or too many impostor pairs at distance 0 for any threshold.
    """
    if not 0 < false_match_rate < 1:
        raise ReIDError(f"false_match_rate must be between 0 and 1, both exclusive, got {false_match_rate}")
    distances, (queries, images) = block_distances(query_embeddings, gallery_embeddings, metric)
    query_pids, query_camids = checked_labels(query_pids, query_camids, queries, "query")
    gallery_pids, gallery_camids = checked_labels(gallery_pids, gallery_camids, images, "gallery")
    pairs = _Pairs(query_pids, gallery_pids, query_camids, gallery_camids)
    genuine_pairs, impostor_pairs = pairs.count()
    if not genuine_pairs:
        raise ReIDError(
            "there is no genuine pair: query and gallery must share pids, seen by another camera "
            "(images whose camera is unknown must carry camid -1)"
        )
    allowed = _allowed(false_match_rate, impostor_pairs)
    if not allowed:
        raise ReIDError(
            f"a false match rate of {false_match_rate:g} needs at least {int(np.ceil(1 / false_match_rate))} impostor "
            f"pairs, got {impostor_pairs}: use more labelled images or a higher rate"
        )
    genuine, nearest = _distances(distances, pairs, allowed + 1, progress)
    threshold = np.nextafter(nearest[allowed], np.float32(-1))
    if threshold < 0:
        raise ReIDError(
            f"more than {allowed} of {impostor_pairs} impostor pairs have distance 0, so no threshold keeps a false "
            f"match rate of {false_match_rate:g}: look for duplicate images or a collapsed model"
        )
    false_matches = int(np.count_nonzero(nearest <= threshold))
    return Decision(
        threshold=float(threshold),
        metric=metric,
        wanted_false_match_rate=float(false_match_rate),
        false_match_rate=false_matches / impostor_pairs,
        false_match_interval=_interval(false_matches, impostor_pairs),
        true_match_rate=float(np.mean(genuine <= threshold)),
        genuine_pairs=genuine_pairs,
        impostor_pairs=impostor_pairs,
        dataset=dataset,
        precision=precision,
        flip=flip,
    )


class _Pairs:
    """Genuine and impostor pairs of queries with the gallery."""

    def __init__(self, query_pids, gallery_pids, query_camids, gallery_camids):
        self.query_pids, self.gallery_pids = query_pids, gallery_pids
        self.query_camids, self.gallery_camids = query_camids, gallery_camids

    def masks(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Masks of genuine and of impostor pairs, bool (stop - start, G) each."""
        pids, camids = self.query_pids[start:stop, None], self.query_camids[start:stop, None]
        valid = (pids != JUNK) & (self.gallery_pids != JUNK)
        same_person = pids == self.gallery_pids
        same_camera = (camids == self.gallery_camids) & (camids != UNKNOWN_CAMERA)
        return valid & same_person & ~same_camera, valid & ~same_person

    def count(self) -> tuple[int, int]:
        """Numbers of genuine and impostor pairs, without forming the pairs."""
        query, gallery = self.query_pids != JUNK, self.gallery_pids != JUNK
        same = _equal_pairs(self.query_pids[query], self.gallery_pids[gallery])
        known = query & (self.query_camids != UNKNOWN_CAMERA)
        same_camera = _equal_pairs(
            np.column_stack([self.query_pids, self.query_camids])[known],
            np.column_stack([self.gallery_pids, self.gallery_camids])[gallery],
        )
        return same - same_camera, int(query.sum()) * int(gallery.sum()) - same


def _equal_pairs(first: np.ndarray, second: np.ndarray) -> int:
    """Number of pairs of equal rows of (N, ...) and (M, ...)."""
    _, labels = np.unique(np.concatenate([first, second]), axis=0, return_inverse=True)
    labels = labels.reshape(-1)
    bins = len(labels) + 1
    return int(np.bincount(labels[: len(first)], minlength=bins) @ np.bincount(labels[len(first) :], minlength=bins))


def _allowed(rate: float, pairs: int) -> int:
    """The largest count with count / pairs <= rate, robust to rounding of rate * pairs."""
    nearest = round(rate * pairs)
    return nearest - (nearest / max(pairs, 1) > rate)


def _distances(distances, pairs: _Pairs, keep: int, progress: bool) -> tuple[np.ndarray, np.ndarray]:
    """All genuine distances, and the `keep` smallest impostor distances in increasing order, float32."""
    count, rows = len(pairs.query_pids), block_rows(len(pairs.gallery_pids))

    def one_block(start: int) -> tuple[np.ndarray, np.ndarray]:
        block = distances(start, min(start + rows, count))
        genuine, impostor = pairs.masks(start, start + len(block))
        return block[genuine], _smallest(block[impostor], keep)

    genuine, nearest = [], np.empty(0, np.float32)
    for block_genuine, block_nearest in each_block(
        one_block, count, rows, progress="calibrating" if progress else None
    ):
        genuine.append(block_genuine)
        nearest = _smallest(np.concatenate([nearest, block_nearest]), keep)
    return np.concatenate(genuine), np.sort(nearest)


def _smallest(values: np.ndarray, keep: int) -> np.ndarray:
    return values if len(values) <= keep else np.partition(values, keep - 1)[:keep]


def _interval(successes: int, trials: int) -> tuple[float, float]:
    """Exact confidence interval of a binomial proportion (Clopper and Pearson, Biometrika 1934)."""
    tail = (1 - CONFIDENCE) / 2
    low = beta.ppf(tail, successes, trials - successes + 1) if successes else 0.0
    high = beta.ppf(1 - tail, successes + 1, trials - successes) if successes < trials else 1.0
    return float(low), float(high)
