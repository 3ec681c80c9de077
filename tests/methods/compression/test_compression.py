"""Heads and their training against slicing by hand, dense layers, and the invariants of the specification."""

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.decomposition import TruncatedSVD

from reid_hub import ReIDConfig, ReIDModel
from reid_hub.data.batch import Batch
from reid_hub.losses import batch_hard_triplet_loss
from reid_hub.methods import CompressionMethod, SupervisedMethod
from reid_hub.methods.compression import (
    compress_model,
    fit_quantizer,
    importance,
    ladder,
    most_important,
    narrow,
    principal_directions,
    project_model,
    random_directions,
)
from reid_hub.methods.compression.models import footnote_map
from reid_hub.training import RECIPES

TINY = {
    "backbone_config": {
        "model_type": "resnet", "embedding_size": 4, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic",
    },
    "image_size": (32, 16),
}  # fmt: skip
PIDS = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])


def base(retrieve="features", seed=0):
    """A model whose neck has seen something."""
    torch.manual_seed(seed)
    model = ReIDModel(ReIDConfig(**TINY, retrieve=retrieve)).train()
    with torch.no_grad():
        model.neck.weight.uniform_(0.5, 1.5)
        for batch in range(4):
            model(pixels(seed=10 + batch))
    return model


def pixels(count=8, seed=1):
    return torch.randn(count, 3, 32, 16, generator=torch.Generator().manual_seed(seed))


def embeddings(rows=200, dim=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, dim, generator=generator) @ torch.randn(dim, dim, generator=generator) + 1.0


# Equal to slicing, equal to nothing


@pytest.mark.parametrize("retrieve", ["features", "neck"])
def test_footnote_low_rank_is_slicing_bit_for_bit(retrieve):
    model = base(retrieve)
    low, cut = compress_model(model, "low_rank", 5), compress_model(model, "slice", 5)
    with torch.no_grad():
        low.compression.weight.copy_(footnote_map(16, 5))
    assert torch.equal(low.eval().embed(pixels()), cut.eval().embed(pixels()))
    assert torch.equal(cut.embed(pixels()), model.eval()(pixels()).embeddings[:, :5])


def test_footnote_low_rank_trains_like_slicing():
    """Shared columns: equal logits, equal gradients of the first k classifier columns, zeros behind them."""
    model = base()
    low = CompressionMethod(compress_model(model, "low_rank", 5), 4, metric=None)
    cut = CompressionMethod(compress_model(model, "slice", 5), 4, metric=None)
    low.start_map("slice")
    with torch.no_grad():
        low.classifier.weight[:, :5].copy_(cut.classifier.weight)
    losses = [method(Batch(pixel_values=pixels(), pids=PIDS))["loss"] for method in (low, cut)]
    torch.testing.assert_close(*losses, rtol=1e-6, atol=1e-6)
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(low.classifier.weight.grad[:, :5], cut.classifier.weight.grad)
    assert not low.classifier.weight.grad[:, 5:].any()


@pytest.mark.parametrize("kind", ["slice", "pruned", "low_rank"])
@pytest.mark.parametrize("retrieve", ["features", "neck"])
def test_at_full_length_every_head_is_the_base(kind, retrieve):
    model = base(retrieve)
    full = compress_model(model, kind, 16)
    if kind == "low_rank":
        with torch.no_grad():
            full.compression.weight.copy_(torch.eye(16))
    assert torch.equal(full.eval().embed(pixels()), model.eval()(pixels()).embeddings)


def test_features_model_trains_as_the_published_baseline():
    """Slicing nothing off: cross-entropy on classifier(BN(e)) and the soft-margin triplet on e, as without a head."""
    options = {"label_smoothing": 0.0, "metric": "triplet", "metric_options": {"margin": None}}
    assert dict(RECIPES["transreid"].options) == options
    model = base()
    plain = SupervisedMethod(copy.deepcopy(model), 4, **options)
    whole = CompressionMethod(compress_model(model, "slice", 16), 4, **options)
    with torch.no_grad():
        whole.classifier.weight.copy_(plain.classifier.weight)
        whole.norm.weight.copy_(model.neck.weight)
    torch.testing.assert_close(
        whole(Batch(pixel_values=pixels(), pids=PIDS)), plain(Batch(pixel_values=pixels(), pids=PIDS))
    )


