"""Losses: tensors in, one scalar out, computed in at least float32."""

from collections.abc import Callable

from torch import Tensor

from reid_hub.losses.center import center_loss, move_centers
from reid_hub.losses.circle import circle_loss
from reid_hub.losses.distillation import (
    absolute_feature_loss,
    distillation_loss,
    norm_direction_loss,
    representation_loss,
)
from reid_hub.losses.identity import identity_loss
from reid_hub.losses.triplet import batch_hard_triplet_loss

__all__ = [
    "METRIC_LOSSES",
    "absolute_feature_loss",
    "batch_hard_triplet_loss",
    "center_loss",
    "circle_loss",
    "distillation_loss",
    "identity_loss",
    "move_centers",
    "norm_direction_loss",
    "representation_loss",
]

# Losses that compare the images of a batch with each other: (features, pids, **options) -> scalar.
METRIC_LOSSES: dict[str, Callable[..., Tensor]] = {"triplet": batch_hard_triplet_loss, "circle": circle_loss}
