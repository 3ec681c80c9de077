import copy
import itertools
from fractions import Fraction

import pytest
import torch

from reid_hub import ReIDConfig, ReIDModel
from reid_hub.methods.baselines import reestimate_statistics, select_weights
from reid_hub.methods.baselines.weight_selection import uniform_indices
from reid_hub.models.neck import BNNeck


def resnet(planes, layer_type="bottleneck", depths=(1, 2), **options) -> ReIDConfig:
    expansion = 4 if layer_type == "bottleneck" else 1
    backbone = {"model_type": "resnet", "embedding_size": planes[0], "layer_type": layer_type, "depths": list(depths)}
    backbone["hidden_sizes"] = [expansion * width for width in planes]
    return ReIDConfig(backbone_config=backbone, image_size=(64, 32), **options)


def osnet(channels, **options) -> ReIDConfig:
    return ReIDConfig.from_variant(
        "osnet-x0.25",
        backbone_config={"model_type": "reid_osnet", "channels": list(channels)},
        image_size=(64, 32),
        **options,
    )


# Teacher and student; no width of the first two divides, so that both rules of the selection are met.
PAIRS = {
    "bottleneck": (resnet([6, 8]), resnet([4, 8])),
    "basic": (resnet([8, 12], "basic"), resnet([5, 12], "basic")),
    "osnet": (osnet([20, 64, 96, 128], embedding_dim=24), osnet([7, 64, 80, 112], embedding_dim=9)),
}


def build(config: ReIDConfig, seed: int = 0) -> ReIDModel:
    torch.manual_seed(seed)
    model = ReIDModel(copy.deepcopy(config)).eval()
    for tensor in model.state_dict().values():
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor.add_(torch.rand(tensor.shape))
    return model


@pytest.fixture(params=PAIRS)
def pair(request):
    teacher, student = PAIRS[request.param]
    return build(teacher), student


