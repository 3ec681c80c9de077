import torch
import torch.nn.functional as F
from torch import Tensor

from reid_hub.losses.distances import at_least_float32, pairwise_euclidean, same_identity


def batch_hard_triplet_loss(
    features: Tensor,
    pids: Tensor,
    *,
    margin: float | None = 0.3,
    hard_factor: float = 0.0,
    normalise: bool = False,
) -> Tensor:
    """Pull the farthest image of an identity closer than the nearest of any other, (B, C) and (B,) -> scalar.

    arXiv:1703.07737, eq. 5, mean over anchors; an anchor may be its own farthest positive, and one without any negative
    in the batch adds nothing. Batches of several processes are not joined.

    Args:
        margin: of the hinge; None is the soft margin log(1 + exp(d_ap - d_an)).
        hard_factor: h makes the task harder: d_ap * (1 + h) against d_an * (1 - h) (OSKT, BoT).
        normalise: compare on the unit sphere.
    """
    if normalise:
        features = F.normalize(at_least_float32(features), dim=1)
    distances, same = pairwise_euclidean(features), same_identity(pids)
    farthest_positive = distances.masked_fill(~same, 0).amax(1)
    nearest_negative = distances.masked_fill(same, torch.inf).amin(1)
    gap = farthest_positive * (1 + hard_factor) - nearest_negative * (1 - hard_factor)
    return (F.softplus(gap) if margin is None else F.relu(gap + margin)).mean()
