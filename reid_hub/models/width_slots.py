"""Decode a weight chain to a given width: assign chain rows to channels, and sum the input columns of each channel."""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from .width_groups import WidthGroups


@dataclass(frozen=True)
class Slots:
    """Assignment of chain rows and teacher channels to the channels of one group of a student.

    Attributes:
        source: (C,) the chain row of each channel.
        slot: (N,) the student channel of each teacher channel; the members of a channel share its row.
    """

    source: Tensor
    slot: Tensor

    @property
    def width(self) -> int:
        return len(self.source)

    @property
    def sizes(self) -> Tensor:
        """(C,) number of members of each channel."""
        return torch.bincount(self.slot, minlength=self.width)


def allocate(labels: Tensor, width: int, blocks: int = 1) -> Slots:
    """Distribute clusters over `width` channels in proportion to their sizes (OSKT, arXiv:2511.06016, expansion).

    Every cluster gets one channel; each further channel goes to the cluster with the fewest channels per member (ties:
    the first). The members of a cluster are split, in order, into one chunk per channel; chunk sizes differ by at most
    one.

    Args:
        labels: (N,) cluster of each teacher channel, 0..M-1, none of them empty; with several blocks, the clusters of
            the first block come first, and so on.
        blocks: number of equal blocks (attention heads), which are filled separately.

    Raises:
        ValueError: unless M <= width <= N and `blocks` divides `width`.
    """
    clusters = int(labels.max()) + 1
    if not clusters <= width <= len(labels):
        raise ValueError(f"a width must be between the chain's {clusters} and the teacher's {len(labels)}, got {width}")
    if width % blocks:
        raise ValueError(f"a width must be a multiple of the {blocks} heads, got {width}")
    per_block = [labels.view(blocks, -1)[b] - b * (clusters // blocks) for b in range(blocks)]
    parts = [_allocate(block, width // blocks) for block in per_block]
    return Slots(
        torch.cat([part.source + b * (clusters // blocks) for b, part in enumerate(parts)]),
        torch.cat([part.slot + b * (width // blocks) for b, part in enumerate(parts)]),
    )


def _allocate(labels: Tensor, width: int) -> Slots:
    sizes = torch.bincount(labels).tolist()
    source, copies = list(range(len(sizes))), [1] * len(sizes)
    # Equal fractions give equal floats, and the heap breaks ties by cluster number.
    queue = [(1 / size, g) for g, size in enumerate(sizes)]
    heapq.heapify(queue)
    while len(source) < width:
        _, g = queue[0]
        source.append(g)
        copies[g] += 1
        heapq.heapreplace(queue, (copies[g] / sizes[g], g))
    source = torch.tensor(source)

    # The channels of each cluster in ascending order, each member's place in its cluster, and the chunk of that place.
    channels = torch.argsort(source, stable=True)
    first_channel = torch.tensor([0, *copies]).cumsum(0)[labels]
    order = torch.argsort(labels, stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(labels)) - torch.tensor([0, *sizes]).cumsum(0)[labels[order]]
    small, long = (torch.tensor(values)[labels] for values in _divide(sizes, copies))
    in_long = long * (small + 1)  # number of members in the longer chunks
    chunk = torch.where(place < in_long, place // (small + 1), long + (place - in_long) // small)
    return Slots(source, channels[first_channel + chunk])


def _divide(sizes: list[int], copies: list[int]) -> tuple[list[int], list[int]]:
    """For each cluster, the length of its shorter chunks and the number of chunks that are one longer."""
    pairs = [divmod(size, number) for size, number in zip(sizes, copies, strict=True)]
    return [quotient for quotient, _ in pairs], [remainder for _, remainder in pairs]


class Decoder:
    """Differentiable decoder from a chain to the tensors of a given width (OSKT, arXiv:2511.06016, neural identity).

    Channel j of a weight is its chain row `source[j]` with the columns of merged input channels summed; channel j of a
    vector (bias, norm) is the mean over its members. Tensors without a group are unchanged.

    Args:
        groups: width groups of the teacher.
        slots: slots by group.
        rescale_queries: multiply queries by n * sqrt(d / D), where n is the number of members of a channel, and d and D
            are the head widths of student and teacher. This preserves the attention of merged channels (exactly, for
            equal clusters).
    """

    def __init__(self, groups: WidthGroups, slots: Mapping[str, Slots], *, rescale_queries: bool = False):
        self.axes = groups.axes
        self.slots = dict(slots)
        self.factors = {}
        for name, group in groups.queries.items() if rescale_queries else ():
            temperature = (slots[group].width / groups.groups[group].size) ** 0.5
            rest = [torch.ones(slots[member].width).double() for member in groups.axes[name].rows[1:]]
            self.factors[name] = torch.cat([slots[group].sizes.double() * temperature, *rest])
        self._indices: dict = {}  # by groups, kind and device; shared by many tensors

    def __call__(self, links: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Decode weights (M, N, ...), with chain rows and teacher columns, and vectors (N,) of the teacher's width."""
        return {name: self._decode(name, tensor) for name, tensor in links.items()}

    def _decode(self, name: str, tensor: Tensor) -> Tensor:
        axes = self.axes.get(name)
        if axes is None:
            return tensor
        if tensor.ndim == 1:
            index, sizes = self._members(axes.rows, tensor.device)
            tensor = tensor.new_zeros(len(sizes)).index_add(0, index, tensor) / sizes.to(tensor.dtype)
        else:
            if axes.columns:
                index, sizes = self._members(axes.columns, tensor.device)
                summed = tensor.new_zeros(tensor.shape[0], len(sizes), *tensor.shape[2:])
                tensor = summed.index_add(1, index, tensor)
            tensor = tensor.index_select(0, self._sources(axes.rows, tensor.device))
        if name in self.factors:
            factor = self.factors[name].to(tensor)
            tensor = tensor * factor.view(-1, *[1] * (tensor.ndim - 1))
        return tensor

    def _members(self, names: tuple[str, ...], device: torch.device) -> tuple[Tensor, Tensor]:
        """The student channel of each teacher channel, and the number of members of each student channel."""
        key = (names, "members", device)
        if key not in self._indices:
            slots = [self.slots[name] for name in names]
            index = _concatenate([each.slot for each in slots], [each.width for each in slots])
            self._indices[key] = index.to(device), torch.cat([each.sizes for each in slots]).to(device)
        return self._indices[key]

    def _sources(self, names: tuple[str, ...], device: torch.device) -> Tensor:
        """The chain row of each channel."""
        key = (names, "sources", device)
        if key not in self._indices:
            sources = [self.slots[name].source for name in names]
            index = _concatenate(sources, [int(source.max()) + 1 for source in sources])
            self._indices[key] = index.to(device)
        return self._indices[key]


def _concatenate(parts: list[Tensor], lengths: list[int]) -> Tensor:
    """Indices into concatenated axes of these lengths."""
    starts = [0, *accumulate(lengths)]
    return torch.cat([part + start for part, start in zip(parts, starts[:-1], strict=True)])
