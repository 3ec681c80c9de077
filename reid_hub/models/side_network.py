"""The side network of Progressive Transfer Learning (arXiv:1908.02492): BConv cells beside a backbone, map by map."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .bconv import CELLS, fan_in, fit

# Channels of the released network beside a ResNet-50, whose stem has 64: of the cells on the picture, and of each
# pair's 1x1 convolution and cell.
STEM = (16, 32)
PAIRS = ((64, 64), (128, 256), (256, 512), (512, 128))
STEM_CHANNELS = 64


class SideNetwork(nn.Module):
    """Cells that read the picture and a backbone's maps, and give nothing back to it; paper, eq. 3.

    y0 is what the first cells make of the picture, in the size of the first map. A pair takes map x_i beside y_i-1
    through a 1x1 convolution with norm and ReLU, and that through a cell, which goes down where the backbone does.

    Args:
        stage_channels, stage_reductions: of the backbone's maps: channels, and how much smaller than the picture.
        branches: how many of them, the last ones, stand side by side; each has a last cell of its own.
        cell: "v1", "v2" or "plain", see `CELLS`; `options` are its own.
        memory: False lets the cells forget before every batch, as the published training script does.
        stem: channels of the cells on the picture; the default is the published one, scaled by the backbone's stem.
        pairs: (1x1 convolution, cell) channels of each pair, or how many of the default ones; all by default.

    Attributes:
        out_channels: of the maps that come out.

    Raises:
        ValueError: if the backbone has fewer maps than the pairs need, or branches that they do not reach.
    """

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
            convolution = fan_in(nn.Conv2d(stage_channels[number - 1] + width, fused, 1))
            self.fuse.append(nn.Sequential(convolution, nn.BatchNorm2d(fused), nn.ReLU()))
            last = number == len(pairs)
            # Behind the last tap the branches stand side by side, and each goes down by its own stride.
            for reduction in stage_reductions[number : number + (branches if last else 1)]:
                stride = reduction // stage_reductions[number - 1]
                (self.ends if last else self.cells).append(build(fused, channels, stride))
            width = channels
        self.out_channels = width

    def forward(self, pixel_values: Tensor, stages: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Pictures (B, 3, H, W) and the backbone's maps -> one map (B, out_channels, h, w) for each branch."""
        y = self.stem(pixel_values)
        for number, fuse in enumerate(self.fuse):
            # Where the backbone rounds an odd size down (pooling without padding) the cells round it up.
            z = fuse(torch.cat([stages[number], fit(y, stages[number])], 1))
            if number < len(self.cells):
                y = self.cells[number](z)
        return tuple(cell(z) for cell in self.ends)


def build_side(config, backbone: nn.Module) -> SideNetwork | None:
    """The side network that `config.side` describes, or None.

    Raises:
        ValueError: for a backbone without stages.
    """
    if config.side is None:
        return None
    if not getattr(backbone, "stage_channels", None):
        raise ValueError(
            f"a side network needs a backbone with stages: ResNet, DenseNet, MGN, OSNet, MSINet, SqueezeNet or a "
            f"convolutional network of timm; {config.backbone_config.model_type!r} "
            f"({config.variant or 'no variant'}) has none"
        )
    shape = backbone.stage_channels, backbone.stage_reductions, getattr(backbone, "branches", 1)
    return SideNetwork(*shape, **config.side)


def _scaled(channels: Sequence[int], scale: float) -> list[int]:
    return [max(1, round(width * scale)) for width in channels]
