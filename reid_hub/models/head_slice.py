"""The first coordinates of an embedding."""

from torch import Tensor, nn


class Slice(nn.Module):
    """The first `dim` coordinates, (B, D) -> (B, dim); Embedding Compression, arXiv:2405.14730."""

    def __init__(self, in_features: int, dim: int):
        super().__init__()
        self.in_features, self.dim = in_features, dim

    def forward(self, vectors: Tensor) -> Tensor:
        return vectors[:, : self.dim]
