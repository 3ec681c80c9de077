"""Alignments against singular value decomposition, loops by hand, worked examples and identities."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from reid_hub.methods.kdep import Basis, Moments, make_alignment, power_temperature_scale
from reid_hub.methods.kdep.alignment import nearest_channels, negative_mean

N, D = 400, 12


def features(count: int = N, dim: int = D, seed: int = 0) -> torch.Tensor:
    """Correlated features of very unequal variances, far from zero."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(count, dim, generator=generator, dtype=torch.float64) * 2.0 ** -torch.arange(dim)
    return mixed @ torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))[0] + 5


def basis_of(x: torch.Tensor) -> Basis:
    moments = Moments(x.shape[1])
    moments.add(x)
    return Basis.from_moments(moments)


@pytest.fixture(scope="module")
def x():
    return features()


@pytest.fixture(scope="module")
def basis(x):
    return basis_of(x)


def aligned(name, x, basis, dim=D, **options):
    return make_alignment(name, x.shape[1], dim, basis=basis, **options)(x)


def test_full_rank_is_an_isometry(x, basis):
    z = aligned("svd", x, basis)
    assert (torch.pdist(z) - torch.pdist(x)).abs().max() < 1e-8
    assert (basis.vectors.T @ basis.vectors - torch.eye(D)).abs().max() < 1e-12


@pytest.mark.parametrize("dim", [1, 5, 11])
def test_fewer_dimensions_never_lengthen_and_lose_the_energy_of_the_tail(x, basis, dim):
    z = aligned("svd", x, basis, dim)
    assert (torch.pdist(z) <= torch.pdist(x) + 1e-9).all()
    back = z @ basis.vectors[:, :dim].T + x.mean(0)
    # S of numpy's own decomposition, not of the eigenvectors that the basis was made with
    tail = (np.linalg.svd((x - x.mean(0)).numpy(), compute_uv=False)[dim:] ** 2).sum()
    assert float((x - back).square().sum()) == pytest.approx(tail, rel=1e-9)


def test_components_are_uncorrelated_centred_and_decrease(x, basis):
    z = aligned("svd", x, basis)
    assert z.mean(0).abs().max() < 1e-10
    covariance = np.cov(z.numpy().T, bias=True)
    expected = (np.linalg.svd((x - x.mean(0)).numpy(), compute_uv=False) / N**0.5) ** 2
    assert np.allclose(covariance, np.diag(expected), atol=1e-12)
    assert (basis.singular_values.diff() <= 0).all()


def test_covariance_route_equals_the_svd_route(x, basis):
    _, s, vt = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    assert torch.allclose(basis.singular_values, s, rtol=1e-7)
    for dim in (3, 8):
        cosines = torch.linalg.svdvals(vt[:dim] @ basis.vectors[:, :dim])
        assert torch.acos(cosines.clamp(max=1)).max() < 1e-6
        ours = aligned("svd+pts", x, basis, dim)
        theirs = power_temperature_scale((x - x.mean(0)) @ vt[:dim].T)
        signs = (ours[0].sign() * theirs[0].sign())[None]
        assert torch.allclose(ours, theirs * signs, atol=1e-4)  # the slope at 0 is infinite
        assert torch.allclose(ours**3, (theirs * signs) ** 3, rtol=1e-6, atol=1e-9)


def test_pts_by_hand():
    z = torch.tensor([[-0.8, 0.0, 0.1, 2.7]], dtype=torch.float64)
    expected = [[-((0.8 / 0.1) ** (1 / 3)), 0.0, 1.0, 27 ** (1 / 3)]]
    assert power_temperature_scale(z).tolist()[0] == pytest.approx(expected[0])
    assert torch.equal(power_temperature_scale(z, temperature=1, power=1), z)
    for options in ({"temperature": 0.0}, {"temperature": -1}, {"power": 0.5}, {"temperature": float("nan")}):
        with pytest.raises(ValueError, match="temperature must be above 0"):
            power_temperature_scale(z, **options)


