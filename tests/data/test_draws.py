import numpy as np
import pytest
import torch
from scipy import stats

from reid_hub.data.draws import Draws

MASK = (1 << 64) - 1


def splitmix(z):
    """splitmix64's finaliser as published, in unbounded integers."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return z ^ (z >> 31)


def bits_by_hand(seed, step, index, position, number):
    state = splitmix(splitmix((splitmix(seed & MASK) + step) & MASK))
    state = splitmix((splitmix((state + index) & MASK) + position) & MASK)
    return splitmix((state + (number + 1) * 0x9E3779B97F4A7C15) & MASK) >> 40


def test_splitmix_as_published():
    # The first outputs of the reference generator (Vigna's splitmix64.c) seeded with 1234567.
    golden, expected = 0x9E3779B97F4A7C15, [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [splitmix((1234567 + (k + 1) * golden) & MASK) for k in range(3)] == expected


@pytest.mark.parametrize(("seed", "step"), [(0, 0), (42, 123456), (2**63 + 5, 7), (-3, 2**40)])
def test_draws_are_the_hash_of_their_counters(seed, step):
    indices = torch.tensor([5, 0, 5, 2_000_000])
    draws = Draws(indices, seed, step, 6)
    bits = [[bits_by_hand(seed, step, int(i), p, n) for n in range(6)] for p, i in enumerate(indices)]
    assert draws.uniform(slice(0, 6)).tolist() == [[b / 2**24 for b in row] for row in bits]
    assert draws.below(3, 21).tolist() == [row[3] * 21 >> 24 for row in bits]
    bounds = torch.tensor([1, 2, 300, 4])
    assert draws.below(1, bounds).tolist() == [row[1] * b >> 24 for row, b in zip(bits, bounds.tolist(), strict=True)]
    assert draws[2:].uniform(4).tolist() == [row[4] / 2**24 for row in bits[2:]]
    assert draws.between(0, -10, 10).tolist() == pytest.approx([row[0] / 2**24 * 20 - 10 for row in bits], abs=1e-5)


def counters():
    """Draws along each counter alone, the others held: what a weak hash would correlate."""
    zeros = torch.zeros(4096, dtype=torch.long)
    yield "position", Draws(zeros, 1, 2, 8).uniform(slice(0, 8))
    yield "number", Draws(zeros[:8], 1, 2, 4096).uniform(slice(0, 4096)).T
    yield "index", torch.cat([Draws(torch.tensor([i]), 1, 2, 8).uniform(slice(0, 8)) for i in range(4096)])
    yield "step", torch.cat([Draws(zeros[:1], 1, step, 8).uniform(slice(0, 8)) for step in range(4096)])
    yield "seed", torch.cat([Draws(zeros[:1], seed, 2, 8).uniform(slice(0, 8)) for seed in range(4096)])


@pytest.mark.parametrize(
    ("counter", "uniforms"), list(counters()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_draws_are_uniform_and_independent(counter, uniforms):
    values = uniforms.double().numpy()
    assert values.min() >= 0
    assert values.max() < 1
    assert stats.kstest(values.ravel(), "uniform").pvalue > 1e-3
    # neighbours along the counter, and the columns among each other: 4.5 standard errors of a correlation of 4096
    limit = 4.5 / np.sqrt(4096)
    neighbours = [np.corrcoef(column[:-1], column[1:])[0, 1] for column in values.T]
    among = np.corrcoef(values.T)[np.triu_indices(8, 1)]
    assert np.abs(neighbours).max() < limit
    assert np.abs(among).max() < limit
    # pairs of neighbours fill the square evenly
    cells = np.histogram2d(values[:-1].ravel(), values[1:].ravel(), bins=16)[0].ravel()
    assert stats.chisquare(cells).pvalue > 1e-3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
def test_draws_are_the_same_on_the_gpu():
    indices = torch.arange(0, 2**40, 2**33)
    cpu, gpu = Draws(indices, 9, 8, 200), Draws(indices.cuda(), 9, 8, 200)
    assert torch.equal(cpu.uniform(slice(0, 200)), gpu.uniform(slice(0, 200)).cpu())
    assert torch.equal(cpu.below(7, 513), gpu.below(7, 513).cpu())
