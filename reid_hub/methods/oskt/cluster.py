"""Clustering of a teacher's rows into the tables of a weight chain."""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import pairwise_distances
from torch import Tensor
from tqdm.auto import tqdm

from reid_hub.errors import ReIDError
from reid_hub.models import ReIDModel
from reid_hub.registry import lookup


def _ward(rows: np.ndarray, clusters: int, rng: np.random.Generator) -> np.ndarray:
    return AgglomerativeClustering(n_clusters=clusters).fit_predict(rows)


def _random(rows: np.ndarray, clusters: int, rng: np.random.Generator) -> np.ndarray:
    """One random row seeds each cluster, the others fall anywhere (the paper's "rand cluster")."""
    labels = np.concatenate([np.arange(clusters), rng.integers(0, clusters, len(rows) - clusters)])
    return rng.permutation(labels)


def _inverse(rows: np.ndarray, clusters: int, rng: np.random.Generator) -> np.ndarray:
    """What is far apart comes together: average linkage on the largest distance minus the distance.

    The paper does not say the linkage or the inversion; Ward's needs the rows themselves.
    """
    distances = pairwise_distances(rows)
    inverted = distances.max() - distances
    return AgglomerativeClustering(clusters, metric="precomputed", linkage="average").fit_predict(inverted)


CLUSTERINGS = {"ward": _ward, "random": _random, "inverse": _inverse}
DISTANCES = {"euclidean": lambda rows: rows, "cosine": lambda rows: F.normalize(rows, dim=1)}


@torch.no_grad()
def cluster(
    teacher: ReIDModel,
    sizes: Mapping[str, int],
    *,
    distance: str = "euclidean",
    clustering: str = "ward",
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Tensor]:
    """Tables of a weight chain: for every width group the cluster of each channel, (N,), `sizes[group]` clusters.

    OSKT (arXiv:2511.06016): the rows of all weights that write a group, side by side, under Ward's linkage. "cosine"
    normalises each weight's row before; blocks (attention heads) are clustered separately.

    Raises:
        ReIDError: for an unknown clustering or distance, or more clusters than rows; the range is named.
    """
    assign, prepare = lookup(CLUSTERINGS, clustering, "clustering"), lookup(DISTANCES, distance, "distance")
    groups, state, rng = teacher.width_groups(), teacher.state_dict(), np.random.default_rng(seed)
    tables = {}
    for name, group in tqdm(groups.groups.items(), desc="cluster", disable=not progress):
        clusters = sizes[name]
        if not group.blocks <= clusters <= group.size or clusters % group.blocks:
            step = f", in multiples of {group.blocks} heads" if group.blocks > 1 else ""
            raise ReIDError(f"a chain of {name} has 1 to {group.size} rows{step}, the student asks for {clusters}")
        matrix = torch.cat([prepare(rows.float().cpu().flatten(1)) for rows in _rows(groups, state, name)], dim=1)
        parts = []
        for b, block in enumerate(matrix.numpy().reshape(group.blocks, group.size // group.blocks, -1)):
            count = clusters // group.blocks
            labels = np.arange(len(block)) if count == len(block) else assign(block, count, rng)
            parts.append(labels + b * count)
        tables[name] = torch.from_numpy(np.concatenate(parts)).long()
    return tables


def _rows(groups, state: Mapping[str, Tensor], group: str) -> list[Tensor]:
    """The rows (N, ...) of every weight that writes a group; one that writes it thrice (q, k, v) gives three."""
    found = []
    for name, axes in groups.axes.items():
        start = 0
        for member in axes.rows:
            size = groups.groups[member].size
            if member == group and state[name].ndim > 1:
                found.append(state[name][start : start + size])
            start += size
    return found
