"""Counter-based random numbers: the same on every device, worker and rank, and after resuming."""

from copy import copy

import torch
from torch import Tensor

# 24 random bits make a float32 in [0, 1) exactly, and their products with small integers stay exact in int64.
_BITS = 24


class Draws:
    """The random numbers of a batch, `count` per image.

    Each is a hash of (seed, step, index, position in the batch, number of the draw), with splitmix64's finaliser
    (Steele et al., "Fast splittable pseudorandom number generators", 2014) as the mixing step.

    Args:
        indices: (B,) int64 rows of the data set, on the device where the numbers are needed.
        by_position: False ignores the position in the batch.
    """

    def __init__(self, indices: Tensor, seed: int, step: int, count: int, by_position: bool = True):
        key = _mix(_mix(torch.tensor(_signed(seed))) + _signed(step))
        position = torch.arange(len(indices), device=indices.device) * by_position
        state = _mix(_mix(_mix(key).item() + indices.long()) + position)
        counter = torch.arange(1, count + 1, device=indices.device) * _GOLDEN
        self._bits = _shift_right(_mix(state[:, None] + counter), 64 - _BITS)

    def __getitem__(self, part: slice) -> "Draws":
        """The random numbers of a part of the batch."""
        draws = copy(self)
        draws._bits = self._bits[part]
        return draws

    def uniform(self, number: int | slice) -> Tensor:
        """float32 in [0, 1): (B,), or (B, n) for a slice of n draws."""
        return self._bits[:, number].float() / (1 << _BITS)

    def between(self, number: int | slice, low: float, high: float) -> Tensor:
        """float32 from `low` to `high`, shaped as `uniform`."""
        return self.uniform(number) * (high - low) + low

    def below(self, number: int | slice, bound: int | Tensor) -> Tensor:
        """int64 in 0 .. bound - 1, shaped as `uniform`; bounds up to 2**39, exact to 1 in 2**24 of the range."""
        return self._bits[:, number] * bound >> _BITS


def _signed(value: int) -> int:
    """The int64 with the lowest 64 bits of `value`."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


_GOLDEN = _signed(0x9E3779B97F4A7C15)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's >> is arithmetic."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift_right(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift_right(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shift_right(z, 31)