def test_pts_is_odd_monotone_homogeneous_and_keeps_the_order():
    z = torch.randn(50, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = power_temperature_scale(z)
    assert torch.equal(power_temperature_scale(-z), -y)
    assert (power_temperature_scale(z.flatten().sort().values).diff() > 0).all()
    assert torch.equal(y.abs().argsort(1), z.abs().argsort(1))
    # T is a gain: PTS_T = T^(-1/n) PTS_1
    assert torch.allclose(y, 0.1 ** (-1 / 3) * power_temperature_scale(z, temperature=1))
    assert torch.allclose(power_temperature_scale(7 * z), 7 ** (1 / 3) * y)


@pytest.mark.parametrize("power", [2, 3])
def test_pts_takes_the_root_of_the_ratio_of_two_standard_deviations(power):
    """Exactly, where both channels have one shape."""
    shape = torch.randn(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    y = power_temperature_scale(torch.stack([50 * shape, shape], 1), 0.03, power)
    first, second = y.std(0)
    assert float(first / second) == pytest.approx(50 ** (1 / power))


def test_sn_and_sm_of_the_published_example():
    """sigma = (50, 5, 1), tau = (4, 3, 2), z = (10, 2, 2) -> SN (0.2, 0.4, 2), SM (0.8, 1.2, 4)."""

    class Known(Basis):
        channel_stds = torch.tensor([2.0, 4.0, 3.0], dtype=torch.float64)  # in the order of the channels

    sigma = torch.tensor([50.0, 5.0, 1.0], dtype=torch.float64)
    basis = Known(torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64), sigma * 10, 100)
    z = torch.tensor([[10.0, 2.0, 2.0]], dtype=torch.float64)
    assert aligned("sn", z, basis, 3).tolist()[0] == pytest.approx([0.2, 0.4, 2])
    assert aligned("sm", z, basis, 3).tolist()[0] == pytest.approx([0.8, 1.2, 4])


def test_sn_and_sm_have_the_standard_deviations_they_promise(x, basis):
    sn, sm = (aligned(name, x, basis, 7) for name in ("sn", "sm"))
    assert np.allclose(sn.numpy().std(0), 1)
    assert np.allclose(sm.numpy().std(0), np.sort(x.numpy().std(0))[::-1][:7])


def test_constant_components_are_refused_where_they_would_be_divided_by(x):
    flat = torch.cat([x[:, :4], x[:, :2] * 3 + 1], 1)  # two of six dimensions hold nothing new
    basis = basis_of(flat)
    for name in ("sn", "sm"):
        with pytest.raises(ValueError, match=r"2 of the first 6 components .* constant.*at most 4 channels"):
            make_alignment(name, 6, 6, basis=basis)
        assert aligned(name, flat, basis, 4).isfinite().all()
    assert aligned("svd+pts", flat, basis, 6).isfinite().all()


def test_nearest_interpolation_takes_the_published_channels():
    assert nearest_channels(2048, 512).tolist() == list(range(0, 2048, 4))
    assert nearest_channels(2048, 1280).tolist() == [int(np.floor(1.6 * k + 1e-9)) for k in range(1280)]
    for wide, narrow in ((2048, 512), (2048, 1280), (1024, 512), (512, 128), (7, 7)):
        ramp = torch.arange(wide, dtype=torch.float32)[None, None]
        assert F.interpolate(ramp, narrow, mode="nearest")[0, 0].long().equal(nearest_channels(wide, narrow))


def test_selections_hand_over_channels_as_they_are(x, basis):
    order = np.argsort(-x.numpy().var(0), kind="stable")[:5]
    assert torch.equal(aligned("cs.var", x, basis, 5), x[:, order.copy()])
    drawn = aligned("cs.rand", x, None, 5, seed=3)
    assert torch.equal(drawn, aligned("cs.rand", x, None, 5, seed=3))
    assert not torch.equal(drawn, aligned("cs.rand", x, None, 5, seed=4))
    columns = [int((x == drawn[:, [k]]).all(0).nonzero()) for k in range(5)]
    assert columns == sorted(set(columns))
    assert torch.equal(aligned("interp", x, None, 6), x[:, ::2])


def test_flipping_directions_flips_the_targets_and_nothing_else(x, basis):
    signs = torch.tensor([1.0, -1.0] * 3, dtype=torch.float64)
    flipped = Basis(basis.vectors.clone(), basis.mean, basis.singular_values, basis.count)
    flipped.vectors[:, :6] *= signs
    align, other = (make_alignment("svd+pts", D, 6, basis=each) for each in (basis, flipped))
    assert torch.equal(other(x), align(x) * signs)
    student = torch.randn(N, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert other.distance(student * signs, other(x)) == align.distance(student, align(x))


def test_component_domination():
    """Theorem 1: of independent normal numbers E(T - S)^2 = s^2 + s_s^2; large components rule the loss."""
    generator, before = torch.Generator().manual_seed(0), 0.0
    for std in (0.5, 1.0, 3.0):
        teacher = std * torch.randn(1_000_000, generator=generator)
        student = 0.7 * torch.randn(1_000_000, generator=generator)
        found = float((teacher - student).square().mean())
        assert found == pytest.approx(std**2 + 0.7**2, rel=0.01)
        assert found > before
        before = found


def test_distance_is_the_mean_over_batch_and_channels(x, basis):
    align, target = make_alignment("svd", D, 4, basis=basis), torch.randn(6, 4, dtype=torch.float64)
    student = torch.randn(6, 4, dtype=torch.float64)
    by_hand = sum((student[b, k] - target[b, k]) ** 2 for b in range(6) for k in range(4)) / 24
    assert align.distance(student, target) == pytest.approx(float(by_hand))
    assert align.distance(target, target) == 0
    assert align.distance(2 * student, 2 * target) == pytest.approx(4 * float(by_hand))
    order = torch.randperm(6)
    assert align.distance(student[order], target[order]) == pytest.approx(float(by_hand))


def test_margin_is_the_mean_of_the_negative_part():
    generator = torch.Generator().manual_seed(0)
    mean, std = torch.tensor([0.3, -1.0, 1.0, 20.0]), torch.tensor([1.0, 0.5, 0.6, 2.0])
    drawn = mean + std * torch.randn(400_000, 4, generator=generator)
    for channel in range(3):
        values = drawn[:, channel]
        assert float(negative_mean(mean, std)[channel]) == pytest.approx(float(values[values < 0].mean()), rel=0.01)
    assert float(negative_mean(mean, std)[3]) == -6.0  # never negative


def test_overhaul_lets_a_student_below_a_silent_teacher_be(x, basis):
    align = make_alignment("overhaul", D, 4, basis=basis)
    target = align(torch.tensor([[-9.0, 1.0] * 6], dtype=torch.float64))
    assert torch.equal(target[0, ::2], align.margin[::2])
    assert (target[0, 1::2] == 1).all()
    student = torch.stack([align.margin - 1, torch.full((D,), 3.0, dtype=torch.float64)])
    by_hand = 0.0
    for row in student:
        for s, t in zip(row.tolist(), target[0].tolist(), strict=True):
            by_hand += 0 if s <= t <= 0 else (s - t) ** 2
    assert float(align.distance(student, target.expand(2, -1))) == pytest.approx(by_hand / (2 * D))


def test_regression_convolves_the_map_and_then_averages():
    align, fmap = make_alignment("pre-relu", D, 4), torch.randn(5, 4, 3, 2)
    convolution, norm = align.adaptor
    mapped = torch.einsum("bchw,dc->bdhw", fmap, convolution.weight[:, :, 0, 0])
    mean, var = mapped.mean((0, 2, 3), keepdim=True), mapped.var((0, 2, 3), keepdim=True, unbiased=False)
    expected = ((mapped - mean) / (var + norm.eps).sqrt()).mean((2, 3))
    assert torch.allclose(align.compared(None, fmap), expected, atol=1e-5)


def test_what_does_not_fit_is_refused(basis):
    with pytest.raises(ValueError, match=r"student's feature has 13 channels, the teacher's only 12"):
        make_alignment("svd+pts", D, 13, basis=basis)
    assert make_alignment("pre-relu", D, 13).adaptor[0].weight.shape == (D, 13, 1, 1)
    with pytest.raises(ValueError, match="needs a basis"):
        make_alignment("sn", D, 4)
    with pytest.raises(ValueError, match="basis has 12 dimensions, the teacher's feature 16"):
        make_alignment("svd", 16, 4, basis=basis)
    with pytest.raises(ValueError, match="did you mean 'svd"):
        make_alignment("svd-pts", D, 4, basis=basis)
    assert not make_alignment("svd+pts", D, 4, basis=basis).state_dict()  # nothing for a checkpoint
