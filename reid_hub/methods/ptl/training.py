"""What Progressive Transfer Learning minimises, with a side network or without."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from reid_hub.errors import ReIDError
from reid_hub.losses import METRIC_LOSSES, identity_loss
from reid_hub.methods.supervised import SupervisedMethod
from reid_hub.models import ReIDModel, ReIDOutput


class PTLMethod(SupervisedMethod):
    """Fine-tuning as in Progressive Transfer Learning (arXiv:1908.02492) and MGN (arXiv:1804.01438).

    L = identity_weight * mean of the cross-entropies + mean of the metric losses, over the parts of the vector. The
    memory between batches is the model's (`config.side`), which forgets it at each epoch.

    Args:
        model: with a side network, or without, the baseline; trained in place.
        hidden: widths of the fully connected layers with ReLU in front of the classifier. PTL's head on ResNet and
            DenseNet is three fully connected layers; MGN's classifiers stand alone.
        metric_parts: how many of the parts, from the first, a metric loss compares; None is all. MGN's are three.
        per_part: losses and a classifier for each part of the vector, without hidden layers.
        label_smoothing, metric, metric_options: see `SupervisedMethod`.

    Raises:
        ReIDError: for hidden layers in front of several classifiers, no `metric_parts`, a negative weight, or what
            `SupervisedMethod` refuses.
    """

    citation = """@article{yu2019progressive,
  title   = {Progressive Transfer Learning},
  author  = {Yu, Zhengxu and Shen, Dong and Jin, Zhongming and Huang, Jianqiang and Cai, Deng and Hua, Xian-Sheng},
  journal = {arXiv:1908.02492}, year = {2019}
}"""

    def __init__(
        self,
        model: ReIDModel,
        num_ids: int,
        *,
        hidden: Sequence[int] = (256, 256),
        label_smoothing: float = 0.0,
        metric: str | None = None,
        metric_options: Mapping[str, Any] | None = None,
        metric_parts: int | None = None,
        identity_weight: float = 1.0,
        per_part: bool = False,
    ):
        losses = {"label_smoothing": label_smoothing, "metric": metric, "metric_options": metric_options}
        super().__init__(model, num_ids, **losses, per_part=per_part, classifier_bias=True)
        if hidden and len(model.part_dims) > 1:
            raise ReIDError(
                f"each of {len(model.part_dims)} parts has a classifier of its own, without hidden layers: give "
                "hidden=() and per_part=True (the recipe ptl-mgn)"
            )
        if metric_parts is not None and metric_parts < 1:
            raise ReIDError(f"metric_parts must be at least 1, or None for all parts, got {metric_parts}")
        if identity_weight < 0:
            raise ReIDError(f"identity_weight must be at least 0, got {identity_weight}")
        self.metric_parts, self.identity_weight = metric_parts, identity_weight
        self.hidden = nn.Sequential()
        for width, following in pairwise([model.embedding_dim, *hidden]):
            self.hidden.extend([nn.Linear(width, following), nn.ReLU()])
        if hidden:
            self.classifier = nn.Linear(hidden[-1], num_ids)
        for layer in (*self.hidden.modules(), *self.classifier.modules()):
            if isinstance(layer, nn.Linear):  # as the released code starts them
                nn.init.kaiming_normal_(layer.weight, mode="fan_in" if hidden or model.side is not None else "fan_out")
                nn.init.zeros_(layer.bias)

    def losses(self, output: ReIDOutput, pids: Tensor) -> dict[str, Tensor]:
        logits = self.logits(output.embeddings)
        identity = torch.stack([identity_loss(part, pids, self.label_smoothing) for part in logits]).mean()
        if self.metric is None:
            return {"loss": self.identity_weight * identity, "identity": identity}
        compared = output.features.split(self.part_dims, 1)[: self.metric_parts]
        compare = METRIC_LOSSES[self.metric]
        metric = torch.stack([compare(part, pids, **self.metric_options) for part in compared]).mean()
        return {"loss": self.identity_weight * identity + metric, "identity": identity, self.metric: metric}

    def logits(self, embeddings: Tensor) -> list[Tensor]:
        return [self.classifier(self.hidden(embeddings))] if self.hidden else super().logits(embeddings)
