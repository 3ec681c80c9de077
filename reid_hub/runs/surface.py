"""Plots of the loss around the weights of trained models, side by side."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reid_hub.data import load_reid_dataset
from reid_hub.data.augmentation import BatchTransform
from reid_hub.data.images import ImageDataset
from reid_hub.errors import ReIDError
from reid_hub.evaluation import Results, loss_surface, plot_loss_surfaces
from reid_hub.losses import identity_loss
from reid_hub.methods import METHODS, SupervisedMethod
from reid_hub.methods.state import known_identities, read_state
from reid_hub.registry import lookup
from reid_hub.runs.models import on_accelerator, open_model
from reid_hub.runs.options import Part, Settings, option
from reid_hub.runs.settings import DataArguments
from reid_hub.training import RECIPES, override

_BATCH = 64


@dataclass(frozen=True)
class SurfaceArguments(Part):
    """The models, and the extent and resolution of the loss surface."""

    runs: list[str] = option(list, "Folders of trainings, such as runs/ptl and runs/baseline.", argument=True)
    count: int = option(256, "Number of training images to average the loss over.")
    points: int = option(21, "Number of losses along each side of the square.")
    span: float = option(0.5, "Extent of the surface, in norms of the network's own filters.")
    seed: int = option(0, "Seed of the two directions.")
    out: str = option("surface.png", "Output file.")


@dataclass(frozen=True)
class SurfaceSettings(Settings):
    """The settings of `reid-hub surface`."""

    surface: SurfaceArguments = SurfaceArguments()
    data: DataArguments = DataArguments()


def surface(settings: SurfaceSettings) -> Path:
    """Draw the loss around trained models on their data set; see `draw_surfaces`."""
    how, data = settings.surface, settings.data
    split = load_reid_dataset(data.data, data.data_dir, **data.data_option)["train"]
    return draw_surfaces(how.runs, split, how.out, count=how.count, points=how.points, span=how.span, seed=how.seed)


def draw_surfaces(
    folders: Sequence[str | Path],
    split: Any,
    path: str | Path,
    *,
    count: int = 256,
    points: int = 21,
    span: float = 0.5,
    seed: int = 0,
    arguments: Mapping[str, Any] | None = None,
) -> Path:
    """Draw the loss around trained models as in figure 3 of Progressive Transfer Learning (arXiv:1908.02492).

    The loss is the cross-entropy of their classifiers on training images, not augmented, in evaluation mode: a side
    network starts from zeros, batch norm keeps its running statistics. See `loss_surface`.

    Args:
        folders: of trainings by one of the methods "ptl", "std" or "supervised".
        split: the training split that they were made on.
        count: how many images, evenly spread over those of the identities that a model knows.
        arguments: of the trainer; "use_cpu" leaves the models where they are.

    Raises:
        FileNotFoundError: for a folder without results, or without its classifier.
        ValueError: for a training of another method, or on other identities, or a folder that is given twice.
    """
    surfaces, folders = {}, [Path(folder) for folder in folders]
    if len(set(folders)) < len(folders):
        raise ReIDError(f"each training is drawn once; got {', '.join(map(str, folders))}")
    for folder in folders:
        method, loss = training_loss(folder, split, count=count, arguments=arguments)
        name = folder.name if folder.name not in surfaces else str(folder)
        surfaces[name] = loss_surface(method, loss, points=points, span=span, seed=seed)
    return plot_loss_surfaces(path, surfaces, span=span)


def training_loss(
    folder: str | Path, split: Any, *, count: int, arguments: Mapping[str, Any] | None = None
) -> tuple[SupervisedMethod, Callable[[], float]]:
    """A trained model under its classifier, in evaluation mode, and its loss on training images; see `draw_surfaces`.

    Raises:
        FileNotFoundError, ValueError: see there.
    """
    if count < 1:
        raise ReIDError(f"count must be at least 1, got {count}")
    method, identities = _reopened(Path(folder))
    rows = np.flatnonzero(np.isin(split["pid"][:], identities))
    if not len(rows):
        raise ReIDError(f"{folder} was trained on other people: give its own data set")
    rows = rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)]
    config, device = method.model.config, on_accelerator(method.model, arguments or {}).device
    images = ImageDataset(split.select(rows), tuple(config.image_size), interpolation=config.interpolation)
    batch = images.__getitems__(range(len(rows)))
    pixels = BatchTransform(None, config.image_mean, config.image_std)(batch["pixel_values"].to(device))
    labels = torch.searchsorted(torch.tensor(identities), batch["pids"]).to(device)
    return method.to(device).eval(), partial(_loss, method, pixels, labels)


def _reopened(folder: Path) -> tuple[SupervisedMethod, list[int]]:
    """A training's model under its classifier, and the data set's pids of the classifier's rows."""
    heads, identities = read_state(folder), known_identities(folder)
    training = Results.read(folder / "results.json").training
    recipe = override(lookup(RECIPES, training.recipe, "recipe"), training.changes or {})
    if recipe.method not in ("ptl", "std", "supervised"):
        raise ReIDError(f"surfaces are drawn of the methods ptl, std and supervised; {folder} is of {recipe.method!r}")
    alone = {"teacher": None, "lam": 0.0} if recipe.method == "std" else {}  # the loss without any teacher's
    model = open_model(folder)
    method = METHODS[recipe.method](model, len(identities), **{**recipe.options, **alone})  # type: ignore[call-arg]
    method.load_state_dict({**method.state_dict(), **heads})
    return method, identities


@torch.no_grad()
def _loss(method: SupervisedMethod, pixels: Tensor, labels: Tensor) -> float:
    total = 0.0
    for start in range(0, len(pixels), _BATCH):
        part = slice(start, start + _BATCH)
        logits = method.logits(method.model(pixels[part], retrieve="neck").embeddings)
        loss = torch.stack([identity_loss(vector, labels[part]) for vector in logits]).mean()
        total += loss.item() * len(labels[part]) / len(labels)
    return total
