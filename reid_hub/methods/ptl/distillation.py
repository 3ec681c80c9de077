"""Giving a plain backbone what a network with a memory learned."""

import copy
from typing import Any, Self

from torch import Tensor

from reid_hub.data.batch import Batch
from reid_hub.errors import ReIDError
from reid_hub.losses import absolute_feature_loss
from reid_hub.methods.base import RunContext
from reid_hub.methods.ptl.training import PTLMethod
from reid_hub.methods.teacher import FrozenTeacher
from reid_hub.models import ReIDModel

# What an image is before it becomes an input: both networks see one and the same batch.
_INPUT = ("image_size", "image_mean", "image_std")


class STDMethod(PTLMethod):
    """Student-teacher distillation of Progressive Transfer Learning (arXiv:1908.02492), eq. 4.

    L = (1 - lam) * L_PTL + lam * mean |f_s - f_t|, f the features in front of any neck, not normalised. The teacher is
    frozen and in evaluation mode: its memory is zero, and it sees the student's batch, augmentation included.

    Args:
        model: the student, trained in place.
        teacher: any model with features of the same length; copied, and no part of the student's state. None with
            lam=0, the baseline, which asks none.
        lam: weight of the distillation, from 0 to 1.
        losses: options of `PTLMethod`.

    Raises:
        ReIDError: for another weight, or a teacher that is missing, has features of another length, or takes other
            images.
    """

    def __init__(self, model: ReIDModel, num_ids: int, *, teacher: ReIDModel | None, lam: float = 0.8, **losses: Any):
        super().__init__(model, num_ids, **losses)
        if not 0 <= lam <= 1:
            raise ReIDError(f"lam must be from 0 (no teacher) to 1 (nothing but the teacher), got {lam}")
        if lam and teacher is None:
            raise ReIDError(
                "`teacher` is required when lam > 0: give a teacher, or lam=0; `reid-hub train --recipe ptl` trains one"
            )
        self.lam = lam
        if lam:
            _check(model, teacher)
        self.teacher = FrozenTeacher(copy.deepcopy(teacher)) if lam else None

    @classmethod
    def from_run(cls, run: RunContext) -> Self:
        """Build the method for a run; see `Method.from_run`.

        Parts: "teacher", a `ReIDModel`; none where lam is 0.
        """
        return cls(run.model, run.num_ids, teacher=run.parts.get("teacher"), **run.options).start_from(run)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        output = self.model(batch["pixel_values"])
        parts = self.losses(output, batch["pids"])
        if self.teacher is None:
            return parts
        parts["feature"] = absolute_feature_loss(output.features, self.teacher(batch["pixel_values"]).features)
        return {**parts, "loss": (1 - self.lam) * parts["loss"] + self.lam * parts["feature"]}


def _check(student: ReIDModel, teacher: ReIDModel) -> None:
    if student.feature_dim != teacher.feature_dim:
        raise ReIDError(
            f"the teacher's features have {teacher.feature_dim} numbers, the student's {student.feature_dim}: they are "
            "compared one by one, so choose a student with as many"
        )
    for name in _INPUT:
        mine, its = (list(getattr(model.config, name)) for model in (student, teacher))
        if mine != its:
            raise ReIDError(f"teacher and student see the same batch, but {name} is {its} and {mine}: make them equal")
