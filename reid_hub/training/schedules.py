"""Learning rates by epoch, as published, for runs of any length."""

import math
from dataclasses import dataclass

from reid_hub.errors import ReIDError


@dataclass(frozen=True)
class Schedule:
    """A learning-rate schedule: plain numbers and the published formula that reads them.

    Attributes:
        kind: "step" or "cosine".
        epochs: the number of epochs that the other numbers are written for.
        first_epoch: what the formula calls the first epoch: papers count from 0 or from 1.
        warmup_epochs: length of the linear warm-up, in the formula's count.
        warmup_factor: where the warm-up starts: a factor of the rate ("step") or of the base rate ("cosine").
        milestones: "step" multiplies by `gamma` from each of these epochs on.
        final_factor: "cosine" ends at this factor of the base rate.
    """

    kind: str
    epochs: int
    first_epoch: int = 1
    warmup_epochs: int = 0
    warmup_factor: float = 0.01
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    final_factor: float = 0.002

    def __post_init__(self):
        if self.kind not in ("step", "cosine"):
            raise ReIDError(f"a schedule's kind must be 'step' or 'cosine', got {self.kind!r}")
        if self.epochs < 1:
            raise ReIDError(f"a schedule needs at least one epoch, got {self.epochs}")

    def rate(self, epoch: int, base: float, group: float | None = None) -> float:
        """Learning rate in an epoch.

        step: group * gamma ** (milestones reached) * (w (1 - e/W) + e/W while e < W), e the formula's epoch.
        cosine (timm, TransReID): start + e (group - start) / W while e < W, else end + (group - end) (1 + cos(pi e/E))
        / 2 with start = w * base and end = final_factor * base, which are the same for all parameter groups.

        Args:
            epoch: counted from 0.
            base: the recipe's learning rate.
            group: the rate of a parameter group, e.g. twice the base for biases; None is the base.
        """
        group, e = base if group is None else group, epoch + self.first_epoch
        ramp = e / self.warmup_epochs if e < self.warmup_epochs else 1.0
        if self.kind == "step":
            decay = self.gamma ** sum(e >= milestone for milestone in self.milestones)
            return group * decay * (self.warmup_factor * (1 - ramp) + ramp)
        if ramp < 1:
            return self.warmup_factor * base + ramp * (group - self.warmup_factor * base)
        end = self.final_factor * base
        return end + (group - end) * (1 + math.cos(math.pi * e / self.epochs)) / 2

    def rate_at(self, step: int, total_steps: int, base: float, group: float | None = None) -> float:
        """Learning rate of optimiser step `step` of `total_steps`.

        A run of any length walks through all epochs of the schedule, in proportion: a run of half as many epochs stays
        half as long in each, warm-up and milestones included. With the schedule's own number of epochs, the rate is the
        published one, constant within each epoch.
        """
        epoch = min(step * self.epochs // total_steps, self.epochs - 1)
        return self.rate(epoch, base, group)