def test_soft_margin_triplet_of_equal_distances_is_log_two():
    corners = torch.eye(8)
    assert batch_hard_triplet_loss(corners, PIDS, margin=None).item() == pytest.approx(math.log(2), rel=1e-6)


# Losses


def test_low_rank_losses_are_on_z_and_on_its_expansion():
    model = compress_model(base(), "low_rank", 5)
    method = CompressionMethod(model, 4, label_smoothing=0.0, metric_options={"margin": None})
    outputs = method(Batch(pixel_values=pixels(), pids=PIDS))
    z = model(pixels(), quantized=False).embeddings
    wide = z @ method.expand.weight.T
    logits = F.batch_norm(wide, None, None, method.norm.weight, None, True) @ method.classifier.weight.T
    torch.testing.assert_close(outputs["identity"], F.cross_entropy(logits, PIDS))
    torch.testing.assert_close(outputs["triplet"], batch_hard_triplet_loss(z, PIDS, margin=None))
    extra = model.compression.weight.numel() + method.expand.weight.numel()
    assert extra == 2 * 16 * 5  # 1536 k of an embedding of 768


def test_gradient_of_what_is_sliced_off_is_zero():
    model = base("neck")  # the last thing in front of the slice has one weight per coordinate, as a final LayerNorm
    CompressionMethod(compress_model(model, "slice", 5), 4)
    method = CompressionMethod(compress_model(model, "slice", 5), 4, metric=None)
    method(Batch(pixel_values=pixels(), pids=PIDS))["loss"].backward()
    gradient = method.model.neck.weight.grad
    assert gradient[:5].all()
    assert not gradient[5:].any()


def test_quantised_vectors_meet_the_losses():
    model = compress_model(base(), "slice", 5, quantization="int8")
    method = CompressionMethod(model, 4, label_smoothing=0.0, metric_options={"margin": None})
    outputs = method(Batch(pixel_values=pixels(), pids=PIDS))
    model.quantizer.momentum = 1.0  # the second look at the batch then has the scale of the first
    codes = model.codes(model(pixels(), quantized=False).embeddings.detach(), "int8")
    decoded = torch.from_numpy(codes).float() * model.quantizer.scale(torch.zeros(1))
    torch.testing.assert_close(outputs["triplet"], batch_hard_triplet_loss(decoded, PIDS, margin=None))
    logits = F.batch_norm(decoded, None, None, method.norm.weight, None, True) @ method.classifier.weight.T
    torch.testing.assert_close(outputs["identity"], F.cross_entropy(logits, PIDS))


def test_matryoshka_is_the_mean_over_its_lengths():
    model = compress_model(base(), "slice", 16)
    method = CompressionMethod(model, 4, prefixes=(8, 4), label_smoothing=0.0, metric_options={"margin": None})
    total = method(Batch(pixel_values=pixels(), pids=PIDS))["loss"]
    z, losses = model(pixels()).embeddings, []
    heads = [(16, method.norm, method.classifier), (8, method.prefix_norms[0], method.prefix_classifiers[0])]
    heads.append((4, method.prefix_norms[1], method.prefix_classifiers[1]))
    for size, norm, classifier in heads:
        normed = F.batch_norm(z[:, :size], None, None, norm.weight, None, True)
        triplet = batch_hard_triplet_loss(z[:, :size], PIDS, margin=None)
        losses.append(F.cross_entropy(classifier(normed), PIDS) + triplet)
    torch.testing.assert_close(total, sum(losses) / 3)
    with pytest.raises(ValueError, match="from 1 to 15"):
        CompressionMethod(model, 4, prefixes=(16,))


# Where training starts


