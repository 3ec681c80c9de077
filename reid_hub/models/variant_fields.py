"""Configuration fields shared by variants of several families."""

from typing import Any


def factorized(embedding_dim: int) -> dict[str, Any]:
    """Factorized Distillation (arXiv:1811.08073, 2.2-2.3): stabilised max pooling, FC without bias, and BN."""
    return {"pooling": "stabilised_max", "embedding": {"name": "linear", "dim": embedding_dim}, "neck": "none"}


def progressive(embedding_dim: int, side: dict[str, Any] | None = None) -> dict[str, Any]:
    """Progressive Transfer Learning (arXiv:1908.02492): a 1x1 convolution without norm computes the features.

    The paper's ResNet-50 has stride 32. Without `side`, these are the fields of its baselines and students.
    """
    embedding = {"name": "linear", "dim": embedding_dim, "bias": True, "norm": False}
    return {"embedding": embedding, "neck": "none", "last_stride": None, "side": side}
