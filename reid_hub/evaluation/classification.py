"""Accuracy of a classifier on a split."""

from collections.abc import Sequence

import numpy as np

from reid_hub.errors import ReIDError
from reid_hub.evaluation.embedding import forward_all, open_images
from reid_hub.models import ReIDForImageClassification


def classify(
    model: ReIDForImageClassification, split, *, batch_size: int = 64, progress: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, K) float32 and labels (N,) int64 of a split, in its order; distributed over processes like `embed`.

    Args:
        split: a data set with the columns image and label, or an `ImageDataset` with the model's preprocessing.

    Raises:
        ValueError: if the `ImageDataset` does not match the model, or the model returns NaN or Inf.
    """
    images = open_images(split, model.config, progress)
    options = {"batch_size": batch_size, "progress": progress, "what": "classify"}
    logits = forward_all(model, images, lambda pixels: model(pixels).logits, model.num_labels, **options)
    return logits, images.pids


def topk_accuracy(logits: np.ndarray, labels: np.ndarray, ks: Sequence[int] = (1, 5)) -> dict[str, float]:
    """Share of images whose class is among the k highest logits, by name "topK"; ties rank the lower class first.

    Args:
        logits: (N, C).
        labels: (N,) in 0 .. C - 1.

    Raises:
        ValueError: if there are no images, or a label is not one of the classes.
    """
    labels = np.asarray(labels)
    if not len(labels) or labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ReIDError(f"labels must be in 0..{logits.shape[1] - 1}, one per image, got {np.unique(labels)}")
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    before = (logits > own) | ((logits == own) & (np.arange(logits.shape[1]) < labels[:, None]))
    rank = before.sum(axis=1)
    return {f"top{k}": float((rank < k).mean()) for k in ks}
