"""Small layers that turn a feature map into a vector."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class BNNeck(nn.Module):
    """Batch norm of a vector with a gain and no bias, (B, D) -> (B, D); arXiv:1903.07071, section 3.5.

    The paper freezes the bias at zero. Here there is none: loading a checkpoint re-enables gradients on every
    parameter, so a frozen one would thaw.
    """

    def __init__(self, dim: int, eps: float = 1e-5, momentum: float = 0.1):
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(dim))
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, features: Tensor) -> Tensor:
        if self.training:
            self.num_batches_tracked.add_(1)
        return F.batch_norm(
            features, self.running_mean, self.running_var, self.weight, None, self.training, self.momentum, self.eps
        )

    def width_groups(self, groups, reads: tuple[str, ...]) -> None:
        """Declare that the norm is numbered like the vector in front of it."""
        groups.layer("", writes=reads)


class LinearBNNeck(nn.Module):
    """FC without bias, then BNNeck, for each part of a vector: (B, D) -> (B, D); MSINet, arXiv:2303.07065."""

    def __init__(self, part_dims: Sequence[int], init_std: float = 0.01):
        super().__init__()
        self.part_dims = tuple(part_dims)
        self.fc = nn.ModuleList(nn.Linear(dim, dim, bias=False) for dim in self.part_dims)
        self.norm = nn.ModuleList(BNNeck(dim) for dim in self.part_dims)
        for fc in self.fc:
            fc.init_std = init_std  # read by ReIDModel._init_weights, which sees leaves only

    def forward(self, features: Tensor) -> Tensor:
        parts = zip(self.fc, self.norm, features.split(self.part_dims, 1), strict=True)
        return torch.cat([norm(fc(part)) for fc, norm, part in parts], 1)

    def width_groups(self, groups, reads: tuple[str, ...]) -> None:
        """Declare that each part is read by its own FC, which writes a group of its own."""
        rest = list(reads)
        for number, dim in enumerate(self.part_dims):
            part = []
            while sum(groups.groups[name].size for name in part) < dim:
                part.append(rest.pop(0))
            groups.layer(f"fc.{number}", reads=tuple(part), writes=f"neck.{number}")
            groups.layer(f"norm.{number}", writes=f"neck.{number}")


class AveragePool(nn.Module):
    """Mean over positions, (B, C, h, w) -> (B, C) or (B, N, C) -> (B, C)."""

    def forward(self, feature_map: Tensor) -> Tensor:
        return feature_map.flatten(2).mean(2) if feature_map.ndim == 4 else feature_map.mean(1)


class MaxPool(nn.Module):
    """Maximum over positions, (B, C, h, w) -> (B, C) or (B, N, C) -> (B, C)."""

    def forward(self, feature_map: Tensor) -> Tensor:
        return feature_map.amax((2, 3)) if feature_map.ndim == 4 else feature_map.amax(1)


class GeMPool(nn.Module):
    """Generalised mean with a learned exponent, (B, C, h, w) -> (B, C); arXiv:1711.02512, eq. 3."""

    def __init__(self, p: float = 3.0, eps: float = 1e-6):
        super().__init__()
        self.eps, self.initial_p = eps, p
        self.p = nn.Parameter(torch.full((1,), p))

    def forward(self, feature_map: Tensor) -> Tensor:
        return feature_map.clamp(min=self.eps).pow(self.p).mean((2, 3)).pow(1.0 / self.p)


class StabilisedMaxPool(nn.Module):
    """Maximum over window averages, (B, C, h, w) -> (B, C); Factorized Distillation, arXiv:1811.08073, eq. 5.

    Raises:
        ValueError: if the map is smaller than the window.
    """

    def __init__(self, window: int = 4):
        super().__init__()
        self.window = window

    def forward(self, feature_map: Tensor) -> Tensor:
        if min(feature_map.shape[2:]) < self.window:
            raise ValueError(
                f"stabilised max pooling needs a map of at least {self.window}x{self.window}, got "
                f"{feature_map.shape[2]}x{feature_map.shape[3]}: use larger images or a smaller pooling_window"
            )
        return F.avg_pool2d(feature_map, self.window, stride=1).amax((2, 3))


class ClsPool(nn.Module):
    """First token, (B, N, C) -> (B, C)."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0]


class PatchPool(nn.Module):
    """Mean of the tokens behind the first `prefix_tokens`, (B, N, C) -> (B, C)."""

    def __init__(self, prefix_tokens: int):
        super().__init__()
        self.prefix_tokens = prefix_tokens

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, self.prefix_tokens :].mean(1)


