"""Training with identity labels: a classifier on the neck's output, a metric loss on the features in front of it."""

import inspect
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from reid_hub.data.batch import Batch
from reid_hub.errors import ReIDError
from reid_hub.losses import METRIC_LOSSES, center_loss, identity_loss, move_centers
from reid_hub.losses.distances import at_least_float32
from reid_hub.methods.base import RunContext, gather_batch
from reid_hub.methods.memory import RememberingMethod
from reid_hub.methods.state import start_state
from reid_hub.models import ReIDModel, ReIDOutput
from reid_hub.registry import lookup


class SupervisedMethod(RememberingMethod):
    """Identity classification plus metric losses: "Bag of Tricks" (arXiv:1903.07071) and its relatives.

    Args:
        model: trained in place.
        num_ids: identities of the training set; pids run over 0..num_ids-1.
        label_smoothing: of the classification target.
        metric: "triplet", "circle" or None; on the features in front of the neck, weight 1 like the classification.
        metric_options: keyword arguments of that loss.
        center_weight: of the center loss; 0 leaves it and its centers out.
        center_lr: step of the centers, which follow the published rule after every training batch (all processes
            together) and are no business of the optimiser.
        classifier_bias: BoT's classifier has none, the plain softmax baselines have one.
        per_part: of a model whose vector has several parts (`part_dims`, as MSINet's), give each part a classifier and
            losses of its own; the parts' losses are summed. The center loss is such a sum anyhow.

    Raises:
        ReIDError: for an unknown metric loss or option of it, or fewer than two identities.
    """

    citation = """@inproceedings{luo2019bag,
  title={Bag of Tricks and a Strong Baseline for Deep Person Re-Identification},
  author={Luo, Hao and Gu, Youzhi and Liao, Xingyu and Lai, Shenqi and Jiang, Wei},
  booktitle={CVPR Workshops},
  year={2019}
}"""

    def __init__(
        self,
        model: ReIDModel,
        num_ids: int,
        *,
        label_smoothing: float = 0.1,
        metric: str | None = "triplet",
        metric_options: Mapping[str, Any] | None = None,
        center_weight: float = 0.0,
        center_lr: float = 0.5,
        classifier_bias: bool = False,
        per_part: bool = False,
    ):
        super().__init__(model)
        if num_ids < 2:
            raise ReIDError(f"training needs at least 2 identities, got {num_ids}: check the training split")
        if metric is not None:
            parameters = inspect.signature(lookup(METRIC_LOSSES, metric, "metric loss")).parameters
            for option in metric_options or {}:
                lookup(parameters, option, f"option of the {metric} loss")
        self.label_smoothing, self.metric, self.metric_options = label_smoothing, metric, dict(metric_options or {})
        self.center_weight, self.center_lr = center_weight, center_lr
        self.part_dims = model.part_dims if per_part else (model.embedding_dim,)
        classifiers = [build_classifier(dim, num_ids, bias=classifier_bias) for dim in self.part_dims]
        self.classifier = nn.ModuleList(classifiers) if len(classifiers) > 1 else classifiers[0]
        if center_weight:
            self.register_buffer("centers", torch.randn(num_ids, model.feature_dim))

    @classmethod
    def from_run(cls, run: RunContext) -> Self:
        """Build the method for a run; see `Method.from_run`. With `run.source` its classifier and centers go on."""
        return super().from_run(run).start_from(run)

    def start_from(self, run: RunContext) -> Self:
        """Go on with the classifier and centers of the run's source, if it names one; returns itself.

        Raises:
            ReIDError: if they are of other identities.
        """
        if run.source is not None:
            start_state(self, run.source, run.subset.identities, run.log)
        return self

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return self.losses(self.model(batch["pixel_values"]), batch["pids"])

    def losses(self, output: ReIDOutput, pids: Tensor) -> dict[str, Tensor]:
        """The loss and its parts from what the model put out, for methods that add more."""
        loss = sum(identity_loss(part, pids, self.label_smoothing) for part in self.logits(output.embeddings))
        parts = {"identity": loss}
        if self.metric is not None:
            metric_loss, features = METRIC_LOSSES[self.metric], output.features.split(self.part_dims, 1)
            parts[self.metric] = sum(metric_loss(part, pids, **self.metric_options) for part in features)
            loss = loss + parts[self.metric]
        if self.center_weight:
            parts["center"] = center_loss(output.features, self.centers, pids)
            loss = loss + self.center_weight * parts["center"]
            if self.training:
                self._move_centers(output.features.detach(), pids)
        return {"loss": loss, **parts}

    def logits(self, embeddings: Tensor) -> list[Tensor]:
        """What the classifiers say, (B, num_ids) for each part of the vectors (B, D)."""
        classifiers = self.classifier if len(self.part_dims) > 1 else [self.classifier]
        parts = embeddings.split(self.part_dims, 1)
        return [classifier(part) for classifier, part in zip(classifiers, parts, strict=True)]

    def _move_centers(self, features: Tensor, pids: Tensor) -> None:
        features, pids = gather_batch(at_least_float32(features)), gather_batch(pids)
        self.centers.copy_(move_centers(features, self.centers, pids, self.center_lr))


def build_classifier(dim: int, num_ids: int, *, bias: bool = False) -> nn.Linear:
    """A classifier as it starts: N(0, 0.001^2), bias 0."""
    classifier = nn.Linear(dim, num_ids, bias=bias)
    nn.init.normal_(classifier.weight, std=0.001)
    if bias:
        nn.init.zeros_(classifier.bias)
    return classifier
