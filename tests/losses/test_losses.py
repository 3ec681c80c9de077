"""Every loss against the published formula written as a loop, in float64, and at its limits."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from reid_hub.losses import (
    METRIC_LOSSES,
    batch_hard_triplet_loss,
    center_loss,
    circle_loss,
    identity_loss,
    move_centers,
)

PIDS = torch.tensor([0, 0, 0, 1, 1, 1, 4, 4, 4, 2, 2, 2])


@pytest.fixture
def features():
    return torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


def distance(a, b):
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(a.tolist(), b.tolist(), strict=True)))


def cosine(a, b):
    a, b = a.tolist(), b.tolist()
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


def loop_triplet(features, pids, hinge, hard_factor):
    total = 0.0
    for a in range(len(pids)):
        positives = [distance(features[a], features[j]) for j in range(len(pids)) if pids[j] == pids[a]]
        negatives = [distance(features[a], features[j]) for j in range(len(pids)) if pids[j] != pids[a]]
        total += hinge(max(positives) * (1 + hard_factor) - min(negatives) * (1 - hard_factor))
    return total / len(pids)


def loop_circle(features, pids, m, gamma):
    total = 0.0
    for a in range(len(pids)):
        positives = [cosine(features[a], features[j]) for j in range(len(pids)) if j != a and pids[j] == pids[a]]
        negatives = [cosine(features[a], features[j]) for j in range(len(pids)) if pids[j] != pids[a]]
        sum_p = sum(math.exp(-gamma * max(1 + m - s, 0) * (s - (1 - m))) for s in positives)
        sum_n = sum(math.exp(gamma * max(s + m, 0) * (s - m)) for s in negatives)
        total += math.log(1 + sum_n * sum_p)
    return total / len(pids)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_identity_loss_is_cross_entropy_with_the_smoothed_target(smoothing):
    logits = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pids = torch.tensor([0, 3, 1, 1, 2, 0])
    target = torch.full((6, 4), smoothing / 4, dtype=torch.float64)
    target[range(6), pids] += 1 - smoothing
    expected = -(target * (logits - logits.exp().sum(1, keepdim=True).log())).sum(1).mean()
    assert identity_loss(logits, pids, smoothing).item() == pytest.approx(expected.item(), rel=1e-12)


def test_identity_loss_of_even_logits_is_the_log_of_the_number_of_identities():
    assert identity_loss(torch.zeros(3, 7), torch.tensor([0, 5, 6]), 0.1).item() == pytest.approx(math.log(7))


@pytest.mark.parametrize("hard_factor", [0.0, 0.2])
@pytest.mark.parametrize("margin", [0.3, 0.0, None])
def test_triplet_equals_the_loop(features, margin, hard_factor):
    def hinge(gap):
        return math.log(1 + math.exp(gap)) if margin is None else max(gap + margin, 0)

    loss = batch_hard_triplet_loss(features, PIDS, margin=margin, hard_factor=hard_factor)
    assert loss.item() == pytest.approx(loop_triplet(features, PIDS, hinge, hard_factor), rel=1e-12)


def test_triplet_worked_example_on_a_line():
    features, pids = torch.tensor([[0.0], [1.0], [3.0], [7.0]]), torch.tensor([0, 0, 1, 1])
    # anchor 0: 1 - 3, anchor 1: 1 - 2, anchor 3: 4 - 2, anchor 7: 4 - 6; with margin 1 only the third is positive.
    assert batch_hard_triplet_loss(features, pids, margin=1.0).item() == pytest.approx(3 / 4, rel=1e-5)


def test_normalised_triplet_does_not_depend_on_the_length_of_the_vectors(features):
    scaled = features * torch.linspace(0.1, 9, 12, dtype=torch.float64)[:, None]
    first, second = (batch_hard_triplet_loss(f, PIDS, normalise=True) for f in (features, scaled))
    assert first.item() == pytest.approx(second.item(), rel=1e-12)
    unit = features / features.norm(dim=1, keepdim=True)
    assert first.item() == pytest.approx(batch_hard_triplet_loss(unit, PIDS).item(), rel=1e-12)


def test_soft_margin_of_equal_distances_is_log_two():
    assert batch_hard_triplet_loss(torch.eye(4), torch.tensor([0, 0, 1, 1]), margin=None).item() == pytest.approx(
        math.log(2), rel=1e-6
    )


def test_circle_equals_the_loop(features):
    loss = circle_loss(features, PIDS, margin=0.4, gamma=2)
    assert loss.item() == pytest.approx(loop_circle(features, PIDS, 0.4, 2), rel=1e-12)


def test_circle_vanishes_for_separated_identities_and_not_for_mixed_ones():
    features = torch.eye(2, dtype=torch.float64).repeat_interleave(2, 0)
    assert circle_loss(features, torch.tensor([0, 0, 1, 1])).item() < 1e-3
    assert circle_loss(features, torch.tensor([0, 1, 0, 1])).item() > 10


@pytest.mark.parametrize("loss", [partial(fn) for fn in METRIC_LOSSES.values()] + [
    partial(batch_hard_triplet_loss, margin=None), partial(batch_hard_triplet_loss, hard_factor=0.2, normalise=True),
    partial(circle_loss, gamma=4.0),
])  # fmt: skip
def test_metric_losses_ignore_the_order_of_the_batch_and_the_names_of_identities(features, loss):
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    renamed = torch.tensor([10, 30, 50, 20, 40])[PIDS]
    assert loss(features[order], renamed[order]).item() == pytest.approx(loss(features, PIDS).item(), rel=1e-12)


@pytest.mark.parametrize("loss", [
    partial(batch_hard_triplet_loss, margin=5.0, hard_factor=0.2), partial(batch_hard_triplet_loss, margin=None),
    partial(batch_hard_triplet_loss, normalise=True, margin=5.0),
])  # fmt: skip
def test_triplet_gradients_by_finite_differences(features, loss):
    assert torch.autograd.gradcheck(lambda f: loss(f, PIDS), features.requires_grad_())


def test_circle_gradient_holds_the_weights_constant(features):
    m, gamma = 0.25, 8.0
    features.requires_grad_()
    circle_loss(features, PIDS, margin=m, gamma=gamma).backward()
    unit = nn.functional.normalize(features.detach(), dim=1)
    frozen = unit @ unit.T
    same, own = PIDS[:, None] == PIDS[None], torch.eye(12, dtype=torch.bool)

    def with_frozen_weights(f):
        f = nn.functional.normalize(f, dim=1)
        s = f @ f.T
        p = ((-gamma * (1 + m - frozen).clamp(min=0) * (s - 1 + m)).exp() * (same & ~own)).sum(1)
        n = ((gamma * (frozen + m).clamp(min=0) * (s - m)).exp() * ~same).sum(1)
        return (1 + n * p).log().mean()

    step, gradient = 1e-6, torch.zeros_like(features)
    for index in range(features.numel()):
        shift = torch.zeros(features.numel(), dtype=torch.float64)
        shift[index] = step
        shift = shift.view_as(features)
        base = features.detach()
        gradient.view(-1)[index] = (with_frozen_weights(base + shift) - with_frozen_weights(base - shift)) / (2 * step)
    torch.testing.assert_close(features.grad, gradient, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", METRIC_LOSSES)
@pytest.mark.parametrize("pids", [torch.zeros(4, dtype=torch.long), torch.arange(4)], ids=["one", "all different"])
def test_degenerate_batches_give_finite_losses_and_gradients(name, pids):
    features = torch.randn(4, 3, requires_grad=True)
    loss = METRIC_LOSSES[name](features, pids)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(features.grad).all()
    if name == "circle" or len(set(pids.tolist())) == 1:
        assert loss.item() == 0


def test_identical_images_of_an_identity_give_finite_gradients():
    features = torch.ones(4, 3).mul(torch.tensor([1.0, 1.0, 2.0, 2.0])[:, None]).requires_grad_()
    batch_hard_triplet_loss(features, torch.tensor([0, 0, 1, 1]), margin=9.0).backward()
    assert torch.isfinite(features.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_are_compared_in_float32(dtype):
    # Squares of 300 leave the range of float16, and differences of 1 at 300 leave the precision of bfloat16.
    features = (torch.randn(12, 64, generator=torch.Generator().manual_seed(3)) + 300).to(dtype)
    centers = torch.full((5, 64), 300.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = [fn(features, PIDS) for fn in METRIC_LOSSES.values()] + [center_loss(features, centers, PIDS)]
        losses.append(identity_loss(features, PIDS, 0.1))
    exact = features.double()
    expected = [fn(exact, PIDS) for fn in METRIC_LOSSES.values()] + [center_loss(exact, centers.double(), PIDS)]
    expected.append(identity_loss(exact, PIDS, 0.1))
    for loss, reference in zip(losses, expected, strict=True):
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(reference.item(), rel=2e-2)


def test_center_loss_equals_the_loop(features):
    centers = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    expected = sum(distance(f, centers[p]) ** 2 for f, p in zip(features, PIDS, strict=True)) / 12
    assert center_loss(features, centers, PIDS).item() == pytest.approx(expected, rel=1e-12)


def test_center_loss_worked_example_and_floor():
    centers = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    features = torch.tensor([[3.0, 4.0], [1.0, 1.0]], dtype=torch.float64)
    assert center_loss(features, centers, torch.tensor([0, 1])).item() == pytest.approx((25 + 1e-12) / 2, rel=1e-15)


def test_centers_move_as_under_the_published_second_optimiser(features):
    centers = nn.Parameter(torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(9)))
    optimiser, moved = torch.optim.SGD([centers], lr=0.5), centers.detach().clone()
    for step in range(20):
        batch = features * (1 + step)
        batch[3] = moved[PIDS[3]]  # an image exactly on its center: the clamped distance gives it no pull
        optimiser.zero_grad()
        (5e-4 * center_loss(batch, centers, PIDS)).backward()
        centers.grad.mul_(1 / 5e-4)  # as published: the loss is weighted, the centers' gradient is not
        optimiser.step()
        moved = move_centers(batch, moved, PIDS)
        torch.testing.assert_close(moved, centers.detach(), rtol=1e-13, atol=1e-13)
    assert torch.equal(moved[3], centers.detach()[3])  # no image of identity 3: it stays


def test_centers_of_float32_equal_sgd_bit_for_bit(features):
    features, centers = features.float()[:8], nn.Parameter(torch.zeros(5, 5))
    optimiser = torch.optim.SGD([centers], lr=0.5)
    center_loss(features, centers, PIDS[:8]).backward()
    before = centers.detach().clone()
    optimiser.step()
    assert torch.equal(move_centers(features, before, PIDS[:8]), centers.detach())
    assert torch.equal(before, torch.zeros(5, 5))  # what was given is left alone
