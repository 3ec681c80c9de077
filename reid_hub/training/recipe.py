"""What a training recipe is."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from reid_hub.data.augmentation_options import Augmentation
from reid_hub.errors import ReIDError
from reid_hub.training.schedules import Schedule

# Weight decay by the images that a pre-training shows in all: 9, 18 and 90 epochs of ImageNet, or ten times as many of
# its tenth; the five budgets of KDEP (arXiv:2203.05180).
BUDGET_DECAYS = {11.5e6: 5e-4, 23e6: 4e-4, 115e6: 1e-4}


@dataclass(frozen=True)
class Recipe:
    """How a model is trained: plain values only, so that a recipe can be printed, changed and stored with a result.

    Attributes:
        source: where the values come from.
        method, options: which entry of METHODS and its keyword arguments.
        sampler: "identity" draws batches of `num_instances` images per identity, "identity_once" the same with every
            identity at most once an epoch, "shuffle" draws images.
        batch_size: images per process and step.
        optimizer, optimizer_options: an entry of OPTIMIZERS and its keyword arguments.
        weight_decay: coupled L2 on all trainable parameters, as in the sources.
        decay_by_budget: the weight decay follows the number of images shown, by `BUDGET_DECAYS`, unless it is set.
        bias_lr_factor: rate of the biases relative to that of the weights.
        config: fields of the model's `ReIDConfig` that the recipe prescribes.
        interpolation: of the training images; the test images follow the model's own configuration.
    """

    source: str
    learning_rate: float
    schedule: Schedule
    method: str = "supervised"
    options: Mapping[str, Any] = field(default_factory=dict)
    sampler: str = "identity"
    batch_size: int = 64
    num_instances: int = 4
    optimizer: str = "adam"
    optimizer_options: Mapping[str, Any] = field(default_factory=dict)
    weight_decay: float = 5e-4
    decay_by_budget: bool = False
    bias_lr_factor: float = 1.0
    augmentation: Augmentation = Augmentation()  # noqa: RUF009 - frozen
    config: Mapping[str, Any] = field(default_factory=dict)
    interpolation: str = "bilinear"

    def __post_init__(self):
        if self.sampler not in (names := ("identity", "identity_once", "shuffle")):
            raise ReIDError(f"a recipe's sampler must be one of {', '.join(names)}, got {self.sampler!r}")
        if self.sampler != "shuffle" and self.batch_size % self.num_instances:
            raise ReIDError(
                f"identity batches need batch_size divisible by num_instances, got {self.batch_size} and "
                f"{self.num_instances}"
            )

    @property
    def epochs(self) -> int:
        return self.schedule.epochs

    def decay_for(self, images_shown: float) -> float:
        """The weight decay of a run: the recipe's, or that of the budget nearest in proportion to the images shown."""
        if not self.decay_by_budget:
            return self.weight_decay
        return BUDGET_DECAYS[min(BUDGET_DECAYS, key=lambda budget: abs(math.log(budget / images_shown)))]
