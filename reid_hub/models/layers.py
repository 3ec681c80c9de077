"""Small layers that turn a feature map into a vector."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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


class PartTokens(nn.Module):
    """The class token and the three part tokens, (B, 4 + n, C) -> (B, 4, C); PASS, arXiv:2203.03931."""

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


def build_pooling(config) -> nn.Module:
    """The pooling layer that `config.pooling` names."""
    if config.pooling == "gem":
        return GeMPool(config.gem_p)
    if config.pooling == "stabilised_max":
        return StabilisedMaxPool(config.pooling_window)
    return {"avg": AveragePool, "max": MaxPool, "cls": ClsPool, "part_tokens": PartTokens}[config.pooling]()
