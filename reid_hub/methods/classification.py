"""Training a classifier of general pictures with cross-entropy."""

from torch import Tensor

from reid_hub.losses import identity_loss
from reid_hub.methods.base import Method
from reid_hub.models import ReIDForImageClassification


class ClassificationMethod(Method):
    """Cross-entropy on the logits of a `ReIDForImageClassification`; the labels of a batch are its pids.

    Args:
        model: trained in place; the classifier is part of it, and of what `export` gives.
        num_ids: classes of the training set.
        label_smoothing: of the target.

    Raises:
        ValueError: if the model is no classifier of that many classes.
    """

    def __init__(self, model: ReIDForImageClassification, num_ids: int, *, label_smoothing: float = 0.0):
        super().__init__(model)
        if getattr(model, "classifier", None) is None or model.num_labels != num_ids:
            raise ValueError(
                f"training on {num_ids} classes needs a ReIDForImageClassification of as many, got "
                f"{type(model).__name__} of {model.config.num_labels}"
            )
        self.label_smoothing = label_smoothing

    def forward(
        self, pixel_values: Tensor, pids: Tensor, camids: Tensor | None = None, indices: Tensor | None = None
    ) -> dict[str, Tensor]:
        return {"loss": identity_loss(self.model(pixel_values).logits, pids, self.label_smoothing)}
