import numpy as np
import pytest
import torch

from reid_hub.index import backends as backends_module


@pytest.mark.parametrize("dim", [3, 512, 1040, 1041, 2500])
def test_integer_products_are_exact_at_their_extremes_fast_or_not(dim, monkeypatch):
    random = np.random.default_rng(dim)
    codes = random.integers(-127, 128, (70, dim), dtype=np.int8)
    codes[:3] = 127
    codes[3:6] = -127
    expected = codes[:9].astype(object) @ codes.astype(object).T
    assert (backends_module.integer_products(codes[:9], codes) == expected).all()
    monkeypatch.setattr(backends_module, "_int8_product_is_exact_and_fast", lambda: False)
    assert (backends_module.integer_products(codes[:9], codes) == expected).all()


def test_an_inexact_int8_product_is_not_used(monkeypatch):
    """Processors without 32-bit accumulation saturate pairs of products at 16 bits."""

    def saturating(a, b):
        a, b = a.int(), b.int()
        pairs = a[:, None, 0::2] * b.T[None, :, 0::2] + a[:, None, 1::2] * b.T[None, :, 1::2]
        return pairs.clamp(-(2**15), 2**15 - 1).sum(2, dtype=torch.int32)

    check = backends_module._int8_product_is_exact_and_fast.__wrapped__
    monkeypatch.setattr(torch, "_int_mm", saturating)
    assert not check()
    monkeypatch.delattr(torch, "_int_mm")
    assert not check()
