"""From a labelled set to a decision: the distance below which two images count as one person, and what it costs."""

from dataclasses import asdict, dataclass, fields

import numpy as np
from scipy.stats import beta

from reid_hub.errors import ReIDError
from reid_hub.evaluation.metrics import JUNK, UNKNOWN_CAMERA, checked_labels
from reid_hub.evaluation.similarity import block_distances, block_rows, each_block

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Decision:
    """A distance threshold and how it did on the labelled pairs that it was found on.

    Two images match when their distance is at most `threshold`: 1 - cos for "cosine", |a - b| for "euclidean", as
    `GalleryIndex.search` answers, up to the rounding of float32. Rates are fractions: `false_match_rate` of impostor
    pairs and `true_match_rate` of genuine pairs that match. `false_match_interval` is the 95 % interval of Clopper
    and Pearson for the former; it takes pairs for independent, which those of one image are not, so the truth is
    wider.
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
        """Plain numbers, strings and lists, ready for JSON."""
        return asdict(self) | {"false_match_interval": list(self.false_match_interval)}

    @classmethod
    def from_dict(cls, values: dict) -> "Decision":
        """The inverse of `to_dict`.

        Raises:
            ValueError: on a missing or unknown name, or a threshold that is not a distance.
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
    """Find the largest distance at which no more than the wanted share of impostor pairs match.

    Every query is paired with every gallery image, by the rules of `evaluate_retrieval`: junk (pid -1, on either
    side) takes part in no pair, and neither do images of one person by one camera (an unknown camera, -1, is
    never the same). What is left is genuine (same pid) or impostor. Exact: of n impostor pairs at most
    f = floor(rate * n) may match, so the threshold is the float32 next below the (f + 1)-th smallest of their
    distances; pairs at equal distance match together or not at all.

    Memory: the f + 1 smallest impostor distances, all genuine ones, and blocks of products as in
    `evaluate_retrieval`; never all pairs.

    Args:
        query_embeddings, gallery_embeddings: (Q, D) and (G, D) arrays or tensors of any real type.
        query_pids, gallery_pids, query_camids, gallery_camids: (Q,), (G,), (Q,), (G,) integers.
        false_match_rate: wanted share of impostor pairs that match, between 0 and 1, both exclusive.
        dataset, precision, flip: kept in the decision, so that it says what it was found on.

    Raises:
        ValueError: on a rate out of range, inputs of wrong shape or value, no genuine pair, fewer than 1 / rate
            impostor pairs, or so many impostors at distance 0 that no threshold keeps the rate.
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
    """Which pairs of a block of queries with the gallery are genuine and which are impostors."""

    def __init__(self, query_pids, gallery_pids, query_camids, gallery_camids):
        self.query_pids, self.gallery_pids = query_pids, gallery_pids
        self.query_camids, self.gallery_camids = query_camids, gallery_camids

    def masks(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Genuine and impostor, bool (stop - start, G) each."""
        pids, camids = self.query_pids[start:stop, None], self.query_camids[start:stop, None]
        valid = (pids != JUNK) & (self.gallery_pids != JUNK)
        same_person = pids == self.gallery_pids
        same_camera = (camids == self.gallery_camids) & (camids != UNKNOWN_CAMERA)
        return valid & same_person & ~same_camera, valid & ~same_person

    def count(self) -> tuple[int, int]:
        """Numbers of genuine and impostor pairs, without looking at each."""
        query, gallery = self.query_pids != JUNK, self.gallery_pids != JUNK
        same = _equal_pairs(self.query_pids[query], self.gallery_pids[gallery])
        known = query & (self.query_camids != UNKNOWN_CAMERA)
        same_camera = _equal_pairs(
            np.column_stack([self.query_pids, self.query_camids])[known],
            np.column_stack([self.gallery_pids, self.gallery_camids])[gallery],
        )
        return same - same_camera, int(query.sum()) * int(gallery.sum()) - same


def _equal_pairs(first: np.ndarray, second: np.ndarray) -> int:
    """The number of pairs of equal rows of (N, ...) and (M, ...)."""
    _, labels = np.unique(np.concatenate([first, second]), axis=0, return_inverse=True)
    labels = labels.reshape(-1)
    bins = len(labels) + 1
    return int(np.bincount(labels[: len(first)], minlength=bins) @ np.bincount(labels[len(first) :], minlength=bins))


def _allowed(rate: float, pairs: int) -> int:
    """The largest count whose share of `pairs` is at most `rate`, also where rate * pairs is rounded."""
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
    """Clopper and Pearson, Biometrika 1934: the exact interval of a binomial share."""
    tail = (1 - CONFIDENCE) / 2
    low = beta.ppf(tail, successes, trials - successes + 1) if successes else 0.0
    high = beta.ppf(1 - tail, successes + 1, trials - successes) if successes < trials else 1.0
    return float(low), float(high)
