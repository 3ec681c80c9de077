"""Embed a split, on one process or distributed over several."""

import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from reid_hub.data.augmentation import BatchTransform
from reid_hub.data.images import ImageDataset
from reid_hub.errors import ReIDError
from reid_hub.evaluation.cost import evaluation_mode
from reid_hub.models import ReIDConfig, ReIDModel


class Embedded(NamedTuple):
    """Embeddings (N, D) float32 with pids (N,) and camids (N,) int64, in the order of the data set."""

    embeddings: np.ndarray
    pids: np.ndarray
    camids: np.ndarray


def embed(
    model: ReIDModel,
    split,
    *,
    batch_size: int = 64,
    flip: bool = False,
    quantized: bool = True,
    retrieve: str | None = None,
    progress: bool = True,
) -> Embedded:
    """Embed every image of a split on the model's device, in evaluation mode; the vectors are not normalised.

    Under `accelerate launch` each process embeds one contiguous part, and every process gets the whole result. The mode
    of the model is restored afterwards.

    Args:
        split: one split of `load_reid_dataset`, or an `ImageDataset` of the model's image size.
        flip: average the embeddings of an image and its mirror image.
        quantized: False returns the vectors in front of the model's quantiser, if it has one.
        retrieve: which vector to return, "neck" or "features" (default: that of the model's configuration).

    Raises:
        ValueError: if an `ImageDataset` does not match the model, or the model returns NaN or Inf; names the images.
    """
    images = open_images(split, model.config, progress)
    embeddings = forward_all(
        model,
        images,
        lambda pixels: model.embed(pixels, flip, quantized, retrieve),
        model.embedding_dim,
        batch_size=batch_size,
        progress=progress,
        what="embed",
    )
    return Embedded(embeddings, images.pids, images.camids)


def forward_all(
    model: PreTrainedModel,
    images: ImageDataset,
    forward: Callable[[Tensor], Tensor],
    dim: int,
    *,
    batch_size: int,
    progress: bool,
    what: str,
) -> np.ndarray:
    """Apply `forward`, (B, 3, H, W) -> (B, dim), to every image, normalised for the model: (N, dim) float32.

    Distributed over processes, in evaluation mode, as in `embed`.

    Raises:
        ValueError: for a batch size below 1, or if an output is NaN or Inf; names the images.
    """
    if batch_size < 1:
        raise ReIDError(f"batch_size must be at least 1, got {batch_size}")
    rank, processes = _place()
    share = -(-len(images) // processes)
    indices = range(len(images))[rank * share : (rank + 1) * share]
    transform = BatchTransform(None, model.config.image_mean, model.config.image_std)
    vectors = torch.zeros(share, dim)
    with (
        evaluation_mode(model),
        torch.inference_mode(),
        tqdm(total=len(indices), desc=what, unit="img", disable=not progress or rank > 0) as bar,
    ):
        for start in range(0, len(indices), batch_size):
            batch = images.__getitems__(indices[start : start + batch_size])
            pixels = transform(batch["pixel_values"].to(model.device)).to(model.dtype)
            vectors[start : start + len(pixels)] = forward(pixels)
            bar.update(len(pixels))
    # Only the last parts can be short, so their padding comes after the last image.
    embeddings = _gather(vectors)[: len(images)].numpy()
    _refuse_non_finite(embeddings, images)
    return embeddings


def open_images(split, config: ReIDConfig, progress: bool = True) -> ImageDataset:
    """Open a split with the preprocessing of a model; an `ImageDataset` is checked and returned.

    Raises:
        ValueError: for an `ImageDataset` with another preprocessing.
    """
    size, resize = tuple(config.image_size), {"resize_shortest": config.resize_shortest}
    if not isinstance(split, ImageDataset):
        return ImageDataset(split, size, interpolation=config.interpolation, progress=progress, **resize)
    got = (tuple(split.image_size), split.interpolation, split.resize_shortest)
    if got != (size, config.interpolation, config.resize_shortest):
        raise ReIDError(
            f"the model wants images of {size} pixels (height, width), {config.interpolation}; the ImageDataset gives "
            f"{split.image_size}, {split.interpolation}: pass the split itself, or an ImageDataset of that size"
        )
    return split


def _place() -> tuple[int, int]:
    """Rank and number of processes."""
    if (
        int(os.environ.get("WORLD_SIZE", 1)) == 1
    ):  # creating a PartialState here would fix the device of a later Trainer
        return 0, 1
    from accelerate import PartialState

    state = PartialState()
    return state.process_index, state.num_processes


def _gather(rows: Tensor) -> Tensor:
    """The rows of all processes, in order, on the CPU."""
    if _place()[1] == 1:
        return rows
    from accelerate import PartialState
    from accelerate.utils import gather

    return gather(rows.to(PartialState().device)).cpu()


def _refuse_non_finite(embeddings: np.ndarray, images: ImageDataset) -> None:
    bad = np.flatnonzero(~np.isfinite(embeddings).all(1)).tolist()
    if not bad:
        return
    paths = images.dataset["path"] if "path" in images.dataset.column_names else range(len(images))
    named = ", ".join(str(paths[row]) for row in bad[:5]) + (" and others" if len(bad) > 5 else "")
    raise ReIDError(
        f"the model gives NaN or Inf for {len(bad)} of {len(images)} images ({named}): its weights are broken (did "
        "training diverge?) or its precision is too low; evaluate another checkpoint, or in float32"
    )
