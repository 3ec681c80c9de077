"""Layers that reduce the dimension of an embedding; Embedding Compression, arXiv:2405.14730."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .parts import Part


class Reduction(Part):
    """Base class of layers that shorten an embedding, (B, D) -> (B, dim); a `Quantizer` may follow.

    Args:
        in_features: length D of the input.
        dim: length of the output.
        quantization: "int8" quantises the output; None keeps float32.
        granularity: granularity of the codes' scale, see `Quantizer`.
    """

    def __init__(
        self,
        in_features: int,
        *,
        dim: int,
        quantization: Literal["int8"] | None = None,
        granularity: Literal["tensor", "dimension", "vector"] = "tensor",
    ):
        super().__init__()
        self.in_features, self.dim = in_features, dim

    @classmethod
    def behind(cls, part_dims: Sequence[int], **options) -> "Reduction":
        """Build the layer for the whole embedding.

        Raises:
            ValueError: if the embedding is shorter than `dim`.
        """
        full, dim = sum(part_dims), options["dim"]
        if dim > full:
            raise ValueError(f"dim of codes must be between 1 and {full}, the length of the embedding, got {dim}")
        return cls(full, **options)

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        """Raise a ValueError if `dim` is below 1."""
        if options["dim"] < 1:
            raise ValueError(f"dim of codes must be at least 1, got {options['dim']}")


class Slice(Reduction):
    """The first `dim` dimensions."""

    def forward(self, vectors: Tensor) -> Tensor:
        return vectors[:, : self.dim]


class LowRank(Reduction):
    """Linear projection without bias, z = A e.

    The matrix B that maps z back to D dimensions for the classifier exists only in training.
    """

    def __init__(self, in_features: int, *, dim: int, **codes):
        super().__init__(in_features, dim=dim, **codes)
        self.weight = nn.Parameter(torch.empty(dim, in_features))

    def initialise(self) -> None:
        """Initialise from a truncated normal, as in the ViT backbone."""
        init.trunc_normal_(self.weight, std=0.02)

    def forward(self, vectors: Tensor) -> Tensor:
        return nn.functional.linear(vectors, self.weight)


class Pruned(Reduction):
    """The dimensions in `kept`.

    Attributes:
        kept: (dim,) int64, ascending; the first `dim` dimensions until pruning.
    """

    def __init__(self, in_features: int, *, dim: int, **codes):
        super().__init__(in_features, dim=dim, **codes)
        self.register_buffer("kept", torch.arange(dim))

    def initialise(self) -> None:
        """Keep the first dimensions."""
        init.copy_(self.kept, torch.arange(self.dim))

    def forward(self, vectors: Tensor) -> Tensor:
        return vectors[:, self.kept]


REDUCTIONS: dict[str, type[Reduction]] = {"slice": Slice, "low_rank": LowRank, "pruned": Pruned}
