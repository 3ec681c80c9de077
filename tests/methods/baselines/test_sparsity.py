import copy
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from reid_hub import ReIDConfig, ReIDModel
from reid_hub.data.batch import Batch
from reid_hub.methods import SupervisedMethod
from reid_hub.methods.baselines import SparsityLearning
from reid_hub.methods.baselines.depgraph import _Traced

PIDS = torch.tensor([0, 0, 1, 1])


def resnet(planes, layer_type="bottleneck", **options) -> ReIDConfig:
    expansion = 4 if layer_type == "bottleneck" else 1
    backbone = {"model_type": "resnet", "embedding_size": planes[0], "layer_type": layer_type, "depths": [1, 2]}
    backbone["hidden_sizes"] = [expansion * width for width in planes]
    return ReIDConfig(backbone_config=backbone, image_size=(64, 32), **options)


CONFIGS = {
    "bottleneck": resnet([4, 6]),
    "basic": resnet([4, 6], "basic"),
    "embedding": resnet([4, 6], head="linear", embedding_dim=5, neck="none"),
    # Wide enough for two channels in the gate: of one, the library makes all gradients NaN.
    "osnet": ReIDConfig.from_variant(
        "osnet-x0.25",
        backbone_config={"model_type": "reid_osnet", "channels": [8, 128, 144, 160]},
        image_size=(64, 32),
        embedding_dim=32,
    ),
}


def with_gradients(config: ReIDConfig) -> SupervisedMethod:
    torch.manual_seed(0)
    model = ReIDModel(copy.deepcopy(config))
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data.add_(0.5 * torch.rand(parameter.shape))
    method = SupervisedMethod(model, 3)
    nn.init.normal_(method.classifier.weight)
    pixels = torch.randn(4, 3, 64, 32, generator=torch.Generator().manual_seed(1))
    method(Batch(pixel_values=pixels, pids=PIDS))["loss"].backward()
    return method


@pytest.mark.skipif(find_spec("torch_pruning") is None, reason="torch-pruning is not installed")
@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_are_those_of_the_authors_library(name):
    import torch_pruning

    method = with_gradients(CONFIGS[name])
    traced = _Traced(method.model, method.classifier.weight.detach())
    pruner = torch_pruning.pruner.GroupNormPruner(
        traced,
        torch.zeros(2, 3, 64, 32),
        importance=torch_pruning.importance.GroupMagnitudeImportance(),
        ignored_layers=[traced.classifier],
        in_channel_groups={},
        out_channel_groups={},
        reg=1e-2,
    )
    for parameter in (*traced.parameters(), *method.parameters()):
        parameter.grad = torch.zeros_like(parameter)
    pruner.regularize(traced)
    SparsityLearning(method.model, method.classifier, reg=1e-2).regularize()
    expected = {n: p.grad for n, p in traced.named_parameters()}
    assert sum(gradient.any().item() for gradient in expected.values()) > 10
    for key, parameter in method.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[key], rtol=1e-4, atol=1e-8, msg=key)


def test_lightest_channel_decays_alpha_times_as_fast_as_the_heaviest():
    """A group in isolation: the inner channels of a basic block, written by one convolution and read by the next."""
    model = with_gradients(CONFIGS["basic"]).model
    block = model.backbone.model.encoder.stages[1].layers[1].layer
    writer, reader, norm = block[0].convolution, block[1].convolution, block[0].normalization
    weights = torch.tensor([1.0, 2.0, 3.0, 5.0, 4.0, 1.0])
    for parameter in (writer.weight, reader.weight, norm.weight):
        parameter.data.zero_()
    writer.weight.data[:, 0, 0, 0] = weights
    reader.weight.grad.zero_()
    writer.weight.grad.zero_()
    # Rows are also read, as columns of the residual stream, whose decay comes on top: weigh it nothing.
    learning = SparsityLearning(model, reg=0.01, alpha=16)
    learning.members = {group: members for group, members in learning.members.items() if group == "stage2.1.conv1"}
    learning.regularize()
    strength = torch.tensor([16.0, 16**0.75, 16**0.5, 1.0, 16**0.25, 16.0])
    torch.testing.assert_close(writer.weight.grad[:, 0, 0, 0], 0.01 * strength * weights)
    assert not reader.weight.grad.any()


def test_equally_heavy_channels_all_decay_slowly_instead_of_breaking_the_gradients():
    method = with_gradients(CONFIGS["basic"])
    for parameter in method.parameters():
        parameter.data.fill_(0.5)
        parameter.grad.zero_()
    SparsityLearning(method.model, reg=0.01).regularize()
    norm = method.model.backbone.model.embedder.embedder.normalization
    torch.testing.assert_close(norm.weight.grad, torch.full((4,), 0.01 * 0.5))
    assert all(torch.isfinite(parameter.grad).all() for parameter in method.parameters())


def test_frozen_weights_are_passed_over_and_biases_left_alone():
    method = with_gradients(CONFIGS["bottleneck"])
    stem = method.model.backbone.model.embedder.embedder
    stem.convolution.weight.grad = None
    before = stem.normalization.bias.grad.clone()
    SparsityLearning(method.model, method.classifier).regularize()
    assert stem.convolution.weight.grad is None
    assert torch.equal(stem.normalization.bias.grad, before)


def test_callback_regularises_before_the_step_and_refuses_scaled_gradients():
    method = with_gradients(CONFIGS["basic"])
    twin = copy.deepcopy(method)
    for parameter, other in zip(method.parameters(), twin.parameters(), strict=True):
        other.grad = parameter.grad.clone()
    SparsityLearning(method.model, reg=0.1).regularize()
    SparsityLearning(twin.model, reg=0.1).on_pre_optimizer_step(SimpleNamespace(fp16=False), None, None)
    for parameter, other in zip(method.parameters(), twin.parameters(), strict=True):
        assert torch.equal(parameter.grad, other.grad)
    with pytest.raises(ValueError, match="use bf16"):
        SparsityLearning(twin.model).on_pre_optimizer_step(SimpleNamespace(fp16=True), None, None)


def test_classifier_of_channels_that_nothing_declares_is_refused():
    model = ReIDModel(resnet([4, 6], neck="none"))
    with pytest.raises(ValueError, match="leave it out"):
        SparsityLearning(model, nn.Linear(24, 3))
