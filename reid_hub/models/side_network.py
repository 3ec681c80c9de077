"""The side network of Progressive Transfer Learning (arXiv:1908.02492): BConv cells that read a backbone's stages."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .bconv import CELLS, fit
from .layers import FanInConv2d
from .parts import Part

# Channels of the released side network for a ResNet-50 with 64 stem channels: those of the cells on the image, and of
# each pair's 1x1 convolution and cell.
STEM = (16, 32)
PAIRS = ((64, 64), (128, 256), (256, 512), (512, 128))
STEM_CHANNELS = 64

OPTIONS = ("cell", "memory", "stem", "pairs", "bias", "batch_mean", "aggregate")
AGGREGATES = ("mean", "last", "conv")


class SideNetwork(Part):
    """Cells that read the image and a backbone's feature maps without changing them (paper, eq. 3).

    y_0 is the output of the stem cells on the image, at the size of the first feature map. Pair i concatenates feature
    map x_i and y_i-1, applies a 1x1 convolution with norm and ReLU, and then a cell with the stride of the backbone's
    next stage.

    Args:
        stage_channels, stage_reductions: channels and strides of the backbone's feature maps.
        branches: number of parallel branches, the last feature maps; each has its own last cell.
        cell: "v1", "v2" or "plain", see `CELLS`; `options` are passed to the cells.
        memory: False clears the cells' memory before every batch, as the published training script does.
        stem: channels of the stem cells (default: the published ones, scaled to the backbone's stem).
        pairs: (1x1 convolution, cell) channels of each pair, or the number of default pairs to use (default: all).

    Attributes:
        out_channels: channels of the output maps.

    Raises:
        ValueError: if the backbone has too few feature maps for the pairs, or the pairs do not reach its branches.
    """

    needs = ("stages", "branches")
    gives = ("map", "branches")  # one map per branch of the backbone, see `behind`

    def __init__(
        self,
        stage_channels: Sequence[int],
        stage_reductions: Sequence[int],
        branches: int = 1,
        *,
        cell: str = "v1",
        memory: bool = True,
        stem: Sequence[int] | None = None,
        pairs: int | Sequence[Sequence[int]] | None = None,
        **options,
    ):
        super().__init__()
        taps = len(stage_channels) - branches
        scale = stage_channels[0] / STEM_CHANNELS
        if stem is None:
            stem = _scaled(STEM[: 2 if stage_reductions[0] > 2 else 1], scale)
        pairs = min(taps, len(PAIRS)) if pairs is None else pairs
        count = pairs if isinstance(pairs, int) else len(pairs)
        if not 1 <= count <= taps or (branches > 1 and count < taps) or (count > len(PAIRS) and count is pairs):
            raise ValueError(
                f"this backbone has room for {taps} pairs of a side network"
                f"{', and needs them all for its branches' if branches > 1 else ''}; got {count}"
            )
        if count is pairs:
            pairs = [_scaled(pair, scale) for pair in PAIRS[:count]]

        def build(c_in: int, c_out: int, stride: int) -> nn.Module:
            return CELLS[cell](c_in, c_out, stride, remembers=memory, **options)

        self.stem, width, rest = nn.Sequential(), 3, stage_reductions[0]
        for number, channels in enumerate(stem, start=1):
            stride = min(2, rest) if number < len(stem) else rest
            self.stem.append(build(width, channels, stride))
            width, rest = channels, rest // stride
        self.fuse, self.cells, self.ends = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for number, (fused, channels) in enumerate(pairs, start=1):
            convolution = FanInConv2d(stage_channels[number - 1] + width, fused, 1)
            self.fuse.append(nn.Sequential(convolution, nn.BatchNorm2d(fused), nn.ReLU()))
            last = number == len(pairs)
            # The last pair has one cell per branch, each with the stride of its branch.
            for reduction in stage_reductions[number : number + (branches if last else 1)]:
                stride = reduction // stage_reductions[number - 1]
                (self.ends if last else self.cells).append(build(fused, channels, stride))
            width = channels
        self.out_channels = width

    @classmethod
    def behind(cls, backbone: nn.Module, **options) -> "SideNetwork":
        """Build the side network of a backbone."""
        branches = getattr(backbone, "branches", 1)
        return cls(backbone.stage_channels, backbone.stage_reductions, branches, **options)

    def forward(self, pixel_values: Tensor, stages: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Images (B, 3, H, W) and the backbone's feature maps -> one map (B, out_channels, h, w) per branch."""
        y = self.stem(pixel_values)
        for number, fuse in enumerate(self.fuse):
            # For odd sizes, the cells round up where some backbones round down (pooling without padding).
            z = fuse(torch.cat([stages[number], fit(y, stages[number])], 1))
            if number < len(self.cells):
                y = self.cells[number](z)
        return tuple(cell(z) for cell in self.ends)


def _scaled(channels: Sequence[int], scale: float) -> list[int]:
    return [max(1, round(width * scale)) for width in channels]


def read_side(side: str | Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Validate the options of a side network and add the defaults of cell and memory; a string names the cell.

    Raises:
        ValueError: for an unknown option or an invalid value.
    """
    if side is None:
        return None
    side = {"cell": "v1", "memory": True, **({"cell": side} if isinstance(side, str) else side)}
    if unknown := sorted(set(side) - set(OPTIONS)):
        raise ValueError(f"unknown options {unknown} of a side network; it has {', '.join(OPTIONS)}")
    cell = side["cell"]
    if cell not in CELLS:
        raise ValueError(f"the side network's cell must be one of {', '.join(CELLS)}, got {cell!r}")
    if "aggregate" in side and (cell != "v2" or side["aggregate"] not in AGGREGATES):
        raise ValueError(
            f"aggregate belongs to a side network of cell 'v2' and is one of {', '.join(AGGREGATES)}; got "
            f"{side['aggregate']!r} for {cell!r}"
        )
    flags = [name for name in ("memory", "bias", "batch_mean") if not isinstance(side.get(name, True), bool)]
    if flags:
        raise ValueError(f"{', '.join(flags)} of a side network must be true or false, got {side}")
    stem, pairs = side.get("stem"), side.get("pairs")
    listed = pairs if isinstance(pairs, list | tuple) else [[1, 1] if pairs is None or type(pairs) is int else []]
    if not (stem is None or _are_widths(stem)) or not all(_are_widths(pair) and len(pair) == 2 for pair in listed):
        raise ValueError(
            "stem of a side network must be channels of its first cells, and pairs a number or pairs of channels, "
            f"all at least 1; got {stem} and {pairs}"
        )
    return side


def _are_widths(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(type(n) is int and n > 0 for n in value)
