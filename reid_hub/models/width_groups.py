"""Width groups: sets of channels, and the tensor axes that they index.

A backbone declares the channels that each layer reads and writes. All code that changes widths (weight selection, and
clustering, refining and expanding a weight chain) relies only on these declarations.
"""

import copy
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class WidthGroup:
    """A set of `size` channels in `blocks` equal blocks that never mix (attention heads)."""

    size: int
    blocks: int = 1


@dataclass(frozen=True)
class TensorAxes:
    """Groups that index the first two axes of a tensor; several groups if an axis is a concatenation.

    Attributes:
        rows: groups of axis 0, the tensor's outputs (filters, biases, vectors of norms).
        columns: groups of axis 1, its inputs; empty if the length of that axis is fixed (RGB, depthwise kernels).
    """

    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()


class WidthGroups:
    """The width groups of a module, declared by its submodules with `layer`.

    Attributes:
        groups: width groups by name.
        axes: axes of all tensors indexed by a group, by their name in the module's state dict.
        queries: tensors whose first segment of rows holds attention queries, mapped to the group of the queries.
    """

    def __init__(self, module: nn.Module):
        self.module, self.prefix = module, ""
        self.groups: dict[str, WidthGroup] = {}
        self.axes: dict[str, TensorAxes] = {}
        self.queries: dict[str, str] = {}

    def inside(self, path: str) -> "WidthGroups":
        """A view of the same groups with paths relative to the submodule `path`."""
        view = copy.copy(self)
        view.module, view.prefix = self.module.get_submodule(path), _join(self.prefix, path)
        return view

    def layer(
        self,
        path: str,
        *,
        writes: str | tuple[str, ...],
        reads: str | tuple[str, ...] = (),
        blocks: int = 1,
        queries: bool = False,
    ) -> None:
        """Declare a leaf module (convolution, linear layer, norm) by its path.

        Args:
            writes: group of its output channels; a tuple if the output is a concatenation. The first layer that writes
                a group defines its size.
            reads: group, or concatenated groups, of its input channels; empty for RGB, depthwise kernels and norms.
            blocks: number of blocks of a newly defined group.
            queries: whether the first segment of the output holds attention queries.

        Raises:
            ValueError: if a group would have two sizes, or a tensor is declared twice.
        """
        writes, reads = _names(writes), _names(reads)
        leaf = self.module.get_submodule(path)
        tensors = {**dict(leaf.named_parameters(recurse=False)), **dict(leaf.named_buffers(recurse=False))}
        for leaf_name, tensor in tensors.items():
            if tensor.ndim == 0:
                continue
            name = _join(self.prefix, path, leaf_name)
            if name in self.axes:
                raise ValueError(f"{name} is declared twice")
            columns = reads if tensor.ndim > 1 else ()
            self._check(name, tensor, 0, writes, blocks)
            self._check(name, tensor, 1, columns, 1)
            self.axes[name] = TensorAxes(writes, columns)
            if queries:
                self.queries[name] = writes[0]

    def _check(self, name: str, tensor: Tensor, axis: int, names: tuple[str, ...], blocks: int) -> None:
        if not names:
            return
        new = [group for group in names if group not in self.groups]
        if new:
            if axis or len(set(names)) > 1 or tensor.shape[axis] % (len(names) * blocks):
                raise ValueError(f"{name} cannot tell the size of {new[0]!r}: a layer that writes only it comes first")
            self.groups[new[0]] = WidthGroup(tensor.shape[axis] // len(names), blocks)
        due = sum(self.groups[group].size for group in names)
        if tensor.shape[axis] != due:
            raise ValueError(f"axis {axis} of {name} has {tensor.shape[axis]} channels, its groups {names} have {due}")


def match_widths(teacher: WidthGroups, student: WidthGroups) -> dict[str, int]:
    """Width in the student of each of the teacher's groups.

    The layers after the backbone may differ; groups that the student does not have keep the teacher's width.

    Raises:
        ValueError: unless both backbones declare the same groups for every tensor.
    """
    ours, theirs = (
        {name: axes for name, axes in groups.axes.items() if name.startswith("backbone.")}
        for groups in (teacher, student)
    )
    differing = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    if differing:
        raise ValueError(
            f"the student is of another architecture or depth than the teacher: they differ in {differing[0]}. Only "
            "widths may"
        )
    return {name: student.groups.get(name, group).size for name, group in teacher.groups.items()}


def _join(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def _names(groups: str | tuple[str, ...]) -> tuple[str, ...]:
    return (groups,) if isinstance(groups, str) else tuple(groups)
