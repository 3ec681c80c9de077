"""A model by name: a variant, a folder, or a repository of the Hub."""

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
    """Load a model of ours from a folder or from a repository of the Hub.

    Raises:
        FileNotFoundError: if a path does not lead to a checkpoint folder.
        ValueError, OSError: if the checkpoint does not fit, or the Hub does not have it or cannot be reached.
    """
    model = _open(name, revision)
    if isinstance(model, WeightChain):
        raise ReIDError(f"{name} is a weight chain, no model: take a student of it with `reid-hub expand`")
    return model


def open_chain(name: str | Path, revision: str | None = None) -> WeightChain:
    """Load a weight chain from a folder or from a repository of the Hub.

    Raises:
        FileNotFoundError: if a path does not lead to a checkpoint folder.
        ValueError, OSError: if it is something else or damaged, or the Hub does not have it or cannot be reached.
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
    """A model to train: a variant with `defaults` for its configuration, or one of our checkpoints as it is.

    Raises:
        ValueError: for a name that is neither, see `ReIDConfig.from_variant`, or a checkpoint of a transformer that has
            a position for each patch of another image size.
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
    """The model that a training starts from, without the initial weights that the settings may name.

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
    """Refuse changes of a trained model's configuration, which come too late; what it is already may be said again.

    Raises:
        ValueError: naming the first that differs.
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
    """Whether nothing is asked that is not so; of options by name, those that are named; of a part, its name."""
    if isinstance(found, dict) and isinstance(asked, dict):
        return asked.items() <= found.items()
    if isinstance(found, dict) and isinstance(asked, str):
        return asked == found.get("name", found.get("cell"))
    return found == asked


def image_size_of(settings: RunSettings) -> list[int]:
    """(height, width) of the images of a run: as asked for, or the recipe's, or the model's own."""
    name, of_recipe = settings.model.model, settings.recipe.resolved.config.get("image_size")
    if settings.model.image_size is not None:
        return list(settings.model.image_size)
    if of_recipe is not None and not is_checkpoint(name):
        return list(of_recipe)
    config = ReIDConfig.from_pretrained(name) if is_checkpoint(name) else ReIDConfig.from_variant(name)
    return list(config.image_size)


def recipe_config(settings: RunSettings, image_size: Sequence[int] | None = None) -> dict[str, Any]:
    """What a recipe prescribes of a model's configuration, for images of a size (default: the settings')."""
    config, size = settings.recipe.resolved.config, image_size or settings.model.image_size
    if size is None or "resize_shortest" not in config or "config.resize_shortest" in settings.recipe.set:
        return dict(config)
    return {**config, "resize_shortest": shortest_in(size, config["image_size"], config["resize_shortest"])}


def shortest_in(image_size: Sequence[int], before: Sequence[int], shortest: int | None) -> int | None:
    """The `resize_shortest` that cuts away as much of images of another size; None for one of other proportions.

    Left as it is, a small image would be the middle of a large one, and nothing of what it shows.
    """
    if shortest is None or image_size[0] * before[1] != image_size[1] * before[0]:
        return None
    return round(shortest * image_size[0] / before[0])


def is_checkpoint(name: str) -> bool:
    """Whether a name is that of a folder or repository, not of a variant."""
    return Path(name).is_dir() or ("/" in name and not name.startswith("timm/"))


def has_free_size(config: ReIDConfig) -> bool:
    """Whether a trained model takes images of any size; not one that has a position for each patch."""
    return takes_any_size(config.backbone_config)


def check_free_size(config: ReIDConfig, image_size: Sequence[int]) -> None:
    """Refuse another image size for a trained model that has a position for each patch.

    Raises:
        ValueError: saying what to do instead.
    """
    if not has_free_size(config):
        sizes = ["x".join(map(str, size)) for size in (config.image_size, image_size)]
        raise ReIDError(
            f"this checkpoint has a position for each patch of images of {sizes[0]}, got {sizes[1]}: leave the image "
            "size as it is, or start a variant of that size with `reid-hub train --model VARIANT --init FILE`, which "
            "resizes the positions"
        )


def on_accelerator(model: ReIDModel, arguments: Mapping[str, Any]) -> ReIDModel:
    """The model on the accelerator of this process, if there is one; before a trainer is there to say which it is.

    Args:
        arguments: of the trainer; "use_cpu" leaves the model where it is.
    """
    if torch.accelerator.is_available() and not arguments.get("use_cpu"):
        model.to(torch.device(torch.accelerator.current_accelerator().type, int(os.environ.get("LOCAL_RANK", 0))))
    return model
