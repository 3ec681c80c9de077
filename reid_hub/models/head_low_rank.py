"""A linear map of an embedding to fewer dimensions."""

import torch
from torch import Tensor, nn
from transformers import initialization as init


class LowRank(nn.Module):
    """z = A e without bias, (B, D) -> (B, dim); Embedding Compression, arXiv:2405.14730.

    The map B that takes z back to D dimensions in front of the classifier exists in training only.
    """

    def __init__(self, in_features: int, dim: int):
        super().__init__()
        self.in_features, self.dim = in_features, dim
        self.weight = nn.Parameter(torch.empty(dim, in_features))

    def initialise(self) -> None:
        """Truncated normal, as in the ViT around it."""
        init.trunc_normal_(self.weight, std=0.02)

    def forward(self, vectors: Tensor) -> Tensor:
        return nn.functional.linear(vectors, self.weight)
