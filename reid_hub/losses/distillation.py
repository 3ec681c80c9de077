import torch
import torch.nn.functional as F
from torch import Tensor

from reid_hub.losses.distances import at_least_float32


def distillation_loss(logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)), (B, K) twice -> scalar, mean over images.

    arXiv:1503.02531, section 2; T^2 keeps the size of the gradients. Nothing flows back to the teacher.
    """
    student = (at_least_float32(logits) / temperature).log_softmax(1)
    teacher = (at_least_float32(teacher_logits.detach()) / temperature).log_softmax(1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def norm_direction_loss(features: Tensor, teacher_features: Tensor, directions: Tensor) -> Tensor:
    """Turn features towards their identity and make them as long as the teacher's, (B, C) three times -> scalar.

    KD++ (arXiv:2305.17007): mean over images of 1 - <f_s, e> / max(|f_s|, |f_t|). Up to the teacher's norm a longer
    feature is better; beyond it only the direction counts. The gradient goes through the maximum to the student.

    Args:
        directions: of each image's identity, unit vectors.
    """
    features, teacher_features = at_least_float32(features), at_least_float32(teacher_features.detach())
    norm = torch.maximum(features.norm(dim=1), teacher_features.norm(dim=1)).clamp(min=1e-12)
    return (1 - (features * directions).sum(1) / norm).mean()


def absolute_feature_loss(features: Tensor, teacher_features: Tensor) -> Tensor:
    """Mean absolute difference to a teacher's features over images and numbers, (B, C) twice -> scalar.

    Student-teacher distillation of PTL (arXiv:1908.02492), eq. 4. Nothing flows back to the teacher.
    """
    features = at_least_float32(features)
    return F.l1_loss(features, teacher_features.detach().to(features))


def representation_loss(vectors: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Half the squared distance to a teacher's vectors, (B, D) twice -> scalar: 1 / (2 B) sum_i w_i |t_i - v_i|^2.

    Factorized Distillation (arXiv:1811.08073), eqs. 3 and 4. Nothing flows back to the teacher.

    Args:
        weights: (B,) of the images, 0 to leave one out; the sum is divided by B all the same.
    """
    vectors = at_least_float32(vectors)
    squared = (vectors - targets.detach().to(vectors)).square().sum(1)
    return (squared if weights is None else squared * weights.to(squared)).mean() / 2
