"""The embedding block of FD and OSNet."""

from torch import Tensor, nn


class LinearHead(nn.Module):
    """Fully connected layer, batch norm and, for OSNet, ReLU: (B, C) -> (B, D).

    Factorized Distillation (arXiv:1811.08073) 2.3 has neither bias nor ReLU, OSNet (arXiv:1905.00953) has both.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = False, relu: bool = False, init_std=None):
        super().__init__()
        self.fc = nn.Linear(in_features, out_features, bias=bias)
        self.fc.init_std = init_std  # read by ReIDModel._init_weights, which sees leaves only
        self.bn = nn.BatchNorm1d(out_features)
        self.relu = nn.ReLU() if relu else nn.Identity()

    def forward(self, pooled: Tensor) -> Tensor:
        return self.relu(self.bn(self.fc(pooled)))

    def width_groups(self, groups, reads: tuple[str, ...]) -> tuple[str, ...]:
        """Declare the channels of the embedding block; returns the groups of its output."""
        groups.layer("fc", reads=reads, writes="embedding")
        groups.layer("bn", writes="embedding")
        return ("embedding",)
