import torch
from torch import Tensor

from reid_hub.losses.distances import at_least_float32

# Squared distances outside of this range are clamped, as in the code published with BoT and OSKT.
LOWEST, HIGHEST = 1e-12, 1e12


def center_loss(features: Tensor, centers: Tensor, pids: Tensor) -> Tensor:
    """Mean squared distance to the identity's center, (B, C), (K, C) and (B,) -> scalar (ECCV 2016, Wen et al.)."""
    difference = at_least_float32(features) - centers[pids]
    return difference.square().sum(1).clamp(LOWEST, HIGHEST).mean()


@torch.no_grad()
def move_centers(features: Tensor, centers: Tensor, pids: Tensor, lr: float = 0.5) -> Tensor:
    """Centers after one step of plain SGD on `center_loss`, (B, C), (K, C) and (B,) -> (K, C).

    c_j - lr * (2 / B) * sum over images i of identity j of (c_j - f_i): the published rule (a second SGD optimiser on
    the unweighted loss) in closed form.
    """
    difference = centers[pids] - at_least_float32(features)
    squared = difference.square().sum(1, keepdim=True)
    difference = difference * ((squared >= LOWEST) & (squared <= HIGHEST))  # a clamped distance has no slope
    gradient = torch.zeros_like(centers).index_add_(0, pids, difference * (2 / len(pids)))
    return centers - lr * gradient
