"""Codes: against numpy's rounding, loops by hand, and the invariants of arXiv:2405.14730."""

import numpy as np
import pytest
import torch
from transformers import AutoModel

from reid_hub import ReIDConfig, ReIDModel
from reid_hub.models.codes import Binary, int8_codes, vector_scale
from reid_hub.models.quantization import Quantizer

TINY = {
    "backbone_config": {
        "model_type": "resnet", "embedding_size": 4, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic",
    },
    "image_size": (32, 16),
}  # fmt: skip


def vectors(rows=64, dim=24, seed=0, spread=3.0):
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)) * spread


def trained(granularity="tensor", batches=3, dim=24):
    quantizer = Quantizer(dim, "int8", granularity).train()
    for seed in range(batches):
        quantizer(vectors(dim=dim, seed=seed))
    return quantizer.eval()


def by_hand(value: float, scale: float) -> int:
    """Round to the nearest integer, halves to the even one, and clamp; Python's own round does the halves."""
    return max(-127, min(127, round(np.float32(value) / np.float32(scale))))


def test_codes_are_rounded_half_to_even_and_clamped():
    scale = 0.5
    values = [0.25, 0.75, -0.25, -0.75, 1.2, 63.5, 64.0, 1e6, -1e6, 0.0]
    assert int8_codes(torch.tensor([values]), scale)[0].tolist() == [by_hand(v, scale) for v in values]
    assert [by_hand(v, scale) for v in values[:4]] == [0, 2, 0, -2]


@pytest.mark.parametrize("granularity", ["tensor", "dimension", "vector"])
def test_stored_codes_decode_to_what_training_saw_bit_for_bit(granularity, tmp_path):
    quantizer, batch = trained(granularity), vectors(seed=9)
    quantizer.train()
    seen = quantizer(batch.clone().requires_grad_())
    quantizer.eval()
    np.save(tmp_path / "codes.npy", int8_codes(batch, quantizer.scale(batch)).numpy())
    codes = np.load(tmp_path / "codes.npy")
    assert codes.dtype == np.int8
    assert codes.min() >= -127
    scale = quantizer.scale(batch).numpy()
    np.testing.assert_array_equal(codes.astype(np.float32) * scale, seen.detach().numpy())
    pairs = np.stack(np.broadcast_arrays(batch.numpy(), scale), -1)
    assert codes.tolist() == [[by_hand(*pair) for pair in row] for row in pairs]


@pytest.mark.parametrize("granularity", ["tensor", "dimension", "vector"])
def test_quantising_twice_changes_nothing_and_signs_are_symmetric(granularity):
    quantizer, batch = trained(granularity), vectors(seed=7)
    once = quantizer(batch)
    torch.testing.assert_close(quantizer(once), once, rtol=1e-6, atol=0)  # a vector's own scale is found anew
    assert torch.equal(quantizer(-batch), -once)
    inside = batch.abs() <= quantizer.scale(batch) * 127
    assert ((once - batch).abs() / quantizer.scale(batch))[inside].max() <= 0.5 + 1e-4


def test_gradient_passes_unchanged_also_where_codes_clip():
    quantizer = trained()
    batch = (vectors() * 10).requires_grad_()
    assert (int8_codes(batch.detach(), quantizer.scale(batch.detach())).abs() == 127).float().mean() > 0.1
    gradient = vectors(seed=5)
    quantizer(batch).backward(gradient)
    assert torch.equal(batch.grad, gradient)


def test_scale_is_the_running_maximum_and_evaluation_does_not_move_it():
    quantizer = Quantizer(24, "int8").train()
    peak = mean = None
    for seed in range(4):
        batch = vectors(seed=seed)
        top, centre = batch.abs().max().item(), batch.mean(0)
        peak = top if peak is None else 0.99 * peak + 0.01 * top
        mean = centre if mean is None else 0.99 * mean + 0.01 * centre
        quantizer(batch)
    assert quantizer.scale(batch).item() == pytest.approx(peak / 127, rel=1e-6)
    torch.testing.assert_close(quantizer.center, mean)
    before = {name: buffer.clone() for name, buffer in quantizer.named_buffers()}
    quantizer.eval()(vectors(seed=8) * 100)
    assert all(torch.equal(buffer, before[name]) for name, buffer in quantizer.named_buffers())


def test_one_scale_per_dimension_is_that_of_its_column():
    quantizer, batch = Quantizer(24, "int8", "dimension").train(), vectors()
    quantizer(batch)
    torch.testing.assert_close(quantizer.scale(batch), batch.abs().amax(0) / 127)


def test_ranking_by_integers_is_that_of_the_decoded_vectors():
    quantizer, batch = trained(), vectors(rows=80)
    codes = int8_codes(batch, quantizer.scale(batch)).numpy().astype(np.int64)
    decoded = quantizer(batch).numpy().astype(np.float64)
    integers = ((codes[:1] - codes) ** 2).sum(1)
    floats = ((decoded[:1] - decoded) ** 2).sum(1)
    scale = float(quantizer.scale(batch))
    np.testing.assert_allclose(integers * scale**2, floats, rtol=1e-6)
    ranked = floats[np.argsort(integers, kind="stable")]
    assert (np.diff(ranked) > -(scale**2) / 2).all()  # different integers are at least scale^2 apart
    assert len(set(integers)) > 40