@pytest.mark.parametrize("retrieve", ["features", "neck"])
@pytest.mark.parametrize("kind", ["slice", "pruned"])
def test_logits_right_after_cutting_are_those_of_the_base_with_zeros(kind, retrieve):
    model = base(retrieve)
    trained = SupervisedMethod(model, 4, metric=None)
    with torch.no_grad():
        trained.classifier.weight.normal_(generator=torch.Generator().manual_seed(3))
    cut = compress_model(model, kind, 6)
    if kind == "pruned":
        cut.compression.kept.copy_(torch.tensor([1, 4, 5, 9, 12, 15]))
    kept = cut.compression.kept if kind == "pruned" else torch.arange(6)
    method = CompressionMethod(cut, 4, metric=None)
    assert method.start_classifier(trained.training_state(), model) == ["norm", "classifier.weight"]
    for module in (model, method):
        module.eval()
    neck = model.neck(model(pixels()).features)
    zeroed = torch.zeros_like(neck)
    zeroed[:, kept] = neck[:, kept]
    logits = method.classifier(method.norm(cut(pixels()).embeddings))
    torch.testing.assert_close(logits, trained.classifier(zeroed), rtol=1e-4, atol=1e-4)


def test_pruning_again_keeps_norm_and_classifier_of_the_survivors():
    first = compress_model(base(), "pruned", 8)
    first.compression.kept.copy_(torch.tensor([0, 2, 3, 5, 8, 9, 11, 14]))
    method = CompressionMethod(first, 4, metric=None)
    with torch.no_grad():
        method.norm.weight.uniform_(0.5, 1.5)
        method.norm.running_mean.normal_()
    second = narrow(first, torch.tensor([1, 4, 6]))
    assert second.compression.kept.tolist() == [2, 8, 11]
    again = CompressionMethod(second, 4, metric=None)
    again.start_classifier(method.training_state(), first)
    for name in ("weight", "running_mean", "running_var"):
        assert torch.equal(getattr(again.norm, name), getattr(method.norm, name)[[1, 4, 6]])
    assert torch.equal(again.classifier.weight, method.classifier.weight[:, [1, 4, 6]])


def test_low_rank_from_principal_directions_starts_as_that_baseline():
    model = base("neck")
    with torch.no_grad():
        seen = torch.cat([model.eval()(pixels(seed=seed)).embeddings for seed in range(30)])
    method = CompressionMethod(compress_model(model, "low_rank", 4), 4)
    method.start_map("pca", seen)
    baseline = project_model(model, principal_directions(seen, 4))
    assert torch.equal(method.export().eval().embed(pixels()), baseline.eval().embed(pixels()))
    assert torch.equal(method.expand.weight, method.model.compression.weight.T)


# Pruning


def test_importance_is_the_length_of_a_column_and_variance_ignores_constants():
    batch = embeddings()
    batch[:, 3] = 100.0
    slow = [math.sqrt(sum(value.item() ** 2 for value in column)) for column in batch.T]
    np.testing.assert_allclose(importance(batch), slow, rtol=1e-6)
    assert importance(batch).argmax() == 3
    assert importance(batch, "variance")[3] == 0
    np.testing.assert_allclose(importance(batch, "variance"), batch.double().numpy().var(0), atol=1e-9)


def test_kept_sets_are_the_largest_nested_and_move_with_the_coordinates():
    scores = importance(embeddings())
    sets = [set(most_important(scores, k).tolist()) for k in (12, 8, 5, 1)]
    assert all(small < large for large, small in pairwise(sets))
    for kept, k in zip(sets, (12, 8, 5, 1), strict=True):
        assert len(kept) == k
        assert min(scores[list(kept)]) >= max([s for i, s in enumerate(scores.tolist()) if i not in kept])
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    moved = most_important(importance(embeddings()[:, order]), 5)
    assert set(order[moved].tolist()) == sets[2]
    assert most_important(torch.tensor([1.0, 2.0, 2.0, 2.0]), 2).tolist() == [1, 2]


