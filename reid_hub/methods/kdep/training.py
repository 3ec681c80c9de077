"""Training a student to say what a teacher's features are: KDEP's pre-training."""

import math
from typing import Self

import numpy as np
import torch
from torch import Tensor

from reid_hub.data.batch import Batch
from reid_hub.errors import ReIDError
from reid_hub.methods.base import Method, RunContext
from reid_hub.methods.kdep.alignment import PARAMETRIC, make_alignment
from reid_hub.methods.kdep.basis import Basis
from reid_hub.methods.kdep.tap import Tap
from reid_hub.methods.kdep.teacher import Crops, Features
from reid_hub.models import ReIDModel

# Weights w of the paper's pairs, which make the loss as large as that of a classification of ImageNet.
PAIR_WEIGHTS = {
    "sp-res50/res18": 20.0,
    "ms-res50/res18": 3.0,
    "swsl-res50/res18": 1.0,
    "meal-v2-res50/res18": 1.0,
    "swin-b/res18": 3.0,
    "ms-res50/mobilenetv2": 3.0,
}

_SAMPLE = 1024  # images that the scale of a new pair is computed from


class KDEPMethod(Method):
    """KDEP (arXiv:2203.05180): regress the teacher's pooled features without labels; w * mean((s - c A(t))^2).

    The mean is over batch and channels. The student's feature is the average of its last map in front of the final
    ReLU, which is left out nowhere else. Only the backbone is trained: pooling, embedding layer and neck keep their
    weights and need no gradient.

    Args:
        model: the student, any model with a signed feature; trained in place.
        num_ids: not used; there are no labels.
        features: what the teacher says; it is no part of the method's state.
        basis: of the teacher, for the alignments that need one.
        align: a key of `ALIGNMENTS`; `temperature` and `power` are those of "svd+pts".
        weight, scale: w and c. In the paper's pairs c is 1 and w one of `PAIR_WEIGHTS`; `new_pair` gives both for
            another pair.
        seed: of the channels that "cs.rand" draws.

    Raises:
        ReIDError: if teacher, basis and student do not fit, see `make_alignment`, or the student's features end in a
            ReLU that cannot be left out.
    """

    citation = """@inproceedings{he2022kdep,
  title     = {Knowledge Distillation as Efficient Pre-training: Faster Convergence, Higher Data-efficiency, and Better
               Transferability},
  author    = {He, Ruifei and Sun, Shuyang and Yang, Jihan and Bai, Song and Qi, Xiaojuan},
  booktitle = {CVPR}, year = {2022}
}"""

    def __init__(
        self,
        model: ReIDModel,
        num_ids: int = 0,
        *,
        features: Features,
        basis: Basis | None = None,
        align: str = "svd+pts",
        temperature: float = 0.1,
        power: float = 3,
        weight: float = 1.0,
        scale: float = 1.0,
        seed: int = 0,
    ):
        super().__init__(model)
        self.weight, self.scale, tap = check_weight(weight), check_weight(scale, "scale of the targets"), Tap(model)
        options = {"basis": basis, "seed": seed, "temperature": temperature, "power": power}
        self.alignment = make_alignment(align, features.dim, tap.dim, **options).float()
        if align in PARAMETRIC and not tap.is_map:
            raise ReIDError(f"the alignment {align!r} needs a student with a feature map, this one has tokens")
        if self.alignment.relu:
            tap = Tap(model, relu=True)
        elif not tap.signed:
            raise ReIDError(
                "the student's features are never negative, and no final ReLU that could be left out was found in its "
                "backbone: targets have both signs. Give another student, or the alignment 'post-relu'"
            )
        self.features, self.tap = features, tap
        self.crops = features.crops
        model.requires_grad_(False)
        model.backbone.requires_grad_(True)

    @classmethod
    def from_run(cls, run: RunContext) -> Self:
        """Build the method for a run; see `Method.from_run`. Without a weight among the options, that of `new_pair`.

        Parts: "features", what the teacher says; "basis", for the alignments that need one; "crops", whose targets
        decide weight and scale of a new pair.
        """
        makes = "`reid-hub pretrain`, which asks the teacher"
        features, basis = run.part("features", makes), run.parts.get("basis")
        method = cls(run.model, run.num_ids, features=features, basis=basis, **{"seed": run.seed, **run.options})
        if "weight" not in run.options:
            method.weight, method.scale = new_pair(method.alignment(_sample(run.part("crops", makes))))
        return method

    def set_progress(self, step: int, total_steps: int, epoch: float) -> None:
        self.features.set_epoch(int(epoch))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        pixel_values = batch["pixel_values"]
        with torch.no_grad():
            target = self.scale * self.alignment(self.features(pixel_values, batch["indices"]))
        student = self.alignment.compared(self.tap, self.tap.last(pixel_values))
        distance = self.alignment.distance(student, target)
        return {"loss": self.weight * distance, "distance": distance}


def check_weight(weight: float, what: str = "weight of the loss") -> float:
    """The weight of a loss, or another factor, if it can be one.

    Raises:
        ReIDError: if it is not above 0, or not finite.
    """
    if not 0 < weight < math.inf:
        raise ReIDError(f"the {what} must be above 0 and finite, got {weight}")
    return weight


def _sample(crops: Crops) -> Tensor:
    """The teacher's features of the first crops of evenly spread images, (B, D)."""
    rows = np.linspace(0, len(crops) - 1, min(_SAMPLE, len(crops))).astype(int)
    return torch.cat([crops.represent(batch).cpu() for batch in np.array_split(rows, -(-len(rows) // 64))])


def new_pair(targets: Tensor) -> tuple[float, float]:
    """w and c for a pair that the paper has not: w * mean((c * target)^2) = ln 1000, where a classification starts.

    c makes the targets' mean square 1. The weight alone would do it as well, but features begin at about that size
    whatever the teacher: where its own are of another, a weight of hundreds throws the student off in the first steps.

    Args:
        targets: what an alignment gives for some images, (B, D).

    Raises:
        ReIDError: if the targets are all 0.
    """
    size = targets.double().square().mean().item()
    if not size > 0:
        raise ReIDError("the teacher's targets are all 0: give another teacher, other images or another alignment")
    return math.log(1000), size**-0.5
