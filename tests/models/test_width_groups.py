"""Width groups against the network itself: renumbering a group's channels changes no vector, forgetting one does."""

import copy
import re

import pytest
import torch
from torch.func import functional_call

from reid_hub import ReIDConfig, ReIDModel
from reid_hub.models.width_groups import WidthGroup, WidthGroups

IBN = {"model_type": "reid_osnet", "channels": [16, 64, 96, 128], "ibn": True}
PART_VIT = {
    "backbone_config": {
        "model_type": "reid_part_vit", "embed_dim": 24, "width": 16, "depth": 2, "heads": 2, "drop_path": 0.0,
    },
}  # fmt: skip

# Variant, overrides, number of groups. ResNet: stem, stages, two (basic: one) in each block. OSNet and MSINet: specs.
# Part-token ViT: the residual stream, and in each block the attention and the MLP.
NETWORKS = {
    "res50": ("res50-s1", {}, 1 + 4 + 2 * 16),
    "res18": ("res18-x0.25", {}, 1 + 3 + 8),  # basic blocks: the first stage has no shortcut, its stream is the stem's
    "res50-embedding": ("res50-s1", {"head": "linear", "embedding_dim": 24}, 1 + 4 + 2 * 16 + 1),
    "osnet": ("osnet-x0.25", {"embedding_dim": 24}, 62),
    "osnet-ibn": ("osnet-x0.25", {"embedding_dim": 24, "backbone_config": IBN}, 62),
    "msinet": ("msinet-x0.25", {"retrieve": "neck"}, 66),  # so that evaluation goes through the neck's groups as well
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
        elif key.endswith("gamma"):
            state[key] = torch.full_like(tensor, 0.7)  # of cross attention, which is off at first
        elif tensor.ndim <= 1 and tensor.is_floating_point():
            state[key] = tensor + 0.5 * torch.randn_like(tensor)
    model.load_state_dict(state)
    return model


def renumber(model: ReIDModel, groups: WidthGroups, order: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of the same network with the channels of some groups in another order."""
    state = model.state_dict()
    for name, axes in groups.axes.items():
        for axis, members in enumerate((axes.rows, axes.columns)):
            if order.keys() & set(members):
                index, start = [], 0
                for group in members:
                    size = groups.groups[group].size
                    index.append(start + order.get(group, torch.arange(size)))
                    start += size
                state[name] = state[name].index_select(axis, torch.cat(index))
    return state


def shuffled(group, generator) -> torch.Tensor:
    """A random order of a group's channels, not that they have: the same within each of its blocks, which stay."""
    block = group.size // group.blocks
    order = torch.randperm(block, generator=generator)
    if torch.equal(order, torch.arange(block)):
        order = order.roll(1)
    return torch.cat([order + start for start in range(0, group.size, block)])


def distances(model: ReIDModel, state: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
    """What retrieval sees: products of all pairs of vectors, which no order of the vector's own channels changes."""
    pixels = torch.randn(3, 3, 64, 32, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    with torch.no_grad():
        output = functional_call(model, state or {}, (pixels,))
    return torch.stack([x @ x.T for x in (output.embeddings, output.features)])


def change(model: ReIDModel, state: dict[str, torch.Tensor], expected: torch.Tensor) -> float:
    return ((distances(model, state) - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_renumbering_all_groups_at_once_changes_no_distance(name, training):
    model = build(name).train(training)
    groups, generator = model.width_groups(), torch.Generator().manual_seed(1)
    order = {group: shuffled(size, generator) for group, size in groups.groups.items()}
    expected = distances(model)
    torch.testing.assert_close(distances(model, renumber(model, groups, order)), expected, rtol=1e-9, atol=1e-9)


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
        torch.testing.assert_close(distances(model, renumber(model, groups, order)), expected, rtol=1e-9, atol=1e-9)
        member = next(
            n
            for n, a in groups.axes.items()
            if group in a.rows and n.endswith(".weight") and model.get_parameter(n).ndim > 1
        )
        forgetful = copy.copy(groups)
        forgetful.axes = {name: axes for name, axes in groups.axes.items() if name != member}
        assert change(model, renumber(model, forgetful, order), expected) > 1e-7, f"{group} without {member}"


@pytest.mark.parametrize("name", NETWORKS)
def test_every_channel_axis_is_covered(name):
    model = build(name)
    groups = model.width_groups()
    assert len(groups.groups) == NETWORKS[name][2]
    for key, tensor in model.state_dict().items():
        if tensor.ndim == 0 or key.endswith("gamma"):
            continue
        if FULL_WIDTH.fullmatch(key):
            assert key not in groups.axes, key
            continue
        layer = model.get_submodule(key.rpartition(".")[0])
        axes = groups.axes[key]
        assert axes.rows, key
        counts_inputs = tensor.ndim > 1 and getattr(layer, "groups", 1) == 1 and tensor.shape[1] != 3
        assert bool(axes.columns) == (counts_inputs and key not in FULL_WIDTH_COLUMNS), key


def test_attention_is_declared_by_heads_with_its_queries_first():
    groups = build("vit").width_groups()
    assert groups.groups["blocks.1.attn"] == WidthGroup(16, blocks=2)
    assert groups.axes["backbone.blocks.1.attn.qkv.weight"].rows == ("blocks.1.attn",) * 3
    assert groups.queries == {
        f"backbone.blocks.{i}.attn.qkv.{tensor}": f"blocks.{i}.attn" for i in (0, 1) for tensor in ("weight", "bias")
    }


BLOCK, LAST_OF_STREAM = r"backbone\.conv3\.1\.", r"conv2(a|b\.1|c\.2|d\.3)\."
CELL = r"backbone\.cells\."
# Network, the tensors whose rows get another order, those whose columns get it.
WRONG_GROUPS = {
    "one of four summed streams": ("osnet", rf"{BLOCK}conv2a\.", rf"{BLOCK}(conv3|gate\.fc1)\."),
    "four streams without their gate": ("osnet", BLOCK + LAST_OF_STREAM, rf"{BLOCK}conv3\."),
    "one branch under a shared gate": ("msinet", rf"{CELL}0\.conv2a\.", rf"{CELL}0\.conv3a\.conv1\."),
    "one branch under cross attention": ("msinet", rf"{CELL}3\.conv2a\.", rf"{CELL}3\.conv3a\.conv1\."),
    "exchanged branches with each its own consumer": ("msinet", rf"{CELL}1\.conv2a\.", rf"{CELL}1\.conv3a\.conv1\."),
}
RIGHT_GROUPS = {
    "four streams and their gate": ("osnet", rf"{BLOCK}({LAST_OF_STREAM}|gate\.fc2)", rf"{BLOCK}(conv3|gate\.fc1)\."),
    "exchanged branches with the other's consumer": (
        "msinet", rf"{CELL}1\.conv2a\.", rf"{CELL}1\.conv3b\.0\.conv1\.",
    ),
    "one branch without interaction": ("msinet", rf"{CELL}4\.conv3a\.", rf"{CELL}4\.conv4a\."),
}  # fmt: skip


@pytest.mark.parametrize("case", [*WRONG_GROUPS, *RIGHT_GROUPS])
def test_what_sums_gates_and_attention_tie_is_tied_in_the_network_itself(case):
    """Without any declaration: renumbered by the names of the tensors, the network changes where the group is wrong."""
    name, rows, columns = (WRONG_GROUPS | RIGHT_GROUPS)[case]
    model = build(name).eval()
    expected, state = distances(model), model.state_dict()
    numbered = {key: tensor for key, tensor in state.items() if re.match(rows, key) and tensor.ndim}
    order = torch.arange(len(next(iter(numbered.values())))).roll(3)
    for key, tensor in numbered.items():
        state[key] = tensor[order]
    for key, tensor in state.items():
        if re.match(columns, key) and tensor.ndim > 1:
            state[key] = tensor[:, order]
    error = change(model, state, expected)
    assert error > 1e-6 if case in WRONG_GROUPS else error < 1e-12


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