def test_pruning_in_steps_without_training_is_pruning_at_once():
    model, batch = compress_model(base(), "pruned", 16), embeddings()
    once = narrow(model, most_important(importance(batch), 4))
    steps = model
    for dim in (12, 7, 4):
        steps = narrow(steps, most_important(importance(batch[:, steps.compression.kept]), dim))
    assert torch.equal(steps.compression.kept, once.compression.kept)


def test_narrowing_carries_the_quantiser():
    model = compress_model(base(), "pruned", 16, quantization="int8", granularity="dimension")
    fit_quantizer(model, embeddings())
    kept = torch.tensor([1, 5, 7])
    small = narrow(model, kept)
    assert torch.equal(small.quantizer.peak, model.quantizer.peak[kept])
    assert torch.equal(small.eval().embed(pixels()), model.eval().embed(pixels())[:, kept])
    with pytest.raises(ValueError, match="the first coordinates"):
        narrow(compress_model(base(), "slice", 16), kept)


def test_ladder_is_the_published_one_and_scales():
    assert ladder(768) == [576, 480, 384, 192, 64, 32]
    assert ladder(2048) == [1536, 1280, 1024, 512, 171, 85]
    assert ladder(4) == [3, 2, 1]
    assert sum([0.2] * ladder(768).index(64) + [0.2]) == pytest.approx(1.0)  # the paper's "doubles", down to 64


# Controls


def test_principal_directions_are_those_of_a_singular_value_decomposition():
    batch = embeddings()
    svd = TruncatedSVD(5, algorithm="arpack").fit(batch.double().numpy())
    found = principal_directions(batch, 5)
    overlaps = np.abs((found.numpy() * svd.components_).sum(1))
    np.testing.assert_allclose(overlaps, 1, atol=1e-6)
    np.testing.assert_allclose(found @ found.T, np.eye(5), atol=1e-9)


def test_all_principal_directions_keep_distances_and_cosines():
    batch = embeddings(rows=30).double()
    turned = batch @ principal_directions(batch, 16).T
    torch.testing.assert_close(torch.pdist(turned), torch.pdist(batch))
    torch.testing.assert_close(turned @ turned.T, batch @ batch.T)


def test_random_directions_keep_lengths_on_average():
    batch = embeddings(rows=400, dim=64).double() - 1
    ratios = [(batch @ random_directions(64, 16, seed).T).square().sum() / batch.square().sum() for seed in range(40)]
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.1)
    assert torch.equal(random_directions(64, 16, 3), random_directions(64, 16, 3))


def test_quantisation_after_training_uses_the_largest_value():
    model, batch = compress_model(base(), "low_rank", 4, quantization="int8"), embeddings()
    fit_quantizer(model, batch)
    with torch.no_grad():
        z = batch @ model.compression.weight.T
    assert float(model.quantizer.scale(z)) == pytest.approx(z.abs().max().item() / 127, rel=1e-5)
    torch.testing.assert_close(model.center, z.mean(0))


# Bad input


def test_what_does_not_fit_is_refused():
    model = base()
    with pytest.raises(ValueError, match="between 1 and 16"):
        compress_model(model, "slice", 17)
    with pytest.raises(ValueError, match="did you mean 'low_rank'"):
        compress_model(model, "lowrank", 4)
    with pytest.raises(ValueError, match="compressed already"):
        compress_model(compress_model(model, "slice", 8), "slice", 4)
    with pytest.raises(ValueError, match="not compressed"):
        CompressionMethod(model, 4)
    with pytest.raises(ValueError, match="expand the model first"):
        compress_model(model, "slice", 8).width_groups()
    with pytest.raises(ValueError, match="neck must be 'none'"):
        ReIDConfig(**TINY, retrieve="features", compression="slice", compressed_dim=4)
    with pytest.raises(ValueError, match="codes needs a name beside quantization: one of slice, low_rank, pruned"):
        ReIDConfig(**TINY, quantization="int8")
