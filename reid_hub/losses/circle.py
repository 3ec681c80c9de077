import torch
import torch.nn.functional as F
from torch import Tensor

from reid_hub.losses.distances import pairwise_cosine, same_identity


def circle_loss(features: Tensor, pids: Tensor, *, margin: float = 0.25, gamma: float = 128.0) -> Tensor:
    """Circle loss on all pairs of a batch, (B, C) and (B,) -> scalar.

    arXiv:2002.10857, eq. 8: per anchor log(1 + sum_n exp(g a_n (s_n - m)) * sum_p exp(-g a_p (s_p - 1 + m))) with
    a_n = [s_n + m]+ and a_p = [1 + m - s_p]+ held constant, mean over the anchors; an anchor without a positive or a
    negative adds nothing. Defaults are the paper's for re-identification.
    """
    similarity, same = pairwise_cosine(features), same_identity(pids)
    positive = same & ~torch.eye(len(pids), dtype=torch.bool, device=pids.device)
    weight_p, weight_n = F.relu(1 + margin - similarity).detach(), F.relu(similarity + margin).detach()
    logit_p = (-gamma * weight_p * (similarity - 1 + margin)).masked_fill(~positive, -torch.inf)
    logit_n = (gamma * weight_n * (similarity - margin)).masked_fill(same, -torch.inf)
    return F.softplus(logit_p.logsumexp(1) + logit_n.logsumexp(1)).mean()
