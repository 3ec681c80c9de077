"""MSINet's interactions, cell and two-part vector against slow forms written from the formulas."""

import math

import pytest
import torch
import torch.nn.functional as F

from reid_hub import ReIDConfig, ReIDModel
from reid_hub.methods import METHODS
from reid_hub.models.backbone_msinet import INTERACTIONS, Cell, MSINetConfig
from reid_hub.training import RECIPES, build_optimizer

TINY = {"backbone_config": {"model_type": "reid_msinet", "channels": [16, 64, 80, 96]}, "image_size": (64, 32)}


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def random_(module: torch.nn.Module) -> torch.nn.Module:
    """Random weights, gains, offsets and statistics, frozen; evaluation mode."""
    for tensor in module.parameters():
        torch.nn.init.normal_(tensor, std=0.4 / math.sqrt(tensor[0].numel() if tensor.ndim > 1 else 1))
    for name, buffer in module.named_buffers():
        if buffer.is_floating_point():
            torch.nn.init.uniform_(buffer, 0.5, 1.5) if name.endswith("var") else torch.nn.init.normal_(buffer)
    return module.eval().requires_grad_(False)


def tiny_model(**overrides) -> ReIDModel:
    return random_(ReIDModel(ReIDConfig.from_variant("msinet-x0.25", **TINY, **overrides)))


def loop_attention(a: torch.Tensor, b: torch.Tensor, gamma: float) -> torch.Tensor:
    """a + gamma * P a, position by position: channel i of a looks away from the channels of b that it resembles."""
    out = a.clone()
    for n in range(len(a)):
        for i in range(a.shape[1]):
            energies = [sum(float(p * q) for p, q in zip(a[n, i].flatten(), b[n, j].flatten(), strict=True))
                        for j in range(b.shape[1])]  # fmt: skip
            weights = [math.exp(max(energies) - energy) for energy in energies]
            for j, weight in enumerate(weights):
                out[n, i] += gamma * weight / sum(weights) * a[n, j]
    return out


def loop_gate(x: torch.Tensor, gate) -> torch.Tensor:
    out = torch.empty_like(x)
    for n, picture in enumerate(x):
        means = [channel.sum() / channel.numel() for channel in picture]
        hidden = [max(0.0, float(bias + sum(w * m for w, m in zip(row.flatten(), means, strict=True))))
                  for row, bias in zip(gate.fc1.weight, gate.fc1.bias, strict=True)]  # fmt: skip
        for c, (row, bias) in enumerate(zip(gate.fc2.weight, gate.fc2.bias, strict=True)):
            logit = float(bias + sum(w * h for w, h in zip(row.flatten(), hidden, strict=True)))
            out[n, c] = picture[c] / (1 + math.exp(-logit))
    return out


