"""Training a classifier of general images with cross-entropy."""

from torch import Tensor

from reid_hub.data.batch import Batch
from reid_hub.errors import ReIDError
from reid_hub.losses import identity_loss
from reid_hub.methods.memory import RememberingMethod
from reid_hub.models import ReIDForImageClassification


class ClassificationMethod(RememberingMethod):
    """Cross-entropy on the logits of a `ReIDForImageClassification`; the labels of a batch are its pids.

    Args:
        model: trained in place; the classifier is part of it, and of what `export` gives.
        num_ids: classes of the training set.
        label_smoothing: of the target.

    Raises:
        ReIDError: if the model is no classifier of that many classes.
    """

    def __init__(self, model: ReIDForImageClassification, num_ids: int, *, label_smoothing: float = 0.0):
        super().__init__(model)
        if getattr(model, "classifier", None) is None or model.num_labels != num_ids:
            raise ReIDError(
                f"training on {num_ids} classes needs a ReIDForImageClassification of as many, got "
                f"{type(model).__name__} of {model.config.num_labels}"
            )
        self.label_smoothing = label_smoothing

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return {"loss": identity_loss(self.model(batch["pixel_values"]).logits, batch["pids"], self.label_smoothing)}
