"""The embedding block of FD and OSNet, of PTL and of MGN."""

import torch
from torch import Tensor, nn

from .bconv import fan_in


class LinearHead(nn.Module):
    """Fully connected layer, batch norm and, for OSNet, ReLU: (B, C) -> (B, D).

    Factorized Distillation (arXiv:1811.08073) 2.3 has neither bias nor ReLU, OSNet (arXiv:1905.00953) has both;
    Progressive Transfer Learning has neither norm nor ReLU.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        norm: bool = True,
        relu: bool = False,
        init_std: float | None = None,
    ):
        super().__init__()
        self.fc = nn.Linear(in_features, out_features, bias=bias)
        self.fc.init_std = init_std  # read by ReIDModel._init_weights, which sees leaves only
        self.bn = nn.BatchNorm1d(out_features) if norm else nn.Identity()
        self.relu = nn.ReLU() if relu else nn.Identity()

    def forward(self, pooled: Tensor) -> Tensor:
        return self.relu(self.bn(self.fc(pooled)))

    def width_groups(self, groups, reads: tuple[str, ...]) -> tuple[str, ...]:
        """Declare the channels of the embedding block; returns the groups of its output."""
        groups.layer("fc", reads=reads, writes="embedding")
        groups.layer("bn", writes="embedding")
        return ("embedding",)


class SharedLinearHead(LinearHead):
    """One embedding block for all parts of a person, side by side: (B, P, C) -> (B, P * D).

    As in the public reproduction of MGN (arXiv:1804.01438), whose norm also takes its statistics of each part alone;
    the paper has a block for each part.
    """

    def __init__(self, in_features: int, out_features: int, **options):
        super().__init__(in_features, out_features, **options)
        fan_in(self.fc)
        self.bn.gain_std = 0.02  # read by ReIDModel._init_weights, which sees leaves only

    def forward(self, parts: Tensor) -> Tensor:
        return torch.cat([super(SharedLinearHead, self).forward(part) for part in parts.unbind(1)], 1)
