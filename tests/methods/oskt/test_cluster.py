"""Clustering of a teacher's rows: which rows are compared, how, and in how many clusters."""

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage

from reid_hub import ReIDConfig, ReIDModel
from reid_hub.methods.oskt.cluster import CLUSTERINGS, cluster


def teacher() -> ReIDModel:
    torch.manual_seed(0)
    backbone = {
        "model_type": "resnet", "embedding_size": 8, "hidden_sizes": [32, 64], "depths": [2, 1],
        "layer_type": "bottleneck",
    }  # fmt: skip
    return ReIDModel(ReIDConfig(backbone_config=backbone, image_size=(64, 32)))


def sizes_of(model: ReIDModel, share: float = 0.5) -> dict[str, int]:
    return {name: int(group.size * share) for name, group in model.width_groups().groups.items()}


def same_partition(first, second) -> bool:
    """Whether two labellings differ only in the names of the clusters."""
    pairs = set(zip(np.asarray(first).tolist(), np.asarray(second).tolist(), strict=True))
    return len(pairs) == len(set(np.asarray(first).tolist())) == len(set(np.asarray(second).tolist()))


def test_a_residual_stream_is_clustered_by_all_that_write_it():
    """Ward's linkage on [downsample | conv3 of block 0 | conv3 of block 1], by another library."""
    model = teacher()
    tables = cluster(model, sizes_of(model))
    state, path = model.state_dict(), "backbone.model.encoder.stages.0.layers"
    names = [f"{path}.0.shortcut.convolution", f"{path}.0.layer.2.convolution", f"{path}.1.layer.2.convolution"]
    rows = torch.cat([state[f"{name}.weight"].flatten(1) for name in names], dim=1).numpy()
    assert rows.shape == (32, 8 + 8 + 8)
    expected = fcluster(linkage(rows, "ward"), 16, "maxclust")
    assert same_partition(tables["stage1"], expected)

    inner = state[f"{path}.1.layer.1.convolution.weight"].flatten(1).numpy()
    assert inner.shape == (8, 72)
    assert same_partition(tables["stage1.1.conv2"], fcluster(linkage(inner, "ward"), 4, "maxclust"))


def test_cosine_compares_directions_of_each_weight_by_itself():
    model = teacher()
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            if parameter.ndim == 4:  # lengths that would rule a Euclidean clustering
                parameter.mul_(torch.logspace(-2, 2, len(parameter)).view(-1, 1, 1, 1))
    state, path = model.state_dict(), "backbone.model.encoder.stages.0.layers"
    names = [f"{path}.0.shortcut.convolution", f"{path}.0.layer.2.convolution", f"{path}.1.layer.2.convolution"]
    blocks = [state[f"{name}.weight"].flatten(1) for name in names]
    rows = torch.cat([block / block.norm(dim=1, keepdim=True) for block in blocks], dim=1).numpy()
    expected = fcluster(linkage(rows, "ward"), 16, "maxclust")
    assert same_partition(cluster(model, sizes_of(model), distance="cosine")["stage1"], expected)
    assert not same_partition(cluster(model, sizes_of(model))["stage1"], expected)


@pytest.mark.parametrize("clustering", CLUSTERINGS)
def test_every_cluster_is_used_and_the_tables_repeat(clustering):
    model = teacher()
    sizes = sizes_of(model, 0.6)
    first, again = (cluster(model, sizes, clustering=clustering, seed=4) for _ in range(2))
    for name, table in first.items():
        assert torch.equal(table.unique(), torch.arange(sizes[name]))
        assert torch.equal(table, again[name])


def test_ablations_cluster_worse():
    """Ward's clusters lie closer to their means than random ones, and those closer than the inverse's."""
    model = teacher()
    state, groups = model.state_dict(), model.width_groups()

    def spread(tables):
        total = 0.0
        for name, axes in groups.axes.items():
            if state[name].ndim > 1:
                rows, table = state[name].flatten(1), tables[axes.rows[0]]
                total += sum(
                    float((rows[table == g] - rows[table == g].mean(0)).square().sum()) for g in table.unique()
                )
        return total

    found = {name: spread(cluster(model, sizes_of(model), clustering=name)) for name in CLUSTERINGS}
    assert found["ward"] < found["random"]
    assert found["ward"] < found["inverse"]


def test_as_many_clusters_as_rows_keep_the_teachers_order():
    model = teacher()
    for table in cluster(model, sizes_of(model, 1.0)).values():
        assert torch.equal(table, torch.arange(len(table)))


def test_what_cannot_be_clustered_is_refused():
    model = teacher()
    sizes = sizes_of(model)
    with pytest.raises(ValueError, match="a chain of stem has 1 to 8 rows, the student asks for 9"):
        cluster(model, {**sizes, "stem": 9})
    with pytest.raises(ValueError, match=r"unknown clustering 'wart'.*ward"):
        cluster(model, sizes, clustering="wart")
    with pytest.raises(ValueError, match="unknown distance"):
        cluster(model, sizes, distance="manhattan")
