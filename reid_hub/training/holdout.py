"""Identities held out of the training set, to watch a training without touching the test set."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from reid_hub.errors import ReIDError

NO_CAMERA = -1


class Holdout(NamedTuple):
    """Rows of a training set: what is left to train on, and a query/gallery split of the held-out identities.

    `query` and `gallery` share no row, and every query has a true match in the gallery. `skipped` counts the identities
    that could not be held out because one camera, or one image, is all they have; they stay in `train`.
    """

    train: np.ndarray
    query: np.ndarray
    gallery: np.ndarray
    skipped: int


def split_identities(pids: Sequence[int], camids: Sequence[int], fraction: float, seed: int) -> Holdout:
    """Hold out a fraction of the identities, drawn at random from those that can be searched for.

    Query is at most one image per identity and camera, and only while another camera's image of that identity (any
    other image where no camera is known, -1) stays in the gallery.

    Args:
        pids, camids: (N,) of the training set.
        fraction: of all its identities, in (0, 1).

    Raises:
        ValueError: for a fraction outside of (0, 1), if nobody can be held out, or fewer than two identities are left.
    """
    if not 0 < fraction < 1:
        raise ReIDError(f"the held-out fraction must be between 0 and 1, got {fraction}")
    pids, camids = np.asarray(pids), np.asarray(camids)
    rng = np.random.default_rng([seed, len(pids)])
    ids, rows_of = np.unique(pids), _rows_by_pid(pids)
    wanted = max(1, round(fraction * len(ids)))
    held, queries, skipped = [], [], 0
    for i in rng.permutation(len(ids)):
        if len(held) == wanted:
            break
        found = _queries(rows_of[i], camids, rng)
        if found:
            held.append(i)
            queries.extend(found)
        else:
            skipped += 1
    if not held:
        raise ReIDError(
            "no identity can be held out: none was seen by two cameras, or twice where no camera is known; train "
            "without validation"
        )
    if len(ids) - len(held) < 2:
        raise ReIDError(f"holding out {len(held)} of {len(ids)} identities leaves fewer than 2 to train on")
    rows = np.sort(np.concatenate([rows_of[i] for i in held]))
    query = np.sort(np.array(queries))
    train = np.setdiff1d(np.arange(len(pids)), rows, assume_unique=True)
    return Holdout(train, query, np.setdiff1d(rows, query, assume_unique=True), skipped)


def _rows_by_pid(pids: np.ndarray) -> list[np.ndarray]:
    order = np.argsort(pids, kind="stable")
    return np.split(order, np.unique(pids[order], return_index=True)[1][1:])


def _queries(rows: np.ndarray, camids: np.ndarray, rng: np.random.Generator) -> list[int]:
    """One row per camera, as long as it and all chosen before keep a match among what stays in the gallery."""
    chosen, gallery = [], rng.permutation(rows)
    for camera in rng.permutation(np.unique(camids[rows])):
        row = gallery[camids[gallery] == camera][0]
        rest = gallery[gallery != row]
        if all(_has_match(camids[query], camids[rest]) for query in [*chosen, row]):
            chosen.append(int(row))
            gallery = rest
    return chosen


def _has_match(camid: int, gallery_camids: np.ndarray) -> bool:
    return len(gallery_camids) > 0 if camid == NO_CAMERA else bool((gallery_camids != camid).any())


def draw_identities(pids: Sequence[int], share: float, seed: int) -> np.ndarray:
    """A share of the identities, drawn at random and rounded down, sorted: few-shot training.

    Raises:
        ValueError: for a share outside of (0, 1], or one that leaves fewer than two identities.
    """
    ids = np.unique(pids)
    count = int(share * len(ids) + 1e-9)  # 0.3 of 10 identities are three, whatever 0.3 is in binary
    if not 0 < share <= 1 or count < 2:
        raise ReIDError(f"the kept share must be in (0, 1] and leave two identities, got {share} of {len(ids)}")
    return np.sort(np.random.default_rng([seed, count]).permutation(ids)[:count])


def draw_images(pids: Sequence[int], share: float, seed: int) -> np.ndarray:
    """Rows of a share of each identity's images, rounded down but at least one, drawn at random; sorted.

    Raises:
        ValueError: for a share outside of (0, 1].
    """
    if not 0 < share <= 1:
        raise ReIDError(f"the kept share of each class must be in (0, 1], got {share}")
    pids = np.asarray(pids)
    rng = np.random.default_rng([seed, len(pids)])
    kept = [rng.permutation(rows)[: max(1, int(share * len(rows) + 1e-9))] for rows in _rows_by_pid(pids)]
    return np.sort(np.concatenate(kept))


class TrainingSubset:
    """Some rows of an `ImageDataset`, with their identities numbered 0..C-1 again.

    Batches carry the new pids; their `indices` stay those of the whole set. `identities` are the old ones, by new pid.
    """

    def __init__(self, dataset: Any, rows: np.ndarray):
        self.dataset, self.rows, self.collate = dataset, rows, dataset.collate
        self.identities, self.pids = np.unique(dataset.pids[rows], return_inverse=True)
        self.camids = dataset.camids[rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: values[0] for name, values in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        batch = self.dataset.__getitems__(self.rows[indices])
        return {**batch, "pids": torch.from_numpy(self.pids[indices])}