def slow_interaction(module, name: str, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if name == "gate":
        return loop_gate(a, module), loop_gate(b, module)
    if name == "cross_attention":
        return loop_attention(a, b, float(module.gamma)), loop_attention(b, a, float(module.gamma))
    return {"none": (a, b), "exchange": (b, a)}[name]


def slow_norm(x: torch.Tensor, bn) -> torch.Tensor:
    scale = bn.weight / (bn.running_var + 1e-5).sqrt()
    return x * scale[:, None, None] + (bn.bias - bn.running_mean * scale)[:, None, None]


def slow_layer(x: torch.Tensor, layer, relu: bool = True) -> torch.Tensor:
    x = slow_norm(torch.einsum("oc,nchw->nohw", layer.conv.weight[:, :, 0, 0], x), layer.bn)
    return x.clamp(min=0) if relu else x


def slow_lite(x: torch.Tensor, layer) -> torch.Tensor:
    """The depthwise convolution as nine shifted copies."""
    x = F.pad(torch.einsum("oc,nchw->nohw", layer.conv1.weight[:, :, 0, 0], x), (1, 1, 1, 1))
    height, width = x.shape[2] - 2, x.shape[3] - 2
    shifted = sum(
        layer.conv2.weight[:, 0, dy, dx, None, None] * x[:, :, dy : dy + height, dx : dx + width]
        for dy in range(3)
        for dx in range(3)
    )
    return slow_norm(shifted, layer.bn).clamp(min=0)


@pytest.mark.parametrize("name", INTERACTIONS)
def test_interaction_equals_the_loop(name):
    module = random_(INTERACTIONS[name](32))
    a, b = torch.randn(2, 2, 32, 3, 2)
    for got, expected in zip(module(a, b), slow_interaction(module, name, a, b), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_cross_attention_starts_as_the_identity_and_can_learn():
    module = INTERACTIONS["cross_attention"](6)
    a, b = torch.randn(2, 2, 6, 3, 2)
    for got, expected in zip(module(a, b), (a, b), strict=True):
        assert torch.equal(got, expected)
    (module(a, b)[0] * torch.randn_like(a)).sum().backward()
    assert module.gamma.grad.abs() > 1e-3


@pytest.mark.parametrize("pair", [("gate", "gate"), ("exchange", "cross_attention"), ("cross_attention", "none")])
@pytest.mark.parametrize("c_in", [24, 64], ids=["downsample", "identity"])
def test_cell_equals_the_slow_form(pair, c_in):
    cell = random_(Cell(c_in, 64, *pair))
    x = torch.rand(2, c_in, 4, 2)
    a, b = slow_layer(x, cell.conv1a), slow_layer(x, cell.conv1b)
    for level, name in zip((2, 3), pair, strict=True):
        a = slow_lite(a, getattr(cell, f"conv{level}a"))
        for layer in getattr(cell, f"conv{level}b"):
            b = slow_lite(b, layer)
        a, b = slow_interaction(getattr(cell, f"_op{level}"), name, a, b)
    shortcut = x if c_in == 64 else slow_layer(x, cell.downsample, relu=False)
    out = slow_layer(a, cell.conv4a, relu=False) + slow_layer(b, cell.conv4b, relu=False) + shortcut
    torch.testing.assert_close(cell(x), out.clamp(min=0), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("height", [64, 80])  # 4 and 5 rows: the odd one belongs to the lower half
def test_vector_is_the_global_mean_beside_the_means_of_two_stripes(height):
    model = tiny_model()
    seen = {}
    for number in (5, 7):
        model.backbone.cells[number].register_forward_hook(lambda _, __, out, number=number: seen.update({number: out}))
    with torch.no_grad():
        output = model(torch.randn(2, 3, height, 32))
    assert output.feature_map is seen[7]
    early, conv = seen[5], model.pooling.f_conv
    for n in range(2):
        vector = [seen[7][n, c].mean() for c in range(96)]
        rows = range(early.shape[2])
        for half in (list(rows)[: len(rows) // 2], list(rows)[len(rows) // 2 :]):
            cells = [conv.weight[:, :, 0, 0] @ early[n, :, y, x] + conv.bias for y in half for x in range(2)]
            vector += sum(cells) / len(cells)
        torch.testing.assert_close(output.features[n], torch.stack(list(vector)), rtol=1e-11, atol=1e-11)
    assert torch.equal(output.embeddings, output.features)  # retrieve="features"
    assert model.part_dims == (96, 256)


def test_each_part_has_a_neck_of_its_own():
    model = tiny_model(retrieve="neck")
    with torch.no_grad():
        output = model(torch.randn(3, 3, 64, 32))
    for number, (start, end) in enumerate([(0, 96), (96, 352)]):
        norm, x = model.neck.norm[number], output.features[:, start:end]
        x = torch.stack([model.neck.fc[number].weight @ row for row in x])
        expected = (x - norm.running_mean) / (norm.running_var + 1e-5).sqrt() * norm.weight
        torch.testing.assert_close(output.embeddings[:, start:end], expected, rtol=1e-11, atol=1e-11)


def test_other_models_have_one_part():
    linear = {"head": "linear", "embedding_dim": 24}
    assert ReIDModel(ReIDConfig.from_variant("res50-s1")).part_dims == (256,)
    assert ReIDModel(ReIDConfig.from_variant("res50-s1", **linear)).part_dims == (24,)
    assert tiny_model(**linear).part_dims == (24,)
    assert tiny_model(pooling="avg").part_dims == (96,)


def test_evaluation_repeats_itself_and_a_built_model_starts_as_published():
    model = ReIDModel(ReIDConfig.from_variant("msinet-x0.25", **TINY)).eval()
    pixels = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        assert torch.equal(model(pixels).embeddings, model(pixels).embeddings)
    state = model.state_dict()
    assert all(tensor.item() == 0 for name, tensor in state.items() if name.endswith("gamma"))
    assert sum(name.endswith("gamma") for name in state) == 3
    assert state["neck.fc.1.weight"].std().item() == pytest.approx(0.01, rel=0.02)
    assert state["pooling.f_conv.weight"].std().item() == pytest.approx((2 / 128) ** 0.5, rel=0.05)
    assert (state["neck.norm.0.weight"] == 1).all()
    assert (state["pooling.f_conv.bias"] == 0).all()


def test_one_step_of_the_recipe_moves_every_parameter():
    recipe = RECIPES["msinet"]
    model = ReIDModel(ReIDConfig.from_variant("msinet-x0.25", **TINY)).train()
    method = METHODS[recipe.method](model, 4, **recipe.options)
    for name, parameter in model.named_parameters():
        if name.endswith("fc1.bias"):
            torch.nn.init.constant_(parameter, 8)  # a gate this narrow may start with its only hidden unit off
    options = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay, "options": recipe.optimizer_options}
    optimizer = build_optimizer(method, recipe.optimizer, **options)
    before = {name: parameter.detach().clone() for name, parameter in method.named_parameters()}
    outputs = method({"pixel_values": torch.randn(8, 3, 64, 32), "pids": torch.arange(4).repeat_interleave(2)})
    outputs["loss"].backward()
    optimizer.step()
    assert set(outputs) == {"loss", "identity", "triplet"}
    for name, parameter in method.named_parameters():
        assert parameter.grad.abs().max() > 1e-12, name  # weight decay alone would move it too
        assert not torch.equal(parameter, before[name]), name


def test_wrong_configurations_are_refused():
    with pytest.raises(ValueError, match="six pairs"):
        MSINetConfig(genotype=[["gate", "gate"]])
    with pytest.raises(ValueError, match=r"must be made of none, .* got \['gates'\]"):
        MSINetConfig(genotype=[["gate", "gates"]] * 6)
    with pytest.raises(ValueError, match="needs the maps of several stages"):
        ReIDModel(ReIDConfig.from_variant("timm/vit_tiny_patch16_224", pooling="global_stripes"))
    with pytest.raises(ValueError, match="at least 2 rows"):
        tiny_model()(torch.randn(1, 3, 16, 16))
