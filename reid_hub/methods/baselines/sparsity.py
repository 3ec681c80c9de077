"""Sparsity learning of DepGraph (arXiv:2301.12900, section 3.3): unimportant channels fade while a network trains."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments

from reid_hub.errors import ReIDError
from reid_hub.models import ReIDModel
from reid_hub.models.layers import BATCH_NORMS
from reid_hub.models.neck import BNNeck

COUNTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, *BATCH_NORMS, nn.LayerNorm, BNNeck)


class SparsityLearning(TrainerCallback):
    """Adds a weight decay to the gradients that is the stronger the less a channel's group weighs.

    With I the root of the sum of squares of all weights that write, read or scale a channel, channel i of a group
    decays by reg * a^((I_max - I_i) / (I_max - I_min)): from reg for the heaviest to a * reg for the lightest. The
    groups are the model's width groups; depthwise kernels, biases and instance norms take no part, as in the
    authors' library, whose `regularize` this equals. A group of equally heavy channels decays by reg (there the
    library makes every gradient NaN).

    As a callback it works by itself; in a plain loop call `regularize` between `backward` and the optimiser's step.

    Args:
        model: the one being trained, `method.model`.
        classifier: the layer behind it, `method.classifier`, whose columns belong to the channels they read.
        reg: the library's default; the authors' script for CIFAR has 5e-4.
        alpha: a.

    Raises:
        ReIDError: if the model does not declare its channels, or not those that the classifier reads.
    """

    def __init__(
        self, model: ReIDModel, classifier: nn.Linear | None = None, *, reg: float = 1e-4, alpha: float = 16.0
    ):
        self.model, self.classifier, self.reg, self.alpha = model, classifier, reg, alpha
        groups = model.width_groups()
        # Of each group: layer, axis, first channel on that axis.
        self.members: dict[str, list[tuple[nn.Module, int, int]]] = {}
        self.sizes = {name: group.size for name, group in groups.groups.items()}
        for name, axes in groups.axes.items():
            path, _, leaf = name.rpartition(".")
            module = model.get_submodule(path)
            if leaf == "weight" and isinstance(module, COUNTED) and getattr(module, "groups", 1) == 1:
                self._add(module, 0, axes.rows)
                self._add(module, 1, axes.columns)
        if classifier is not None:
            vector = next((groups.axes[n].rows for n in ("neck.weight", "head.bn.weight") if n in groups.axes), ())
            if sum(self.sizes[group] for group in vector) != classifier.in_features:
                raise ReIDError(
                    f"the classifier reads {classifier.in_features} channels that no neck or linear head of the model "
                    "declares: leave it out"
                )
            self._add(classifier, 1, vector)

    def _add(self, module: nn.Module, axis: int, members: tuple[str, ...]) -> None:
        start = 0
        for group in members:
            self.members.setdefault(group, []).append((module, axis, start))
            start += self.sizes[group]

    @torch.no_grad()
    def regularize(self) -> None:
        """Add the decay to the gradients that are there."""
        for group, members in self.members.items():
            size = self.sizes[group]
            sums = [_square_sums(module.weight.narrow(axis, start, size), axis) for module, axis, start in members]
            decay = self.reg * self._strength(sum(sums).sqrt())
            for module, axis, start in members:
                weight = module.weight
                if weight.grad is not None:
                    along_axis = [-1 if dim == axis else 1 for dim in range(weight.ndim)]
                    faded = weight.narrow(axis, start, size) * decay.to(weight.dtype).view(along_axis)
                    weight.grad.narrow(axis, start, size).add_(faded)

    def _strength(self, importance: Tensor) -> Tensor:
        span = importance.max() - importance.min()
        lightness = (importance.max() - importance) / span.clamp(min=torch.finfo(importance.dtype).tiny)
        return self.alpha**lightness

    def on_pre_optimizer_step(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        if args.fp16:
            raise ReIDError("sparsity learning adds to unscaled gradients, which fp16=True does not have: use bf16")
        self.regularize()


def _square_sums(weight: Tensor, axis: int) -> Tensor:
    """Sum of squares of each channel on an axis, in at least float32."""
    weight = weight if weight.dtype == torch.float64 else weight.float()
    return weight.square().transpose(0, axis).flatten(1).sum(1) if weight.ndim > 1 else weight.square()
