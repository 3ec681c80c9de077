"""Embedding layers, between pooling and neck, as in FD, OSNet, PTL and MGN."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .layers import FanInLinear, NormalLinear, SpreadNorm
from .parts import Part


class NoEmbedding(Part):
    """No embedding layer: the pooled vector is the feature vector, (B, D) -> (B, D)."""

    gives = ()

    def __init__(self, part_dims: Sequence[int]):
        super().__init__()
        self.part_dims = tuple(part_dims)

    @classmethod
    def behind(cls, part_dims: Sequence[int]) -> "NoEmbedding":
        """Keep the lengths of the parts."""
        return cls(part_dims)

    def forward(self, pooled: Tensor) -> Tensor:
        return pooled

    def width_groups(self, groups, reads: tuple[str, ...]) -> tuple[str, ...]:
        """Return the groups of the input."""
        return reads


class LinearEmbedding(Part):
    """Fully connected layer, batch norm and, for OSNet, ReLU: (B, C) -> (B, dim).

    Factorized Distillation (arXiv:1811.08073), section 2.3, uses neither bias nor ReLU, OSNet (arXiv:1905.00953) both;
    Progressive Transfer Learning uses neither norm nor ReLU.

    Args:
        init_std: standard deviation of the initial weights; None uses Kaiming initialisation.

    Attributes:
        part_dims: lengths of the concatenated output vectors; here a single one.
    """

    linear_class: type[nn.Linear] = nn.Linear
    norm_class: type[nn.Module] = nn.BatchNorm1d

    def __init__(
        self,
        in_features: int,
        *,
        dim: int,
        bias: bool = False,
        norm: bool = True,
        relu: bool = False,
        init_std: float | None = None,
    ):
        super().__init__()
        if init_std is None:
            self.fc = self.linear_class(in_features, dim, bias=bias)
        else:
            self.fc = NormalLinear(in_features, dim, bias=bias, std=init_std)
        self.bn = self.norm_class(dim) if norm else nn.Identity()
        self.relu = nn.ReLU() if relu else nn.Identity()
        self.part_dims = (dim,)

    @classmethod
    def behind(cls, part_dims: Sequence[int], **options) -> "LinearEmbedding":
        """Build one layer for all parts concatenated."""
        return cls(sum(part_dims), **options)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.relu(self.bn(self.fc(pooled)))

    def width_groups(self, groups, reads: tuple[str, ...]) -> tuple[str, ...]:
        """Declare the channels of the embedding layer; return the groups of its output."""
        groups.layer("fc", reads=reads, writes="embedding")
        groups.layer("bn", writes="embedding")
        return ("embedding",)


class SharedLinearEmbedding(LinearEmbedding):
    """One embedding layer applied to each part of a person; outputs are concatenated: (B, P, C) -> (B, P * dim).

    As in the public reproduction of MGN (arXiv:1804.01438), where the norm also computes its statistics per part; the
    paper has a separate layer for each part.
    """

    needs = ("parts",)
    linear_class = FanInLinear
    norm_class = SpreadNorm

    @classmethod
    def behind(cls, part_dims: Sequence[int], **options) -> "SharedLinearEmbedding":
        """Build one layer that is shared by all parts."""
        layer = cls(part_dims[0], **options)
        layer.part_dims *= len(part_dims)
        return layer

    def forward(self, parts: Tensor) -> Tensor:
        return torch.cat([super(SharedLinearEmbedding, self).forward(part) for part in parts.unbind(1)], 1)


EMBEDDINGS: dict[str, type[Part]] = {
    "none": NoEmbedding,
    "linear": LinearEmbedding,
    "shared_linear": SharedLinearEmbedding,
}
