import torch.nn.functional as F
from torch import Tensor

from reid_hub.losses.distances import at_least_float32


def identity_loss(logits: Tensor, pids: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy over the training identities, (B, K) and (B,) -> scalar.

    The target is (1 - smoothing) * one-hot + smoothing / K (arXiv:1512.00567, section 7); 0 is plain cross-entropy.
    """
    return F.cross_entropy(at_least_float32(logits), pids, label_smoothing=smoothing)
