"""Necks: layers between the features (for metric losses) and the classifier."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from .layers import NormalLinear, reset_statistics
from .parts import Part
from .pooling import fuse_parts


class NoNeck(Part):
    """No neck: the classifier reads the features, (B, D) -> (B, D)."""

    @classmethod
    def behind(cls, part_dims: Sequence[int]) -> "NoNeck":
        """Build the identity, for any length."""
        return cls()

    def forward(self, features: Tensor) -> Tensor:
        return features


class BNNeck(Part):
    """Batch norm of a vector with a gain and no bias, (B, D) -> (B, D); arXiv:1903.07071, section 3.5.

    The paper freezes the bias at zero. This class has no bias, because loading a checkpoint re-enables gradients for
    all parameters, which would unfreeze it.
    """

    def __init__(self, dim: int, eps: float = 1e-5, momentum: float = 0.1):
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(dim))
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    @classmethod
    def behind(cls, part_dims: Sequence[int]) -> "BNNeck":
        """Build one neck for the whole vector."""
        return cls(sum(part_dims))

    def initialise(self) -> None:
        """Reset the statistics and set the gains to 1."""
        reset_statistics(self)
        init.ones_(self.weight)

    def forward(self, features: Tensor) -> Tensor:
        if self.training:
            self.num_batches_tracked.add_(1)
        return F.batch_norm(
            features, self.running_mean, self.running_var, self.weight, None, self.training, self.momentum, self.eps
        )

    def width_groups(self, groups, reads: tuple[str, ...]) -> None:
        """Declare the norm, which has the channels of its input vector."""
        groups.layer("", writes=reads)


class LinearBNNeck(Part):
    """FC without bias followed by a BNNeck, for each part of a vector: (B, D) -> (B, D); MSINet, arXiv:2303.07065."""

    def __init__(self, part_dims: Sequence[int], init_std: float = 0.01):
        super().__init__()
        self.part_dims = tuple(part_dims)
        self.fc = nn.ModuleList(NormalLinear(dim, dim, bias=False, std=init_std) for dim in self.part_dims)
        self.norm = nn.ModuleList(BNNeck(dim) for dim in self.part_dims)

    @classmethod
    def behind(cls, part_dims: Sequence[int]) -> "LinearBNNeck":
        """Build a neck for each part."""
        return cls(part_dims)

    def forward(self, features: Tensor) -> Tensor:
        parts = zip(self.fc, self.norm, features.split(self.part_dims, 1), strict=True)
        return torch.cat([norm(fc(part)) for fc, norm, part in parts], 1)

    def width_groups(self, groups, reads: tuple[str, ...]) -> None:
        """Declare the channels; the FC of each part reads that part and writes its own group."""
        rest = list(reads)
        for number, dim in enumerate(self.part_dims):
            part = []
            while sum(groups.groups[name].size for name in part) < dim:
                part.append(rest.pop(0))
            groups.layer(f"fc.{number}", reads=tuple(part), writes=f"neck.{number}")
            groups.layer(f"norm.{number}", writes=f"neck.{number}")


class PartBNNeck(Part):
    """A BNNeck for each token, followed by `fuse_parts`, (B, P, C) -> (B, 2C); PASS, arXiv:2203.03931."""

    needs = ("part_tokens",)

    def __init__(self, dim: int, parts: int = 4):
        super().__init__()
        self.parts = nn.ModuleList(BNNeck(dim) for _ in range(parts))

    @classmethod
    def behind(cls, part_dims: Sequence[int]) -> "PartBNNeck":
        """Build BNNecks for tokens, which are as long as each part of the fused vector."""
        return cls(part_dims[0])

    def forward(self, parts: Tensor) -> Tensor:
        return fuse_parts(torch.stack([neck(part) for neck, part in zip(self.parts, parts.unbind(1), strict=True)], 1))

    def width_groups(self, groups, reads: tuple[str, ...]) -> None:
        """Declare the norms; `reads` are the groups of the fused vector, where both halves have the tokens' group."""
        for i in range(len(self.parts)):
            groups.layer(f"parts.{i}", writes=reads[:1])


NECKS: dict[str, type[Part]] = {
    "bnneck": BNNeck,
    "linear_bnneck": LinearBNNeck,
    "part_bnneck": PartBNNeck,
    "none": NoNeck,
}
