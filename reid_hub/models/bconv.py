"""BConv cells (Progressive Transfer Learning, arXiv:1908.02492): gated convolutions with a memory across batches."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import FanInConv2d


class Cell(nn.Module):
    """Base class of the cells, (B, c_in, h, w) -> (B, c_out, ceil(h / stride), ceil(w / stride)); manages the memory.

    The memory has one slot per position of the largest batch so far. Each sample reads the detached state left by the
    sample at the same position of the previous batch. A shorter batch leaves the remaining slots unchanged, a longer
    one adds slots of zeros, and a change of image size resets the memory to zeros. Only training reads and writes it.

    Args:
        remembers: whether to carry state between batches; if False, every batch starts from zeros.
        batch_mean: every sample reads the mean state of the previous batch (an ablation).

    Attributes:
        states: number of tensors in the memory.
        slots: the memory, `states` tensors (slots, c_out, h', w'), or an empty list. Not a buffer on purpose:
            DistributedDataParallel would overwrite the buffers of every process with those of the first, even
            non-persistent ones, and from_pretrained would leave them unset. The tensors are never modified in place, so
            callers may keep references to them.
    """

    states = 0

    def __init__(self, c_in: int, c_out: int, stride: int = 1, remembers: bool = True, batch_mean: bool = False):
        super().__init__()
        self.c_in, self.c_out, self.stride = c_in, c_out, stride
        self.remembers, self.batch_mean = remembers, batch_mean
        self.slots: list[Tensor] = []

    def recall(self, x: Tensor) -> list[Tensor]:
        """Return the states that the batch `x` (B, c_in, h, w) reads, (B, c_out, h', w') each, at least float32."""
        shape = [len(x), self.c_out, *((size - 1) // self.stride + 1 for size in x.shape[2:])]
        zeros = torch.zeros(shape, device=x.device, dtype=_at_least_float32(x.dtype))
        if not (self.training and self.remembers and self.slots) or self.slots[0].shape[2:] != zeros.shape[2:]:
            return [zeros] * self.states
        if self.batch_mean:
            return [_usable(slots, zeros).expand(shape) for slots in self.slots]
        known = [_usable(slots[: len(x)], zeros) for slots in self.slots]
        return [torch.cat([slots, zeros[len(slots) :]]) if len(slots) < len(x) else slots for slots in known]

    def keep(self, *states: Tensor) -> None:
        """Store the states of this batch, (B, c_out, h', w') each."""
        if not (self.training and self.remembers):
            return
        kept = [state.detach() for state in states]
        if self.batch_mean:
            kept = [state.mean(0, keepdim=True) for state in kept]
        elif self.slots and self.slots[0].shape[2:] == kept[0].shape[2:] and len(self.slots[0]) > len(kept[0]):
            kept = [torch.cat([new, old[len(new) :].to(new)]) for new, old in zip(kept, self.slots, strict=True)]
        self.slots = kept


class BConvCell(Cell):
    """LSTM gates with a cell state that is carried from batch to batch (paper, eq. 1).

    Unlike in a ConvLSTM, neither the state nor the output is convolved again. The published code uses no bias.

    Raises:
        ValueError: for an option that only version 2 has.
    """

    states = 1

    def __init__(self, c_in: int, c_out: int, stride: int = 1, bias: bool = False, **memory):
        super().__init__(c_in, c_out, stride, **memory)
        self.gates = _gates(c_in, c_out, stride, bias)

    def forward(self, x: Tensor) -> Tensor:
        (state,) = self.recall(x)
        gates = self.gates(x)
        state, output = gated(gates, state)
        self.keep(state)
        return output.to(gates.dtype)


class BConvCell2(Cell):
    """Version 2: the gates also read the outputs of earlier batches, through a transposed convolution.

    The paper shows it only as a figure. Our interpretation: the outputs are aggregated over batches, h = (h + y) / 2;
    a transposed convolution resizes the aggregate to the input's size, without bias so that an empty history stays
    zero; the input concatenated with it goes through the gates of version 1.

    Args:
        aggregate: "mean" as above, "last" (only the last output, as in a ConvLSTM) or "conv" (a 1x1 convolution of
            both).
    """

    # The state, the aggregate of all outputs but the last, and the last output. Aggregation is delayed by one batch so
    # that an aggregating convolution receives gradients even though the memory is detached.
    states = 3

    def __init__(
        self, c_in: int, c_out: int, stride: int = 1, bias: bool = False, aggregate: str = "mean", **memory
    ):  # fmt: skip
        super().__init__(c_in, c_out, stride, **memory)
        kernel, padding = (3, 1) if stride == 1 else (2 * stride, stride // 2)
        self.recover = nn.ConvTranspose2d(c_out, c_in, kernel, stride, padding, bias=False)
        self.gates = _gates(2 * c_in, c_out, stride, bias)
        self.kind = aggregate
        self.aggregate = FanInConv2d(2 * c_out, c_out, 1, bias=False) if aggregate == "conv" else None

    def forward(self, x: Tensor) -> Tensor:
        state, history, last = self.recall(x)
        if self.aggregate is not None:
            history = self.aggregate(torch.cat([history, last], 1).to(x.dtype))
        else:
            history = last if self.kind == "last" else (history + last) / 2
        recovered = fit(self.recover(history.to(x.dtype)), x)
        gates = self.gates(torch.cat([x, recovered], 1))
        state, output = gated(gates, state)
        self.keep(state, history.to(state), output)
        return output.to(gates.dtype)


class PlainCell(Cell):
    """Control with as many weights as version 1 but no gates or memory: tanh of the maximum of four channels."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1, bias: bool = False, **memory):
        super().__init__(c_in, c_out, stride, **memory)
        self.gates = _gates(c_in, c_out, stride, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.gates(x).unflatten(1, (4, self.c_out)).amax(1).tanh()


CELLS: dict[str, type[Cell]] = {"v1": BConvCell, "v2": BConvCell2, "plain": PlainCell}


def gated(gates: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The new state and the output for gates (B, 4 * c, h, w) and a state (B, c, h, w), in the state's precision.

    States are at least float32: half precision would lose small updates accumulated over many batches.
    """
    enter, forget, out, candidate = gates.to(state.dtype).chunk(4, 1)
    state = forget.sigmoid() * state + enter.sigmoid() * candidate.tanh()
    return state, out.sigmoid() * state.tanh()


def fit(x: Tensor, like: Tensor) -> Tensor:
    """Crop or zero-pad `x` at the bottom and right edges to the height and width of `like`."""
    rows, columns = (due - size for due, size in zip(like.shape[2:], x.shape[2:], strict=True))
    return F.pad(x, (0, columns, 0, rows)) if rows or columns else x


def all_memory(module: nn.Module) -> list[Tensor]:
    """The concatenated memories of all cells in `module`; empty after `set_memory(module, [])`."""
    return [slots for cell in _cells(module) for slots in cell.slots]


def set_memory(module: nn.Module, memory: Sequence[Tensor]) -> None:
    """Set the memory of all cells in `module` to what `all_memory` returned; an empty sequence clears it.

    Raises:
        ValueError: if the memory does not match the cells; nothing is changed.
    """
    due = [cell.c_out for cell in _cells(module) for _ in range(cell.states)]
    got = [slots.shape[1] if slots.ndim == 4 else None for slots in memory]
    if memory and got != due:
        raise ValueError(
            f"this memory is of another side network: it has {len(got)} tensors of {got} channels, needed are "
            f"{len(due)} of {due}. Restore it into the model that it was read from, or reset the memory"
        )
    rest = [slots.detach() for slots in memory]
    for cell in _cells(module):
        cell.slots, rest = rest[: cell.states], rest[cell.states :]


def _cells(module: nn.Module) -> list[Cell]:
    # By attribute, not by class: a model loaded with its own code (trust_remote_code) has its own cell classes.
    return [cell for cell in module.modules() if isinstance(getattr(cell, "slots", None), list)]


def _gates(c_in: int, c_out: int, stride: int, bias: bool) -> nn.Conv2d:
    """3x3 convolution that outputs input gate, forget gate, output gate and candidate, in this order."""
    return FanInConv2d(c_in, 4 * c_out, 3, stride, 1, bias=bias)


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _usable(slots: Tensor, like: Tensor) -> Tensor:
    """Slots on the device and in the dtype of `like`; inference tensors are cloned because autograd rejects them."""
    return (slots.clone() if slots.is_inference() else slots).to(like)