class PartTokens(nn.Module):
    """The class token and the three part tokens, (B, 4 + n, C) -> (B, 4, C); PASS, arXiv:2203.03931.

    Attributes:
        part_dims: lengths of the two vectors that `fuse_parts` makes of them.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.part_dims = (channels, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, :4]

    def width_groups(self, groups, maps: tuple[str, ...]) -> tuple[str, ...]:
        """The groups of the vector that `fuse_parts` makes of the four tokens."""
        return 2 * maps[-1:]


def fuse_parts(parts: Tensor) -> Tensor:
    """The class token beside the mean of the part tokens, (B, 1 + P, C) -> (B, 2C)."""
    return torch.cat([parts[:, 0], parts[:, 1:].mean(1)], 1)


class PartBNNeck(nn.Module):
    """A BNNeck for each token in front of `fuse_parts`, (B, P, C) -> (B, 2C); PASS, arXiv:2203.03931."""

    def __init__(self, dim: int, parts: int = 4):
        super().__init__()
        self.parts = nn.ModuleList(BNNeck(dim) for _ in range(parts))

    def forward(self, parts: Tensor) -> Tensor:
        return fuse_parts(torch.stack([neck(part) for neck, part in zip(self.parts, parts.unbind(1), strict=True)], 1))

    def width_groups(self, groups, reads: tuple[str, ...]) -> None:
        """Declare the norms; `reads` numbers the fused vector, whose halves both count like one token."""
        for i in range(len(self.parts)):
            groups.layer(f"parts.{i}", writes=reads[:1])


class GlobalStripesPool(nn.Module):
    """The mean of the last map, and those of an earlier map's upper and lower half: (B, C) and (B, 256) side by side.

    MSINet (arXiv:2303.07065); a 1x1 convolution takes the earlier map to 128 channels first. With an odd number of
    rows the middle one belongs to the lower half, as in the published code.

    Attributes:
        takes_stages: the pooling is called with what the backbone's `stages` returns instead of with one map.
        part_dims: lengths of the two vectors.

    Raises:
        ValueError: if the earlier map has one row only.
    """

    takes_stages = True

    def __init__(self, stage_channels: Sequence[int], stripe_dim: int = 128):
        super().__init__()
        self.f_conv = nn.Conv2d(stage_channels[-2], stripe_dim, 1)
        self.part_dims = (stage_channels[-1], 2 * stripe_dim)

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        striped = self.f_conv(stages[-2])
        middle = striped.shape[2] // 2
        if not middle:
            raise ValueError("two stripes need a map of at least 2 rows, got 1: use larger images")
        halves = striped[:, :, :middle], striped[:, :, middle:]
        return torch.cat([part.mean((2, 3)) for part in (stages[-1], *halves)], 1)

    def width_groups(self, groups, stages: tuple[str, ...]) -> tuple[str, ...]:
        """Declare the convolution; returns the groups of the vector, the halves' twice the same."""
        groups.layer("f_conv", reads=stages[-2], writes="f_conv")
        return (stages[-1], "f_conv", "f_conv")


class BranchStripesPool(nn.Module):
    """Largest values of the branches and of their stripes, three maps (B, C, h, w) -> (B, 8, C).

    In the order of the published retrieval vector: each branch whole, the second's two stripes, the third's three. Rows
    that do not divide evenly belong to both their stripes.

    Attributes:
        takes_stages: the pooling is called with several maps, of which the last three count.
        part_dims: lengths of the eight vectors.
        global_parts: how many of them, the first ones, see the whole person.
    """

    takes_stages = True
    global_parts = 3

    def __init__(self, channels: int):
        super().__init__()
        self.part_dims = (channels,) * 8

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        whole = [branch.amax((2, 3), keepdim=True).squeeze(3) for branch in stages[-3:]]
        halves, thirds = F.adaptive_max_pool2d(stages[-2], (2, 1)), F.adaptive_max_pool2d(stages[-1], (3, 1))
        return torch.cat([*whole, halves.squeeze(3), thirds.squeeze(3)], 2).mT


def build_pooling(config, backbone: nn.Module) -> nn.Module:
    """The pooling layer that `config.pooling` names.

    Raises:
        ValueError: if it needs stages, or tokens in front of the patches', that the backbone does not have.
    """
    if config.pooling == "global_stripes":
        if not getattr(backbone, "stage_channels", None):
            raise ValueError(
                f"pooling 'global_stripes' needs a backbone with stages, such as MSINet; "
                f"{config.backbone_config.model_type!r} has none: choose another pooling"
            )
        return GlobalStripesPool(backbone.stage_channels)
    if config.pooling == "branch_stripes":
        return BranchStripesPool(backbone.out_channels)
    if config.pooling == "part_tokens":
        return PartTokens(backbone.out_channels)
    if config.pooling == "patches":
        if not getattr(backbone, "prefix_tokens", 0):
            raise ValueError(
                "pooling 'patches' needs a ViT of timm with a class token or registers to leave out; "
                f"{config.backbone_config.model_type!r} has none here: take 'avg'"
            )
        return PatchPool(backbone.prefix_tokens)
    if config.pooling == "gem":
        return GeMPool(config.gem_p)
    if config.pooling == "stabilised_max":
        return StabilisedMaxPool(config.pooling_window)
    return {"avg": AveragePool, "max": MaxPool, "cls": ClsPool}[config.pooling]()


def build_neck(config, part_dims: Sequence[int]) -> nn.Module:
    """The neck that `config.neck` names, for a vector of these parts."""
    if config.neck == "none":
        return nn.Identity()
    if config.neck == "part_bnneck":
        return PartBNNeck(part_dims[0])
    return BNNeck(sum(part_dims)) if config.neck == "bnneck" else LinearBNNeck(part_dims)
