"""Chosen coordinates of an embedding."""

import torch
from torch import Tensor, nn
from transformers import initialization as init


class Pruned(nn.Module):
    """The coordinates `kept`, ascending, (B, D) -> (B, dim); Embedding Compression, arXiv:2405.14730.

    Attributes:
        kept: (dim,) int64; the first ones until something is pruned.
    """

    def __init__(self, in_features: int, dim: int):
        super().__init__()
        self.in_features, self.dim = in_features, dim
        self.register_buffer("kept", torch.arange(dim))

    def initialise(self) -> None:
        """Keep the first coordinates."""
        init.copy_(self.kept, torch.arange(self.dim))

    def forward(self, vectors: Tensor) -> Tensor:
        return vectors[:, self.kept]
