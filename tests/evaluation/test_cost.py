import pytest
import torch
from torch import nn
from torch.nn import functional as F

from reid_hub.evaluation.cost import measure_cost
from reid_hub.models import ReIDConfig, ReIDModel


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Attention(nn.Module):
    """Two tokens of 8 numbers per image column, one head, by torch's own function or by hand."""

    def __init__(self, fused):
        super().__init__()
        self.qkv = nn.Linear(3, 24, bias=False)
        self.fused = fused

    def forward(self, images):
        tokens = images.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens)[:, None].chunk(3, -1)
        mixed = F.scaled_dot_product_attention(q, k, v) if self.fused else (q @ k.transpose(-1, -2)).softmax(-1) @ v
        return mixed[:, 0].mean(1)


def test_layers_counted_by_hand():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),  # 8x4 outputs of 3 * 9 products, 8 filters
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 5, padding=2, groups=4),  # 2 * 25 products
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )
    cost = measure_cost(model, (16, 8), repeats=1)
    assert cost.macs == 32 * 8 * 27 + 32 * 8 * 50 + 80
    assert cost.attention_macs == 0
    assert cost.parameters == 3 * 8 * 9 + 2 * 8 + (8 * 2 * 25 + 8) + (80 + 10)
    assert cost.bytes_per_vector == 40
    assert cost.image_size == [16, 8]


def test_layer_that_runs_twice_counts_twice_and_frozen_parameters_count():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, images):
            return self.fc(self.fc(images.mean((2, 3))))

    model = Twice()
    model.fc.bias.requires_grad_(False)
    cost = measure_cost(model, (4, 4), repeats=1)
    assert cost.macs == 2 * 9
    assert cost.parameters == 12


@pytest.mark.parametrize("fused", [True, False])
def test_attention_products_are_counted_beside_the_layers(fused):
    cost = measure_cost(Attention(fused), (4, 2), repeats=1)
    assert cost.macs == 8 * 3 * 24
    assert cost.attention_macs == 2 * 8 * 8 * 8  # q k' and (softmax) v over 8 tokens of 8 numbers


@pytest.mark.parametrize(
    ("variant", "overrides", "parameters", "macs", "size"),
    [
        # specs: published figures of torchreid's OSNet, with the 512-d FC
        ("osnet-x1.0", {}, 2_169_508, 978_875_392, 2048),
        ("osnet-x0.25", {}, 201_864, 82_314_880, 2048),
        # ResNet-50 at last stride 1 has 23,508,032 parameters; its BNNeck adds a gain per channel
        ("res50", {"last_stride": 1}, 23_508_032 + 2048, 4_053_270_528, 8192),
    ],
)
def test_published_models_cost_what_was_published(variant, overrides, parameters, macs, size):
    model = ReIDModel(ReIDConfig.from_variant(variant, **overrides))
    cost = measure_cost(model, repeats=1)
    assert cost.parameters == parameters
    assert cost.macs == macs
    assert cost.bytes_per_vector == size
    assert cost.image_size == [256, 128]


def test_latency_is_the_median_in_milliseconds(monkeypatch):
    clock = iter([0, 9, 0, 9, 0, 9, 0, 0.004, 0, 0.002, 0, 5.0])  # three warm-up rounds, then 4 ms, 2 ms, 5 s
    monkeypatch.setattr("reid_hub.evaluation.cost.time.perf_counter", lambda: next(clock))
    cost = measure_cost(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), (4, 4), repeats=3)
    assert cost.latency_ms == 4
    assert cost.latency_threads == 1
    assert cost.latency_device


def test_model_is_left_as_it_was_found():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measure_cost(model, (8, 8), repeats=1)
    assert [module.training for module in model] == [True, False, True, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model[0]._forward_hooks
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_bytes_follow_the_stored_type():
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 6))
    assert measure_cost(model, (4, 4), repeats=1, dtype=torch.float16).bytes_per_vector == 12


def test_wrong_arguments_are_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 6))
    with pytest.raises(ValueError, match="image_size must be"):
        measure_cost(model)
    with pytest.raises(ValueError, match="repeats must be at least 1"):
        measure_cost(model, (4, 4), repeats=0)
