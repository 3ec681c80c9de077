"""Code shared by the examples: `transformers.HfArgumentParser` reads their options from their settings' fields."""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from transformers import HfArgumentParser

from reid_hub.data import DATASETS
from reid_hub.registry import lookup
from reid_hub.runs.kdep import BasisSettings
from reid_hub.runs.options import Part, Settings, option
from reid_hub.runs.settings import TrainSettings
from reid_hub.runs.train import train

PEOPLE = [256, 128]  # height and width of images of people in re-identification
SMALL = [128, 64]  # and of synthetic people
FD_DEMO = {"out": "runs/fd-demo", "resume": True, "image_size": SMALL, "view_size": [96, 96], "view": ["Hol+G1"]}
AnySettings = TypeVar("AnySettings", bound=Settings)


def parse(
    settings: type[AnySettings],
    description: str | None,
    published: Callable[[AnySettings], Mapping[str, Any]] = lambda given: {},
    drawn: Callable[[AnySettings], Mapping[str, Any]] = lambda given: {},
    **demo: Any,
) -> AnySettings:
    """Parse the command line into settings.

    Args:
        published: function from the given settings to defaults that replace the demo's when the data are not
            synthetic: the published experiment.
        drawn: the same when the data are synthetic.
        demo: defaults for the synthetic data that reid_hub generates.

    Raises:
        ReIDError: for incompatible options.
    """
    parts, options = settings.parts(), settings.options()
    parser = HfArgumentParser(
        list(parts.values()), description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def read(**defaults: Any) -> AnySettings:
        # Not `settings.of`: a default may be valid only in combination with the command line.
        parser.set_defaults(**{name: each.default for name, each in options.items()})
        parser.set_defaults(**{lookup(options, name, "option").name: value for name, value in defaults.items()})
        *found, rest = parser.parse_args_into_dataclasses(return_remaining_strings=True, look_for_args_file=False)
        if rest:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        return settings(**dict(zip(parts, found, strict=True)))

    given = read(**demo)
    has_own_data = "data" in options and not is_drawn(given.values()["data"])
    more = (published if has_own_data else drawn)(given)
    return read(**{**demo, **more}) if more else given


def is_drawn(data: str | None) -> bool:
    """Whether reid_hub generates the data set."""
    return data in DATASETS and not DATASETS[data].layout


def small_model(settings: TrainSettings, folder: str | Path, **options: Any) -> str:
    """Train a small model on the example's data when no model was given, unless it exists; returns its folder.

    Args:
        options: of `TrainSettings`; they override the example's and those of the demo's recipe.
    """
    small = {"model": "res18-x0.25", "init": None, "recipe": "demo", "push": None, "out": folder, **options}
    changes = {**settings.recipe.of_machine, **options.get("set", {})}
    train(TrainSettings.like(settings, **{**small, "set": changes}))
    return str(folder)


def published_fd(given: Settings) -> dict[str, Any]:
    """Factorized Distillation as published: `published` of `parse`."""
    views = {"image_size": PEOPLE, "view": ["all"], "view_size": [224, 224]}
    return {"recipe": "fd-student", "model": "res18a", "backbone": "res101", **views}


def published_kdep(given: BasisSettings) -> dict[str, Any]:
    """KDEP as published, at the image size of people if the recipe is for people: `published` of `parse`."""
    people = given.recipe.recipe.startswith("kdep-people")
    return {"recipe": "kdep", "model": "res18", "image_size": PEOPLE if people else [224, 224]}


@dataclass(frozen=True)
class LoopArguments(Part):
    """Options of a custom training loop on synthetic people."""

    out: str = option("runs/plain-loop", "Folder of the model.")
    model: str = option("res18-x0.25", "Variant (`reid-hub list variants`).")
    recipe: str = option("demo", "Training recipe (`reid-hub list recipes`).")
    epochs: int = option(16, "Number of epochs.")
    ids: int = option(160, "Number of synthetic identities to train on.")
    seed: int = option(0, "Seed of weights, batches and augmentation.")


@dataclass(frozen=True)
class LoopSettings(Settings):
    """The settings of `examples/train_plain_loop.py`."""

    loop: LoopArguments = LoopArguments()
