"""Comparing every vector of a batch with every other, in full precision whatever the model computes in."""

import torch
import torch.nn.functional as F
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor itself if it is float32 or float64, else a float32 copy."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def pairwise_euclidean(features: Tensor) -> Tensor:
    """Euclidean distance between all rows, (B, C) -> (B, B); never below 1e-6, where the root has a finite slope."""
    with torch.autocast(features.device.type, enabled=False):  # autocast would multiply in half precision
        features = at_least_float32(features)
        squares = features.square().sum(1)
        squared = squares[:, None] + squares[None] - 2 * features @ features.T
        return squared.clamp(min=1e-12).sqrt()


def pairwise_cosine(features: Tensor) -> Tensor:
    """Cosine similarity between all rows, (B, C) -> (B, B)."""
    with torch.autocast(features.device.type, enabled=False):
        unit = F.normalize(at_least_float32(features), dim=1)
        return unit @ unit.T


def same_identity(pids: Tensor) -> Tensor:
    """Which rows carry the same identity, (B,) -> (B, B) bool; a row does with itself."""
    return pids[:, None] == pids[None]