def slow_index(size: int, kept: int) -> list[int]:
    """The published rule in whole numbers; Python's round takes halves of a fraction to the even side."""
    if size % kept == 0:
        return [i * (size // kept) for i in range(kept)]
    return [round(Fraction(i * (size - 1), kept - 1)) for i in range(kept)]


def test_examples_of_the_rule():
    assert uniform_indices(64, 8).tolist() == [0, 8, 16, 24, 32, 40, 48, 56]
    assert uniform_indices(64, 48)[:6].tolist() == [0, 1, 3, 4, 5, 7]
    assert uniform_indices(64, 48)[-1] == 63
    assert uniform_indices(1024, 192)[:6].tolist() == [0, 5, 11, 16, 21, 27]
    assert uniform_indices(1024, 192)[-1] == 1023
    assert uniform_indices(7, 1).tolist() == [0]
    # 1.5 and 4.5: half to even goes up, then down.
    assert uniform_indices(7, 5).tolist() == [0, 2, 3, 4, 6]


def test_rule_for_all_small_sizes_is_that_of_fractions_and_never_repeats():
    for kept, size in itertools.combinations_with_replacement(range(1, 60), 2):
        index = uniform_indices(size, kept).tolist()
        assert index == slow_index(size, kept)
        assert len(set(index)) == kept
    with pytest.raises(ValueError, match="cannot select 9 of 8 channels"):
        uniform_indices(8, 9)


@pytest.mark.parametrize("packed", [False, True])
def test_every_tensor_is_the_published_sub_grid(pair, packed):
    """In a convolutional network the rule for whole axes and that for groups must agree: here it is done by loops."""
    teacher, config = pair
    before = copy.deepcopy(teacher.state_dict())
    student = select_weights(teacher, config, packed=packed)
    assert not student.training
    for name, tensor in student.state_dict().items():
        wide = before[name]
        grid = [slow_index(size, kept) for size, kept in zip(wide.shape, tensor.shape, strict=True)]
        expected = torch.empty_like(tensor)
        for place in itertools.product(*(range(kept) for kept in tensor.shape[:2])):
            source = tuple(index[i] for index, i in zip(grid, place, strict=False))
            expected[place] = wide[source]
        assert torch.equal(tensor, expected), name
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


@pytest.mark.parametrize("selection", ["uniform", "consecutive", "random", "inconsistent"])
def test_equal_widths_give_the_teacher(pair, selection):
    teacher, _ = pair
    student = select_weights(teacher, teacher.config, selection=selection)
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(student.state_dict()[name], tensor), name


def numbered_teacher(config: ReIDConfig) -> ReIDModel:
    """Every entry says which row and which column it stands in: row + column / 1000."""
    model = build(config)
    for tensor in model.state_dict().values():
        if tensor.ndim:
            rows = torch.arange(len(tensor), dtype=torch.float32).view(-1, *[1] * (tensor.ndim - 1))
            columns = torch.arange(tensor.shape[1]).view(1, -1, *[1] * (tensor.ndim - 2)) if tensor.ndim > 1 else 0
            tensor.copy_(rows + columns / 1000)
    return model


def rows_of(student: ReIDModel) -> dict[str, set[tuple]]:
    """For each group, the teacher's channels that its tensors keep, as read from their values."""
    found = {}
    groups, state = student.width_groups(), student.state_dict()
    for name, axes in groups.axes.items():
        matrix = state[name].flatten(2)[..., 0] if state[name].ndim > 2 else state[name]
        rows = matrix[:, 0] if matrix.ndim > 1 else matrix
        found.setdefault(axes.rows[0], set()).add(tuple(rows.floor().int().tolist()))
        if axes.columns:
            columns = ((matrix[0] - matrix[0].floor()) * 1000).round().int()
            found.setdefault(axes.columns[0], set()).add(tuple(columns.tolist()))
    return found


def test_random_keeps_one_subset_of_a_group_everywhere_and_inconsistent_does_not():
    wide, narrow = resnet([16, 32]), resnet([8, 16])
    consistent = rows_of(select_weights(numbered_teacher(wide), narrow, selection="random", seed=3))
    for group, subsets in consistent.items():
        assert len(subsets) == 1, group
        (kept,) = subsets
        assert list(kept) == sorted(set(kept))
    assert consistent != rows_of(select_weights(numbered_teacher(wide), narrow, selection="random", seed=4))
    mixed = rows_of(select_weights(numbered_teacher(wide), narrow, selection="inconsistent", seed=3))
    assert all(len(subsets) > 1 for subsets in mixed.values())
    first = rows_of(select_weights(numbered_teacher(wide), narrow, selection="consecutive"))
    assert all(subsets == {tuple(range(len(next(iter(subsets)))))} for subsets in first.values())


def test_packed_rows_of_queries_keys_and_values_lose_each_other_as_counted_in_the_published_code():
    """Share of positions within a part where the packed selection takes the same row from q and k, and from q and v."""
    for size, kept, q_is_k, q_is_v in [(768, 336, 57, 14), (384, 168, 57, 14), (384, 120, 26, 0), (768, 264, 36, 0)]:
        q, k, v = (uniform_indices(3 * size, 3 * kept).view(3, kept) - torch.arange(3)[:, None] * size).unbind()
        assert round(100 * (q == k).float().mean().item()) == q_is_k
        assert round(100 * (q == v).float().mean().item()) == q_is_v
    q, k, v = (uniform_indices(3 * 384, 3 * 192).view(3, 192) - torch.arange(3)[:, None] * 384).unbind()
    assert torch.equal(q, k)
    assert torch.equal(q, v)


def vit(width: int, heads: int = 3) -> ReIDConfig:
    backbone = {"model_type": "reid_part_vit", "embed_dim": 12, "width": width, "depth": 1, "heads": heads}
    return ReIDConfig.from_variant("vit-s", backbone_config=backbone, image_size=(64, 32))


def test_heads_queries_keys_and_values_keep_the_same_channels():
    teacher = build(vit(24))
    wide, state = teacher.state_dict(), select_weights(teacher, vit(15)).state_dict()
    stream, hidden = slow_index(24, 15), slow_index(96, 60)
    heads = [8 * head + i for head in range(3) for i in slow_index(8, 5)]
    packed = [24 * part + i for part in range(3) for i in heads]
    due = {"attn.qkv": (packed, stream), "attn.proj": (stream, heads), "mlp.fc1": (hidden, stream)}
    for layer, (rows, columns) in {**due, "mlp.fc2": (stream, hidden)}.items():
        name = f"backbone.blocks.0.{layer}"
        assert torch.equal(state[f"{name}.weight"], wide[f"{name}.weight"][rows][:, columns])
        assert torch.equal(state[f"{name}.bias"], wide[f"{name}.bias"][rows])
    assert torch.equal(state["backbone.dw.weight"], wide["backbone.dw.weight"][stream])
    for name in ("backbone.pos_embed", "backbone.part_token2", "backbone.patch_embed.proj.weight"):
        assert torch.equal(state[name], wide[name])  # students keep the teacher's embedding
    assert torch.equal(state["neck.parts.1.weight"], wide["neck.parts.1.weight"][stream])


@pytest.mark.parametrize(("width", "heads"), [(15, 3), (16, 2)])
def test_packed_selects_along_whole_axes_whatever_they_hold(width, heads):
    teacher = build(vit(24))
    student = select_weights(teacher, vit(width, heads), packed=True)
    for name, tensor in student.state_dict().items():
        expected = teacher.state_dict()[name]
        for axis, kept in enumerate(tensor.shape):
            expected = expected.index_select(axis, torch.tensor(slow_index(expected.shape[axis], kept)))
        assert torch.equal(tensor, expected), name


def test_number_of_heads_is_kept_unless_packed():
    with pytest.raises(ValueError, match=r"'blocks\.0\.attn' has 3 blocks.* in the teacher and 2 in the student"):
        select_weights(build(vit(24)), vit(16, 2))


def test_what_the_teacher_lacks_behind_the_backbone_starts_fresh():
    teacher = build(resnet([8, 16], "basic"))
    with_head = select_weights(teacher, resnet([4, 8], "basic", head="linear", embedding_dim=8), seed=1)
    assert torch.equal(with_head.neck.weight, torch.ones(8))  # numbered by other channels than the teacher's
    assert torch.equal(with_head.neck.running_var, torch.ones(8))
    again = select_weights(teacher, resnet([4, 8], "basic", head="linear", embedding_dim=8), seed=1)
    assert torch.equal(with_head.head.fc.weight, again.head.fc.weight)


def test_networks_that_do_not_fit_are_refused_by_name():
    teacher = build(resnet([8, 16], "basic"))
    with pytest.raises(ValueError, match=r"group 'stage2': cannot select 24 of 16 channels"):
        select_weights(teacher, resnet([8, 24], "basic"))
    with pytest.raises(ValueError, match=r"only the student has backbone\.model\.encoder\.stages\.0\.layers\.1"):
        select_weights(teacher, resnet([8, 16], "basic", depths=(2, 2)))
    with pytest.raises(ValueError, match=r"differ in width alone"):
        select_weights(teacher, resnet([4, 8]))
    with pytest.raises(ValueError, match="did you mean 'uniform'"):
        select_weights(teacher, resnet([4, 8], "basic"), selection="unifrom")


@pytest.mark.parametrize("retrieve", ["neck", "features"])
def test_reestimated_statistics_are_the_averages_over_the_batches(retrieve):
    model = build(resnet([4, 8], "basic", retrieve=retrieve))
    weights = {name: parameter.clone() for name, parameter in model.named_parameters()}
    batches = torch.randn(3, 4, 3, 64, 32, generator=torch.Generator().manual_seed(0))
    norms = {n: m for n, m in model.named_modules() if isinstance(m, (torch.nn.BatchNorm2d, BNNeck))}
    expected = {name: [] for name in norms}
    reference = copy.deepcopy(model).train()
    for name, module in reference.named_modules():
        if name in norms:
            module.register_forward_pre_hook(
                lambda _, inputs, name=name: expected[name].append(inputs[0].transpose(0, 1).flatten(1))
            )
    with torch.no_grad():
        for batch in batches:
            reference(batch)
    reestimate_statistics(model, iter(batches))
    for name, norm in norms.items():
        inputs = expected[name]
        torch.testing.assert_close(norm.running_mean, torch.stack([x.mean(1) for x in inputs]).mean(0))
        torch.testing.assert_close(norm.running_var, torch.stack([x.var(1) for x in inputs]).mean(0))
        assert norm.num_batches_tracked == 3
        assert norm.momentum == 0.1
        assert not norm.training
    assert not model.training
    assert all(torch.equal(parameter, weights[name]) for name, parameter in model.named_parameters())
    with pytest.raises(ValueError, match="at least one batch"):
        reestimate_statistics(model, [])