def test_zero_vectors_have_zero_codes():
    zeros = torch.zeros(2, 24)
    assert not int8_codes(zeros, vector_scale(zeros)).any()
    quantizer = Quantizer(24, "int8").train()
    assert torch.equal(quantizer(zeros), zeros)


def test_bits_say_which_coordinates_are_above_the_centre():
    batch, center = vectors(rows=3, dim=11), torch.linspace(-1, 1, 11)
    codes = Binary(11, center.numpy()).encode(batch)
    assert codes.shape == (3, 2)
    for row, code in zip(batch, codes, strict=True):
        bits = "".join(f"{byte:08b}" for byte in code)
        assert bits == "".join("1" if v > c else "0" for v, c in zip(row, center, strict=True)) + "00000"


def test_quantiser_without_int8_has_no_scale():
    with pytest.raises(ValueError, match="not trained or calibrated for int8"):
        Quantizer(4).scale(torch.zeros(1, 4))


# In the model


def compressed(**changes):
    torch.manual_seed(0)
    fields = {"compression": "slice", "compressed_dim": 6, "quantization": "int8", **changes}
    return ReIDModel(ReIDConfig(**{**TINY, **fields}))


def pictures(count=5, seed=0):
    return list(np.random.default_rng(seed).integers(0, 255, (count, 32, 16, 3), dtype=np.uint8))


def pixels(count=8, seed=0):
    return torch.randn(count, 3, 32, 16, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("flip", [False, True])
def test_encoded_codes_decode_to_the_embeddings(flip):
    model = compressed()
    model.train()(pixels())
    codes, floats = (model.encode(pictures(), precision=p, flip=flip) for p in ("int8", "float32"))
    assert codes.dtype == np.int8
    scale = model.eval().quantizer.scale(torch.zeros(1)).numpy()
    np.testing.assert_array_equal(codes * scale, floats)


def test_encoded_codes_are_those_of_the_training_forward():
    """In evaluation mode of everything but the quantiser, whose statistics this batch then does not move."""
    model = compressed()
    model.train()(pixels())
    model.eval()
    model.quantizer.train()
    model.quantizer.momentum = 1.0
    with torch.no_grad():
        seen = model(pixels(seed=3)).embeddings
    model.quantizer.eval()
    codes = model.codes(model(pixels(seed=3), quantized=False).embeddings, "int8")
    np.testing.assert_array_equal(codes * model.quantizer.scale(seen).numpy(), seen.numpy())


def test_a_vector_does_not_depend_on_its_batch():
    model = compressed()
    model.train()(pixels())
    together = model.encode(pictures(), precision="int8")
    alone = np.concatenate([model.encode([picture], precision="int8") for picture in pictures()])
    assert np.abs(together.astype(int) - alone).max() <= 1  # the convolutions' last bits may move a tie


def test_scale_travels_with_the_checkpoint(tmp_path):
    model = compressed(quantization_granularity="dimension")
    model.train()(pixels())
    model.eval().save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.quantizer.peak, model.quantizer.peak)
    np.testing.assert_array_equal(
        loaded.encode(pictures(), precision="int8"), model.encode(pictures(), precision="int8")
    )
    assert loaded.fingerprint() == model.fingerprint()


def test_a_model_without_a_scale_gives_every_vector_its_own():
    torch.manual_seed(0)
    model = ReIDModel(ReIDConfig(**TINY)).eval()
    codes, floats = (model.encode(pictures(), precision=p) for p in ("int8", "float32"))
    assert (np.abs(codes).max(1) == 127).all()
    for code, row in zip(codes, floats, strict=True):
        assert code.tolist() == [by_hand(value, np.abs(row).max() / np.float32(127)) for value in row]


@pytest.mark.parametrize("precision", ["float32", "int8", "binary"])
def test_no_pictures_give_no_rows_of_the_right_kind(precision):
    model = compressed()
    model.train()(pixels())
    empty, some = model.encode([], precision=precision), model.encode(pictures(2), precision=precision)
    assert (len(empty), empty.shape[1:], empty.dtype) == (0, some.shape[1:], some.dtype)


def test_bits_are_centred_on_what_training_saw():
    torch.manual_seed(0)
    model = ReIDModel(ReIDConfig(**TINY, retrieve="features"))  # features behind a ReLU are never negative
    for seed in range(60):
        model.train()(pixels(seed=seed))
    with torch.no_grad():
        batch = model.eval()(pixels(64, seed=99)).embeddings
    bits = np.unpackbits(model.codes(batch, "binary"), axis=1)[:, : model.embedding_dim]
    assert (bits == (batch > model.neck.running_mean).numpy()).all()
    assert 0.2 < bits.mean() < 0.8


def test_a_scale_that_nothing_has_taught_makes_no_codes():
    with pytest.raises(ValueError, match="no int8 scale yet"):
        compressed().encode(pictures(), precision="int8")
