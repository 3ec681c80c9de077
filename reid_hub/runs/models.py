"""Open or create models by name: a variant, a folder, or a Hub repository."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from reid_hub.errors import MissingError, ReIDError
from reid_hub.models import ReIDConfig, ReIDModel, WeightChain, WeightChainConfig
from reid_hub.models.backbones import takes_any_size
from reid_hub.models.flat_fields import flat_fields
from reid_hub.runs.settings import RunSettings


def open_model(name: str | Path, revision: str | None = None) -> ReIDModel:
    """Load a reid_hub model from a folder or a Hub repository.

    Raises:
        FileNotFoundError: if a path is not a checkpoint folder.
        ValueError, OSError: if the checkpoint is not valid, or the Hub does not have it or cannot be reached.
    """
    model = _open(name, revision)
    if isinstance(model, WeightChain):
        raise ReIDError(f"{name} is a weight chain, no model: take a student of it with `reid-hub expand`")
    return model


def open_chain(name: str | Path, revision: str | None = None) -> WeightChain:
    """Load a weight chain from a folder or a Hub repository.

    Raises:
        FileNotFoundError: if a path is not a checkpoint folder.
        ValueError, OSError: if it is not a weight chain or damaged, or the Hub does not have it or cannot be reached.
    """
    chain = _open(name, revision)
    if not isinstance(chain, WeightChain):
        raise ReIDError(f"{name} is no weight chain but a {chain.config.model_type!r}: make one with `reid-hub refine`")
    return chain


def _open(name: str | Path, revision: str | None) -> ReIDModel | WeightChain:
    folder = Path(name)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise MissingError(f"{folder} is no checkpoint folder: it has no config.json")
    if not folder.is_dir() and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(name)):
        raise MissingError(f"no checkpoint folder {name}; a repository of the Hub is called NAMESPACE/NAME")
    options = {} if revision is None else {"revision": revision}
    kind = AutoConfig.from_pretrained(str(name), **options)
    return (WeightChain if isinstance(kind, WeightChainConfig) else ReIDModel).from_pretrained(str(name), **options)


def new_model(
    name: str, image_size: Sequence[int] | None = None, defaults: Mapping[str, Any] | None = None
) -> ReIDModel:
    """Create a model to train: a variant with `defaults` for its configuration, or an unchanged reid_hub checkpoint.

    Raises:
        ValueError: if the name is neither (see `ReIDConfig.from_variant`), or the checkpoint is a transformer with
            position embeddings for another image size.
    """
    size = {} if image_size is None else {"image_size": tuple(image_size)}
    if is_checkpoint(name):
        model = open_model(name)
        if image_size is not None and list(image_size) != model.config.image_size:
            check_free_size(model.config, image_size)
            model.config.resize_shortest = shortest_in(
                image_size, model.config.image_size, model.config.resize_shortest
            )
            model.config.image_size = list(image_size)
        return model
    return ReIDModel(ReIDConfig.from_variant(name, **{**(defaults or {}), **size}))


def model_to_train(settings: RunSettings) -> ReIDModel:
    """The model to train, before loading any initial weights named in the settings.

    Raises:
        ReIDError: see `new_model` and `check_changes`.
    """
    name, size = settings.model.model, settings.model.image_size
    if is_checkpoint(name):
        model = new_model(name, size)
        check_changes(model.config, settings.recipe.set)
        return model
    return new_model(name, size, recipe_config(settings))


def check_changes(config: ReIDConfig, changes: Mapping[str, Any]) -> None:
    """Reject changes to a trained model's configuration; values equal to the present ones are accepted.

    Raises:
        ValueError: if a value differs; the message names the first one.
    """
    found, flat = json.loads(config.to_json_string(use_diff=False)), flat_fields(config)
    for name, value in changes.items():
        field, value = name.removeprefix("config."), json.loads(json.dumps(value))
        if field in flat and not isinstance(value, dict):
            found[field] = flat[field]
        if field == name or _agrees(found.get(field), value):
            continue
        raise ReIDError(
            f"{name}={value!r} comes too late for a trained model, whose {field} is {found.get(field)!r}: leave it "
            "out, or start a variant with it"
        )


def _agrees(found: Any, asked: Any) -> bool:
    """Whether the requested value matches; for named options only the given ones count, for a part only its name."""
    if isinstance(found, dict) and isinstance(asked, dict):
        return asked.items() <= found.items()
    if isinstance(found, dict) and isinstance(asked, str):
        return asked == found.get("name", found.get("cell"))
    return found == asked


def image_size_of(settings: RunSettings) -> list[int]:
    """(height, width) of a run's images: as requested, else the recipe's, else the model's."""
    name, of_recipe = settings.model.model, settings.recipe.resolved.config.get("image_size")
    if settings.model.image_size is not None:
        return list(settings.model.image_size)
    if of_recipe is not None and not is_checkpoint(name):
        return list(of_recipe)
    config = ReIDConfig.from_pretrained(name) if is_checkpoint(name) else ReIDConfig.from_variant(name)
    return list(config.image_size)


def recipe_config(settings: RunSettings, image_size: Sequence[int] | None = None) -> dict[str, Any]:
    """The model configuration set by a recipe, for an image size (default: the settings')."""
    config, size = settings.recipe.resolved.config, image_size or settings.model.image_size
    if size is None or "resize_shortest" not in config or "config.resize_shortest" in settings.recipe.set:
        return dict(config)
    return {**config, "resize_shortest": shortest_in(size, config["image_size"], config["resize_shortest"])}


def shortest_in(image_size: Sequence[int], before: Sequence[int], shortest: int | None) -> int | None:
    """Scale `resize_shortest` to another image size, cropping the same share; None if the aspect ratio differs.

    Unscaled, a small input would be a crop from the centre of a much larger image.
    """
    if shortest is None or image_size[0] * before[1] != image_size[1] * before[0]:
        return None
    return round(shortest * image_size[0] / before[0])


def is_checkpoint(name: str) -> bool:
    """Whether a name is a folder or repository, not a variant."""
    return Path(name).is_dir() or ("/" in name and not name.startswith("timm/"))


def has_free_size(config: ReIDConfig) -> bool:
    """Whether a trained model accepts images of any size; False for one with a position embedding per patch."""
    return takes_any_size(config.backbone_config)


def check_free_size(config: ReIDConfig, image_size: Sequence[int]) -> None:
    """Reject another image size for a trained model with a position embedding per patch.

    Raises:
        ValueError: if the size differs; the message says what to do instead.
    """
    if not has_free_size(config):
        sizes = ["x".join(map(str, size)) for size in (config.image_size, image_size)]
        raise ReIDError(
            f"this checkpoint has a position for each patch of images of {sizes[0]}, got {sizes[1]}: leave the image "
            "size as it is, or start a variant of that size with `reid-hub train --model VARIANT --init FILE`, which "
            "resizes the positions"
        )


def on_accelerator(model: ReIDModel, arguments: Mapping[str, Any]) -> ReIDModel:
    """Move a model to this process's accelerator, if there is one, before a trainer exists to choose the device.

    Args:
        arguments: of the trainer; with "use_cpu" the model is not moved.
    """
    if torch.accelerator.is_available() and not arguments.get("use_cpu"):
        model.to(torch.device(torch.accelerator.current_accelerator().type, int(os.environ.get("LOCAL_RANK", 0))))
    return model
