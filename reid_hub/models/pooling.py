"""Pooling layers: a backbone's feature map, stages or tokens -> one vector, or one per part."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from .parts import Part


class Pooling(Part):
    """Base class of pooling layers. The input is the last feature map, or all of `stages` if `takes_stages`.

    Attributes:
        part_dims: lengths of the output vectors; empty for one vector with the channels of the feature map.
        global_parts: number of global vectors (of the whole person), which come first; None if all are.
        takes_stages: whether the input is a sequence of feature maps.
    """

    part_dims: tuple[int, ...] = ()
    global_parts: int | None = None
    takes_stages = False

    @classmethod
    def behind(cls, backbone: nn.Module, **options) -> "Pooling":
        """Build the pooling layer for a backbone."""
        return cls(**options)

    def fuse(self, pooled: Tensor) -> Tensor:
        """Convert the pooled output to the input of the embedding layer."""
        return pooled


class AveragePool(Pooling):
    """Mean over positions, (B, C, h, w) -> (B, C) or (B, N, C) -> (B, C)."""

    needs = ("map", "tokens")

    def forward(self, feature_map: Tensor) -> Tensor:
        return feature_map.flatten(2).mean(2) if feature_map.ndim == 4 else feature_map.mean(1)


class MaxPool(Pooling):
    """Maximum over positions, (B, C, h, w) -> (B, C) or (B, N, C) -> (B, C)."""

    needs = ("map", "tokens")

    def forward(self, feature_map: Tensor) -> Tensor:
        return feature_map.amax((2, 3)) if feature_map.ndim == 4 else feature_map.amax(1)


class GeMPool(Pooling):
    """Generalised-mean pooling with a learned exponent, (B, C, h, w) -> (B, C); arXiv:1711.02512, eq. 3."""

    needs = ("map",)

    def __init__(self, eps: float = 1e-6, *, p: float = 3.0):
        super().__init__()
        self.eps, self.initial_p = eps, p
        self.p = nn.Parameter(torch.full((1,), p))

    def initialise(self) -> None:
        """Set the exponent to `p`."""
        init.constant_(self.p, self.initial_p)

    def forward(self, feature_map: Tensor) -> Tensor:
        return feature_map.clamp(min=self.eps).pow(self.p).mean((2, 3)).pow(1.0 / self.p)


class StabilisedMaxPool(Pooling):
    """Maximum over window averages, (B, C, h, w) -> (B, C); Factorized Distillation, arXiv:1811.08073, eq. 5.

    Raises:
        ValueError: if the feature map is smaller than the window.
    """

    needs = ("map",)

    def __init__(self, *, window: int = 4):
        super().__init__()
        self.window = window

    def forward(self, feature_map: Tensor) -> Tensor:
        if min(feature_map.shape[2:]) < self.window:
            raise ValueError(
                f"stabilised max pooling needs a map of at least {self.window}x{self.window}, got "
                f"{feature_map.shape[2]}x{feature_map.shape[3]}: use larger images or a smaller window"
            )
        return F.avg_pool2d(feature_map, self.window, stride=1).amax((2, 3))


class ClsPool(Pooling):
    """First token, (B, N, C) -> (B, C)."""

    needs = ("tokens",)

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0]


class PatchPool(Pooling):
    """Mean of the tokens after the first `prefix_tokens`, (B, N, C) -> (B, C)."""

    needs = ("patches",)

    def __init__(self, prefix_tokens: int):
        super().__init__()
        self.prefix_tokens = prefix_tokens

    @classmethod
    def behind(cls, backbone: nn.Module) -> "PatchPool":
        """Build the pooling layer that skips the backbone's prefix tokens."""
        return cls(backbone.prefix_tokens)

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, self.prefix_tokens :].mean(1)


