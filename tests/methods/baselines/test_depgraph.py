import copy
import sys
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor, nn

from reid_hub import ReIDConfig, ReIDModel
from reid_hub.losses import identity_loss
from reid_hub.methods.baselines import prune_to
from reid_hub.models.neck import BNNeck
from reid_hub.models.width_groups import WidthGroups

needs_library = pytest.mark.skipif(
    find_spec("torch_pruning") is None, reason="torch-pruning is not installed: pip install 'reid-hub[pruning]'"
)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, BNNeck)


def resnet(planes, layer_type="bottleneck", depths=(1, 2), **options) -> ReIDConfig:
    expansion = 4 if layer_type == "bottleneck" else 1
    backbone = {"model_type": "resnet", "embedding_size": planes[0], "layer_type": layer_type, "depths": list(depths)}
    backbone["hidden_sizes"] = [expansion * width for width in planes]
    return ReIDConfig(backbone_config=backbone, image_size=(64, 32), **options)


def osnet(channels, **options) -> ReIDConfig:
    backbone = {"model_type": "reid_osnet", "channels": channels}
    return ReIDConfig.from_variant("osnet-x0.25", backbone_config=backbone, image_size=(64, 32), **options)


# The network and what it is pruned to.
PAIRS = {
    "bottleneck": (resnet([6, 8]), resnet([5, 3])),
    "basic": (resnet([8, 12], "basic", retrieve="features"), resnet([5, 12], "basic", retrieve="features")),
    "embedding": (
        resnet([6, 8], head="linear", embedding_dim=20, neck="none"),
        resnet([5, 3], head="linear", embedding_dim=7, neck="none"),
    ),
    "osnet": (osnet([20, 64, 96, 128], embedding_dim=24), osnet([7, 64, 80, 112], embedding_dim=9)),
}


def build(config: ReIDConfig, seed: int = 0) -> ReIDModel:
    """A network in evaluation mode whose norms all differ from one and zero, as after a training."""
    torch.manual_seed(seed)
    model = ReIDModel(copy.deepcopy(config)).eval()
    for tensor in model.state_dict().values():
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor.add_(0.5 * torch.rand(tensor.shape) + 0.1)
    return model


@pytest.fixture(params=PAIRS)
def pair(request):
    return PAIRS[request.param]


def axis_index(groups: WidthGroups, members: tuple[str, ...], kept: dict[str, Tensor]) -> Tensor:
    index, start = [], 0
    for group in members:
        index.append(kept[group] + start)
        start += groups.groups[group].size
    return torch.cat(index)


def assert_keeps(student: ReIDModel, model: ReIDModel, kept: dict[str, Tensor], part: str = "") -> None:
    """Every tensor of the student is the model's, at the kept channels of the groups that number it."""
    groups, state = model.width_groups(), model.state_dict()
    names = [name for name in student.state_dict() if name.startswith(part)]
    for name in names:
        tensor = student.state_dict()[name]
        expected = state[name]
        if name in groups.axes:
            for axis, members in enumerate((groups.axes[name].rows, groups.axes[name].columns)):
                if members:
                    expected = expected.index_select(axis, axis_index(groups, members, kept))
        assert torch.equal(tensor, expected), name


# Widths in the proportions of S1, S2 and S4, and some that divide nothing, from a ResNet-50 of a quarter of the width.
@needs_library
@pytest.mark.parametrize("planes", [(2, 4, 8, 16), (4, 8, 12, 16), (8, 16, 24, 32), (3, 11, 17, 41)])
def test_widths_are_exact_and_the_model_is_left_alone(planes):
    model = build(resnet((16, 32, 64, 128), depths=(3, 4, 6, 3)))
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    random_state = torch.get_rng_state()
    student = prune_to(model, resnet(planes, depths=(3, 4, 6, 3)), classifier=torch.ones(5, 512))
    sizes = {name: group.size for name, group in student.width_groups().groups.items()}
    assert sizes.pop("stem") == planes[0]
    for name, size in sizes.items():
        stage = int(name.removeprefix("stage")[0])
        assert size == planes[stage - 1] * (1 if "conv" in name else 4), name
    assert isinstance(student.neck, BNNeck)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@needs_library
