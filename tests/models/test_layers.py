"""Pooling and neck against loops and against PyTorch's own batch norm."""

import pytest
import torch
from torch import nn

from reid_hub.models.neck import BNNeck
from reid_hub.models.pooling import AveragePool, ClsPool, GeMPool, MaxPool, StabilisedMaxPool


def test_stabilised_max_is_the_largest_window_average():
    feature_map = torch.randn(2, 3, 7, 6, dtype=torch.float64)
    slow = torch.full((2, 3), -torch.inf, dtype=torch.float64)
    for y in range(7 - 4 + 1):
        for x in range(6 - 4 + 1):
            slow = torch.maximum(slow, feature_map[:, :, y : y + 4, x : x + 4].mean((2, 3)))
    torch.testing.assert_close(StabilisedMaxPool(window=4)(feature_map), slow)


def test_stabilised_max_limits():
    feature_map = torch.randn(2, 3, 8, 8)
    assert torch.equal(StabilisedMaxPool(window=1)(feature_map), MaxPool()(feature_map))
    assert (StabilisedMaxPool(window=4)(feature_map) <= MaxPool()(feature_map)).all()
    torch.testing.assert_close(StabilisedMaxPool(window=4)(torch.full((1, 2, 5, 5), 3.0)), torch.full((1, 2), 3.0))
    pool = StabilisedMaxPool(window=4)
    torch.testing.assert_close(pool(feature_map.flip(3)), pool(feature_map))
    with pytest.raises(ValueError, match="at least 4x4, got 3x8"):
        StabilisedMaxPool(window=4)(torch.randn(1, 2, 3, 8))


def test_gem_lies_between_average_and_maximum():
    feature_map = torch.rand(2, 3, 5, 4) + 0.1
    torch.testing.assert_close(GeMPool(p=1.0)(feature_map), AveragePool()(feature_map))
    torch.testing.assert_close(
        GeMPool(p=400.0)(feature_map.double()), MaxPool()(feature_map.double()), atol=2e-2, rtol=0
    )


def test_tokens_pool_like_maps():
    feature_map = torch.randn(2, 3, 5, 4)
    tokens = feature_map.flatten(2).transpose(1, 2)
    torch.testing.assert_close(AveragePool()(tokens), AveragePool()(feature_map))
    assert torch.equal(MaxPool()(tokens), MaxPool()(feature_map))
    assert torch.equal(ClsPool()(tokens), feature_map[:, :, 0, 0])


def test_bnneck_is_batch_norm_with_its_bias_frozen_at_zero():
    neck, reference = BNNeck(5), nn.BatchNorm1d(5)
    reference.bias.requires_grad_(False)
    with torch.no_grad():
        neck.weight.copy_(torch.rand(5))
        reference.weight.copy_(neck.weight)
    for _ in range(3):
        batch = torch.randn(8, 5)
        torch.testing.assert_close(neck(batch), reference(batch))
    before = {name: buffer.clone() for name, buffer in neck.named_buffers()}
    for name, buffer in before.items():
        torch.testing.assert_close(buffer, reference.get_buffer(name))
    torch.testing.assert_close(neck.eval()(batch), reference.eval()(batch))
    assert all(torch.equal(buffer, before[name]) for name, buffer in neck.named_buffers())