class PartTokens(Pooling):
    """The class token and the three part tokens, (B, 4 + n, C) -> (B, 4, C); PASS, arXiv:2203.03931.

    Attributes:
        part_dims: lengths of the two vectors that `fuse_parts` concatenates.
    """

    needs = ("part_tokens",)
    gives = ("part_tokens", "vector")

    def __init__(self, channels: int):
        super().__init__()
        self.part_dims = (channels, channels)

    @classmethod
    def behind(cls, backbone: nn.Module) -> "PartTokens":
        """Build the pooling layer for tokens of the backbone's width."""
        return cls(backbone.out_channels)

    def fuse(self, pooled: Tensor) -> Tensor:
        """Fuse the tokens to one vector (B, 2C), see `fuse_parts`."""
        return fuse_parts(pooled)

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, :4]

    def width_groups(self, groups, maps: tuple[str, ...]) -> tuple[str, ...]:
        """Return the groups of the vector that `fuse_parts` computes from the four tokens."""
        return 2 * maps[-1:]


def fuse_parts(parts: Tensor) -> Tensor:
    """Concatenate the class token and the mean of the part tokens, (B, 1 + P, C) -> (B, 2C)."""
    return torch.cat([parts[:, 0], parts[:, 1:].mean(1)], 1)


class GlobalStripesPool(Pooling):
    """Means of the last map and of the upper and lower half of the one before, concatenated: (B, C) and (B, 256).

    MSINet (arXiv:2303.07065). A 1x1 convolution first reduces the earlier map to 128 channels. If the number of rows is
    odd, the middle row belongs to the lower half, as in the published code.

    Attributes:
        part_dims: lengths of the two vectors.

    Raises:
        ValueError: if the earlier map has only one row.
    """

    needs = ("stages",)
    takes_stages = True

    def __init__(self, stage_channels: Sequence[int], stripe_dim: int = 128):
        super().__init__()
        self.f_conv = nn.Conv2d(stage_channels[-2], stripe_dim, 1)
        self.part_dims = (stage_channels[-1], 2 * stripe_dim)

    @classmethod
    def behind(cls, backbone: nn.Module) -> "GlobalStripesPool":
        """Build the pooling layer for the backbone's last two feature maps."""
        return cls(backbone.stage_channels)

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        striped = self.f_conv(stages[-2])
        middle = striped.shape[2] // 2
        if not middle:
            raise ValueError("two stripes need a map of at least 2 rows, got 1: use larger images")
        halves = striped[:, :, :middle], striped[:, :, middle:]
        return torch.cat([part.mean((2, 3)) for part in (stages[-1], *halves)], 1)

    def width_groups(self, groups, stages: tuple[str, ...]) -> tuple[str, ...]:
        """Declare the convolution; return the groups of the vector, where both halves have the same group."""
        groups.layer("f_conv", reads=stages[-2], writes="f_conv")
        return (stages[-1], "f_conv", "f_conv")


class BranchStripesPool(Pooling):
    """Max pooling of three branches and of their stripes, three maps (B, C, h, w) -> (B, 8, C).

    The order is that of the published retrieval vector: the three branches, two stripes of the second branch, three
    stripes of the third. If the rows do not divide evenly, stripes overlap by one row.

    Attributes:
        part_dims: lengths of the eight vectors.
        global_parts: number of global vectors (of the whole person), which come first.
    """

    needs = ("branches",)
    gives = ("parts",)
    takes_stages = True
    global_parts = 3

    def __init__(self, channels: int):
        super().__init__()
        self.part_dims = (channels,) * 8

    @classmethod
    def behind(cls, backbone: nn.Module) -> "BranchStripesPool":
        """Build the pooling layer for branches of the backbone's width."""
        return cls(backbone.out_channels)

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        whole = [branch.amax((2, 3), keepdim=True).squeeze(3) for branch in stages[-3:]]
        halves, thirds = F.adaptive_max_pool2d(stages[-2], (2, 1)), F.adaptive_max_pool2d(stages[-1], (3, 1))
        return torch.cat([*whole, halves.squeeze(3), thirds.squeeze(3)], 2).mT


POOLINGS: dict[str, type[Pooling]] = {
    "avg": AveragePool,
    "max": MaxPool,
    "gem": GeMPool,
    "stabilised_max": StabilisedMaxPool,
    "cls": ClsPool,
    "patches": PatchPool,
    "global_stripes": GlobalStripesPool,
    "part_tokens": PartTokens,
    "branch_stripes": BranchStripesPool,
}