def test_channels_that_do_nothing_are_what_is_removed(pair):
    """A narrow network hidden in a wide one, whose other channels are dead, comes out as it went in."""
    wide, narrow = pair
    hidden, model = build(narrow, seed=1), build(wide)
    generator = torch.Generator().manual_seed(2)
    groups = model.width_groups()
    places = {
        name: torch.randperm(groups.groups[name].size, generator=generator)[: group.size].sort().values
        for name, group in hidden.width_groups().groups.items()
    }
    state, narrow_state = model.state_dict(), hidden.state_dict()
    for name, axes in groups.axes.items():
        index = tuple(axis_index(groups, members, places) for members in (axes.rows, axes.columns) if members)
        state[name].zero_()
        state[name][torch.meshgrid(*index, indexing="ij")] = narrow_state[name]
    student = prune_to(model, narrow)
    for name, tensor in student.state_dict().items():
        assert torch.equal(narrow_state[name], tensor), name
    pixels = torch.randn(2, 3, 64, 32, generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(student(pixels).embeddings, hidden(pixels).embeddings)


def slow_scores(model: ReIDModel, measure, counted, classifier=None, part: str = "") -> dict[str, Tensor]:
    """Importance of every channel by the declaration of groups: the sum over each row and column it stands for."""
    groups = model.width_groups()
    scores = {name: [0.0] * group.size for name, group in groups.groups.items()}
    tensors = [(name, axes, model.get_submodule(name.rpartition(".")[0])) for name, axes in groups.axes.items()]
    tensors = [
        (measure(module.weight), axes.rows, axes.columns)
        for name, axes, module in tensors
        if name.startswith(part) and name.endswith("weight")
        if isinstance(module, counted) and getattr(module, "groups", 1) == 1
    ]
    if classifier is not None:
        tensors.append((measure(classifier.weight), (), groups.axes["neck.weight"].rows))
    for values, rows, columns in tensors:
        for axis, members in ((0, rows), (1, columns)):
            channels = iter(values.unbind(axis) if members else ())
            for group in members:
                for i in range(len(scores[group])):
                    scores[group][i] += next(channels).sum().item()
    return {group: torch.tensor(values) for group, values in scores.items()}


def heaviest(scores: dict[str, Tensor], student: ReIDModel) -> dict[str, Tensor]:
    """The channels with the highest scores, in their order; those of attention heads by their mean over the heads."""
    kept = {}
    for name, group in student.width_groups().groups.items():
        within = scores[name].view(group.blocks, -1).mean(0).topk(group.size // group.blocks).indices.sort().values
        size = len(scores[name]) // group.blocks
        kept[name] = torch.cat([head * size + within for head in range(group.blocks)])
    return kept


@needs_library
def test_magnitude_keeps_the_channels_with_the_largest_sums_of_squares(pair):
    wide, narrow = pair
    model = build(wide)
    student = prune_to(model, narrow)
    scores = slow_scores(model, torch.square, (nn.Conv2d, nn.Linear, *NORMS))
    assert_keeps(student, model, heaviest(scores, student))


@needs_library
def test_of_a_vector_in_parts_the_backbone_alone_is_pruned():
    wide, narrow = (
        ReIDConfig.from_variant(
            "msinet-x0.25", backbone_config={"model_type": "reid_msinet", "channels": channels}, image_size=(64, 32)
        )
        for channels in ([16, 64, 96, 128], [8, 64, 80, 112])
    )
    model = build(wide)
    student = prune_to(model, narrow)
    scores = slow_scores(model, torch.square, (nn.Conv2d, nn.Linear, *NORMS), part="backbone.")
    assert_keeps(student, model, heaviest(scores, student), part="backbone.")
    for name, module in student.neck.named_modules():
        if isinstance(module, BNNeck):
            assert torch.equal(module.weight, torch.ones_like(module.weight)), name


@needs_library
def test_columns_of_the_classifier_count():
    model = build(PAIRS["bottleneck"][0])
    classifier = nn.Linear(model.embedding_dim, 30, bias=False)
    nn.init.normal_(classifier.weight)
    student = prune_to(model, PAIRS["bottleneck"][1], classifier=classifier.weight.detach())
    counted = (nn.Conv2d, nn.Linear, *NORMS)
    with_columns = heaviest(slow_scores(model, torch.square, counted, classifier), student)
    assert_keeps(student, model, with_columns)
    without = heaviest(slow_scores(model, torch.square, counted), student)
    assert any(not torch.equal(with_columns[group], without[group]) for group in without)


@needs_library
def test_taylor_keeps_the_channels_whose_weights_the_loss_depends_on():
    wide, narrow = PAIRS["bottleneck"]
    model, pids = build(wide), torch.tensor([0, 0, 1, 2])
    pixels = torch.randn(4, 3, 64, 32, generator=torch.Generator().manual_seed(1))
    classifier = nn.Linear(model.embedding_dim, 3, bias=False)

    def loss(network, layer):
        assert network.training
        return identity_loss(layer(network(pixels).embeddings), pids)

    student = prune_to(model, narrow, importance="taylor", loss=loss, classifier=classifier.weight.detach())
    reference = copy.deepcopy(model).train()
    loss(reference, classifier).backward()
    # Batch norms count for magnitude only: the library means them and tests for another kind of norm.
    scores = slow_scores(reference, lambda weight: (weight * weight.grad).abs(), (nn.Conv2d,), classifier)
    assert_keeps(student, model, heaviest(scores, student))
    magnitude = heaviest(slow_scores(model, torch.square, (nn.Conv2d, *NORMS)), student)
    taylor = heaviest(scores, student)
    assert any(not torch.equal(magnitude[group], taylor[group]) for group in taylor)


@needs_library
@pytest.mark.parametrize("width", [12, 21])
def test_vit_loses_the_same_channels_of_every_head_and_keeps_its_embedding(width):
    backbone = {"model_type": "reid_part_vit", "embed_dim": 10, "depth": 2, "heads": 3, "drop_path": 0.0}
    wide, narrow = (
        ReIDConfig.from_variant("vit-s", backbone_config={**backbone, "width": width}, image_size=(64, 32))
        for width in (24, width)
    )
    model, pids = build(wide), torch.tensor([0, 0, 1, 2])
    classifier = nn.Linear(model.embedding_dim, 3, bias=False)

    def loss(network, layer):
        return identity_loss(layer(network(pixels()).embeddings), pids)

    student = prune_to(model, narrow, importance="taylor", loss=loss, classifier=classifier.weight)
    reference = copy.deepcopy(model).train()
    loss(reference, classifier).backward()
    scores = slow_scores(
        reference, lambda weight: (weight * weight.grad).abs(), (nn.Linear, nn.LayerNorm), part="backbone."
    )
    assert_keeps(student, model, heaviest(scores, student), part="backbone.")


@needs_library
def test_what_cannot_be_pruned_is_refused_by_name():
    model = build(resnet([6, 8]))
    with pytest.raises(ValueError, match=r"stages\.1.* has 32 channels and cannot be pruned to 40"):
        prune_to(model, resnet([4, 10]))
    with pytest.raises(ValueError, match=r"only the student has backbone.*layers\.1"):
        prune_to(model, resnet([4, 8], depths=(2, 2)))
    with pytest.raises(ValueError, match="a loss belongs to importance='taylor'"):
        prune_to(model, resnet([4, 8]), importance="taylor")
    with pytest.raises(ValueError, match="did you mean 'magnitude'"):
        prune_to(model, resnet([4, 8]), importance="magnitud")
    with pytest.raises(ValueError, match=r"does not depend on model\.neck\.weight"):
        prune_to(model, resnet([4, 8]), importance="taylor", loss=lambda network, _: network(pixels()).features.sum())
    with pytest.raises(RuntimeError, match="differs from the model's in width alone"):
        prune_to(model, resnet([4, 8], last_stride=1))


def pixels() -> Tensor:
    return torch.randn(4, 3, 64, 32, generator=torch.Generator().manual_seed(1))


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(ImportError, match=r"pip install 'reid-hub\[pruning\]'"):
        prune_to(build(resnet([6, 8])), resnet([4, 8]))
