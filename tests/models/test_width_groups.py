"""Width groups against the network itself: renumbering a group's channels changes no vector, forgetting one does."""

import re

import pytest
import torch

from reid_hub import ReIDConfig, ReIDModel
from reid_hub.models.width_groups import WidthGroup, WidthGroups

PART_VIT = {
    "backbone_config": {
        "model_type": "reid_part_vit", "embed_dim": 24, "width": 16, "depth": 2, "heads": 2, "drop_path": 0.0,
    },
}  # fmt: skip
# Variant, overrides, number of groups. ResNet: stem, stages, two (basic: one) in each block.
# Part-token ViT: the residual stream, and in each block the attention and the MLP.
NETWORKS = {
    "res50": ("res50-s1", {}, 1 + 4 + 2 * 16),
    "res18": ("res18-x0.25", {}, 1 + 3 + 8),  # basic blocks: the first stage has no shortcut, its stream is the stem's
    "res50-embedding": ("res50-s1", {"head": "linear", "embedding_dim": 24}, 1 + 4 + 2 * 16 + 1),
    "vit": ("vit-s", PART_VIT, 1 + 2 * 2),
    "vit-bnneck": ("vit-s", {**PART_VIT, "neck": "bnneck", "retrieve": "neck"}, 1 + 2 * 2),
    "vit-embedding": ("vit-s", {**PART_VIT, "neck": "none", "head": "linear", "embedding_dim": 12}, 1 + 2 * 2 + 1),
}
# The part-token ViT's patch embedding, tokens and positions keep the teacher's width: they are in no group, and neither
# are the columns of the layer behind them.
FULL_WIDTH = re.compile(r"backbone\.(patch_embed\.proj\.\w+|(cls|part)_token\d?|(cls|part\d)_pos|pos_embed)")
FULL_WIDTH_COLUMNS = {"backbone.dw.weight"}


def build(name: str, seed: int = 0) -> ReIDModel:
    """The network in float64 with random statistics, gains and offsets, so that every channel differs."""
    variant, overrides, _ = NETWORKS[name]
    torch.manual_seed(seed)
    model = ReIDModel(ReIDConfig.from_variant(variant, image_size=(64, 32), **overrides)).double()
    state = model.state_dict()
    for key, tensor in state.items():
        if key.endswith("running_var"):
            state[key] = torch.rand_like(tensor) + 0.5
        elif tensor.ndim <= 1 and tensor.is_floating_point():
            state[key] = tensor + 0.5 * torch.randn_like(tensor)
    model.load_state_dict(state)
    return model


def renumber(model: ReIDModel, groups: WidthGroups, order: dict[str, torch.Tensor]) -> ReIDModel:
    """The same network with the channels of some groups in another order."""
    state = model.state_dict()
    for name, axes in groups.axes.items():
        for axis, members in enumerate((axes.rows, axes.columns)):
            if members:
                index, start = [], 0
                for group in members:
                    size = groups.groups[group].size
                    index.append(start + order.get(group, torch.arange(size)))
                    start += size
                state[name] = state[name].index_select(axis, torch.cat(index))
    other = ReIDModel(model.config).double().train(model.training)
    other.load_state_dict(state)
    return other


def shuffled(group, generator) -> torch.Tensor:
    """A random order of a group's channels: the same within each of its blocks, which keep their places."""
    block = group.size // group.blocks
    order = torch.randperm(block, generator=generator)
    return torch.cat([order + start for start in range(0, group.size, block)])


def distances(model: ReIDModel) -> torch.Tensor:
    """What retrieval sees: products of all pairs of vectors, which no order of the vector's own channels changes."""
    pixels = torch.randn(4, 3, 64, 32, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    with torch.no_grad():
        output = model(pixels)
    return torch.stack([x @ x.T for x in (output.embeddings, output.features)])


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_renumbering_all_groups_at_once_changes_no_distance(name, training):
    model = build(name).train(training)
    groups, generator = model.width_groups(), torch.Generator().manual_seed(1)
    order = {group: shuffled(size, generator) for group, size in groups.groups.items()}
    expected = distances(model)
    torch.testing.assert_close(distances(renumber(model, groups, order)), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NETWORKS)
def test_each_group_matters_and_stands_alone(name):
    """One group alone: nothing changes; the same with one of its members forgotten: the vectors change."""
    model = build(name).eval()
    groups, generator = model.width_groups(), torch.Generator().manual_seed(2)
    expected = distances(model)
    for group, size in groups.groups.items():
        order = {group: shuffled(size, generator)}
        if torch.equal(order[group], torch.arange(size.size)):
            continue  # nothing to renumber, as in a gate of one channel
        torch.testing.assert_close(distances(renumber(model, groups, order)), expected, rtol=1e-9, atol=1e-9)
        member = next(
            n
            for n, a in groups.axes.items()
            if group in a.rows and n.endswith(".weight") and model.get_parameter(n).ndim > 1
        )
        forgetful = model.width_groups()
        del forgetful.axes[member]
        error = (distances(renumber(model, forgetful, order)) - expected).abs().max() / expected.abs().max()
        assert error > 1e-7, f"{group} without {member}"


@pytest.mark.parametrize("name", NETWORKS)
def test_every_channel_axis_is_covered(name):
    model = build(name)
    groups = model.width_groups()
    assert len(groups.groups) == NETWORKS[name][2]
    for key, tensor in model.state_dict().items():
        if tensor.ndim == 0 or tensor.numel() == 1:
            continue
        if FULL_WIDTH.fullmatch(key):
            assert key not in groups.axes, key
            continue
        axes = groups.axes[key]
        assert axes.rows, key
        kept = tensor.ndim < 2 or tensor.shape[1] in (1, 3) or key in FULL_WIDTH_COLUMNS
        assert bool(axes.columns) != kept, key


def test_attention_is_declared_by_heads_with_its_queries_first():
    groups = build("vit").width_groups()
    assert groups.groups["blocks.1.attn"] == WidthGroup(16, blocks=2)
    assert groups.axes["backbone.blocks.1.attn.qkv.weight"].rows == ("blocks.1.attn",) * 3
    assert groups.queries == {
        f"backbone.blocks.{i}.attn.qkv.{tensor}": f"blocks.{i}.attn" for i in (0, 1) for tensor in ("weight", "bias")
    }


def test_groups_that_do_not_fit_are_refused():
    model = ReIDModel(ReIDConfig.from_variant("res50-s1"))
    groups = WidthGroups(model)
    with pytest.raises(ValueError, match="a layer that writes only it comes first"):
        groups.layer("backbone.model.embedder.embedder.convolution", writes="stem", reads="picture")
    groups.layer("neck", writes="stage4")
    with pytest.raises(ValueError, match="is declared twice"):
        groups.layer("neck", writes="stage4")
    with pytest.raises(ValueError, match="has 8 channels, its groups"):
        groups.layer("backbone.model.embedder.embedder.convolution", writes="stage4")


def test_a_backbone_that_declares_nothing_is_refused_by_name():
    model = ReIDModel(ReIDConfig.from_variant("squeezenet"))
    with pytest.raises(ValueError, match="width groups exist for ResNet"):
        model.width_groups()
