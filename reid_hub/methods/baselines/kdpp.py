"""KD++: distillation of logits, and of the norm and direction of features (arXiv:2305.17007, ECCV 2024)."""

import copy
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reid_hub.data.batch import Batch
from reid_hub.errors import MissingError, ReIDError
from reid_hub.losses import distillation_loss, norm_direction_loss
from reid_hub.methods.base import RunContext
from reid_hub.methods.state import read_state
from reid_hub.methods.supervised import SupervisedMethod
from reid_hub.methods.teacher import FrozenTeacher
from reid_hub.models import ReIDModel


class KDPPMethod(SupervisedMethod):
    """Supervised training beside a frozen teacher that was trained on the same identities.

    loss = supervised + kd_weight * r * L_kd + nd_weight * L_nd: the teacher's logits, from behind its neck, teach the
    student's (`distillation_loss`); its class means, of features in front of the neck, are what the student's features
    turn to (`norm_direction_loss`). Both networks see the same augmented images. If their features differ in length,
    a projector (BN, dropout, FC) stands between the student's and L_nd; `export` leaves it out. Defaults are those of
    the comparison in OSKT (arXiv:2511.06016, supplement); the authors use T = 4 and nd_weight 2 on CIFAR-100.

    Args:
        teacher: copied, frozen and kept in evaluation mode; no part of the method's state.
        teacher_classifier: weight of the teacher's classifier, (num_ids, embedding_dim); None leaves L_kd out.
        class_means: means of the teacher's features, (num_ids, feature_dim), see `class_means`; None leaves L_nd out.
        temperature: T of L_kd.
        kd_warmup_epochs: L_kd is weighted by r = min(1, epoch / this), with whole epochs counted from 0; 0 is r = 1.
        supervised: options of `SupervisedMethod`.

    Raises:
        ReIDError: for matrices of another shape, or if nothing of the teacher is given.
    """

    citation = """@inproceedings{wang2024kdpp,
  title={Improving Knowledge Distillation via Regularizing Feature Direction and Norm},
  author={Wang, Yuzhu and Cheng, Lechao and Duan, Manni and Wang, Yongheng and Feng, Zunlei and Kong, Shu},
  booktitle={ECCV},
  year={2024}
}"""

    def __init__(
        self,
        model: ReIDModel,
        num_ids: int,
        *,
        teacher: ReIDModel,
        teacher_classifier: Tensor | None,
        class_means: Tensor | None,
        kd_weight: float = 1.0,
        nd_weight: float = 1.0,
        temperature: float = 1.0,
        kd_warmup_epochs: float = 0.0,
        **supervised: Any,
    ):
        super().__init__(model, num_ids, **supervised)
        if teacher_classifier is None and class_means is None:
            raise ReIDError("the teacher teaches nothing: give its classifier, its class means, or both")
        if teacher_classifier is not None and isinstance(self.classifier, nn.ModuleList):
            raise ReIDError("a student with a classifier for each part has no logits to compare: leave per_part False")
        _check_shape("teacher_classifier", teacher_classifier, (num_ids, teacher.embedding_dim))
        _check_shape("class_means", class_means, (num_ids, teacher.feature_dim))
        self.kd_weight, self.nd_weight, self.temperature = kd_weight, nd_weight, temperature
        self.kd_warmup_epochs, self.epoch = kd_warmup_epochs, 0.0
        config = model.config
        self.teacher = FrozenTeacher(copy.deepcopy(teacher), mean=config.image_mean, std=config.image_std)
        self.register_buffer("teacher_classifier", _constant(teacher_classifier), persistent=False)
        directions = None if class_means is None else F.normalize(class_means.detach().double(), dim=1).float()
        self.register_buffer("directions", directions, persistent=False)
        self.projector = nn.Identity()
        if directions is not None and model.feature_dim != teacher.feature_dim:
            linear = nn.Linear(model.feature_dim, teacher.feature_dim)
            nn.init.normal_(linear.weight, std=0.01)
            nn.init.normal_(linear.bias, std=0.01)
            self.projector = nn.Sequential(nn.BatchNorm1d(model.feature_dim), nn.Dropout(0.5), linear)

    @classmethod
    def from_run(cls, run: RunContext) -> Self:
        """Build the method for a run; see `Method.from_run`. Class means are those of the run's training images.

        Parts: "teacher", a `ReIDModel`; without a classifier beside its checkpoint only its features are distilled.

        Raises:
            ReIDError: if the teacher was trained on other identities.
        """
        teacher: ReIDModel = run.part("teacher", "`reid-hub distill kdpp`, with the folder of a trained model")
        classifier = None
        try:
            if teacher.name_or_path:
                classifier = read_state(teacher.name_or_path, run.subset.identities).get("classifier.weight")
        except MissingError:
            pass
        if classifier is None:
            where = teacher.name_or_path or "the teacher"
            run.log(f"{where} has no single classifier beside it: only its features are distilled")
        # By the test transform, in front of the neck: behind it means are near zero and their directions noise.
        features = run.embed(teacher, retrieve="features")
        means = class_means(features, torch.as_tensor(run.subset.pids), run.num_ids)
        lessons = {"teacher": teacher, "teacher_classifier": classifier, "class_means": means}
        return cls(run.model, run.num_ids, **lessons, **run.options).start_from(run)

    def set_progress(self, step: int, total_steps: int, epoch: float) -> None:
        self.epoch = epoch

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        output = self.model(batch["pixel_values"])
        outputs = self.losses(output, batch["pids"])
        taught = self.teacher(batch["pixel_values"], retrieve="neck")  # where its logits are taken
        if self.teacher_classifier is not None:
            logits, teacher_logits = self.classifier(output.embeddings), taught.embeddings @ self.teacher_classifier.T
            outputs["kd"] = distillation_loss(logits, teacher_logits, self.temperature)
            outputs["loss"] = outputs["loss"] + self.kd_weight * self._ramp() * outputs["kd"]
        if self.directions is not None:
            projected = self.projector(output.features)
            outputs["nd"] = norm_direction_loss(projected, taught.features, self.directions[batch["pids"]])
            outputs["loss"] = outputs["loss"] + self.nd_weight * outputs["nd"]
        return outputs

    def _ramp(self) -> float:
        return min(1.0, int(self.epoch) / self.kd_warmup_epochs) if self.kd_warmup_epochs else 1.0


def class_means(features: Tensor, pids: Tensor, num_ids: int) -> Tensor:
    """Mean feature of each identity in float64, (N, C) and (N,) of 0..num_ids-1 -> (num_ids, C).

    For KD++: features of the teacher in front of its neck, in evaluation mode, of the training set under the test
    transform; computed once. (The published code averages one randomly augmented view of each image, rounded.)

    Raises:
        ReIDError: for an identity without an image.
    """
    counts = torch.bincount(pids, minlength=num_ids)
    if len(counts) != num_ids or not counts.all():
        raise ReIDError(
            f"class means need at least one image of each of the {num_ids} identities 0..{num_ids - 1}, got "
            f"{int((counts > 0).sum())} identities, the highest {len(counts) - 1}: relabel them as for training"
        )
    sums = torch.zeros(num_ids, features.shape[1], dtype=torch.float64, device=features.device)
    return sums.index_add_(0, pids, features.double()) / counts[:, None]


def _constant(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().clone().float()


def _check_shape(name: str, tensor: Tensor | None, shape: tuple[int, int]) -> None:
    if tensor is not None and tuple(tensor.shape) != shape:
        raise ReIDError(
            f"{name} must be {shape}, identities by the teacher's width, got {tuple(tensor.shape)}: it must come from "
            "the teacher and from the student's training set"
        )
