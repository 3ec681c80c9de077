"""The options that the examples share, for `argparse`: an example adds its own, and gets the fields of a training."""

import argparse
import json
from collections.abc import Callable, Mapping
from typing import Any

from reid_hub.data import DATASETS
from reid_hub.training import parse_override

PEOPLE = (256, 128)  # height and width that re-identification shows people in


class Gather(argparse.Action):
    """An option of several values, or of JSON, that is given again adds to what it had; any other is replaced."""

    def __call__(self, parser, namespace, values, option_string=None):
        before = getattr(namespace, self.dest)
        if before is not self.default and (self.nargs in ("*", "+") or isinstance(before, dict)):
            values = {**before, **values} if isinstance(before, dict) else [*before, *values]
        setattr(namespace, self.dest, values)


def example_parser(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """A parser with the options of a training; `defaults` replace theirs, for the demo on drawn data."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.register("action", None, Gather)
    parser.add_argument("--output-dir", help="where everything is written")
    parser.add_argument("--data", default="synthetic", help="name of the data set")
    parser.add_argument("--data-dir", help="folder in which the data set was unpacked")
    parser.add_argument("--data-options", type=json.loads, default={}, help="options of the data set, as JSON")
    parser.add_argument("--dataset-name", help="what the results call the data set")
    parser.add_argument("--image-size", type=int, nargs=2, default=(128, 64), help="height and width in pixels")
    parser.add_argument("--recipe", default="demo", help="name of the recipe")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="values that replace the recipe's")
    parser.add_argument("--epochs", type=float, help="in place of the recipe's")
    parser.add_argument("--validation", type=float, default=0.1, help="share of the training identities held out")
    parser.add_argument("--keep-ids", type=float, default=1.0, help="share of the training identities kept: few-shot")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action=argparse.BooleanOptionalAction, help="go on from the last checkpoint")
    parser.add_argument("--channels-last", action="store_true", help="memory format; faster for CNNs")
    parser.add_argument("--args", type=json.loads, default={}, help="transformers.TrainingArguments, as JSON")
    parser.set_defaults(**defaults)
    return parser


def parse_example(
    parser: argparse.ArgumentParser, published: Callable[[argparse.Namespace], Mapping[str, Any]]
) -> argparse.Namespace:
    """The options of a command line; with data that are not drawn, the published experiment is the default.

    Args:
        published: from the options as they were given to defaults that take the place of the demo's.
    """
    options = parser.parse_args()
    if not is_drawn(options.data):
        parser.set_defaults(**published(options))
    return parser.parse_args()


def is_drawn(data: str) -> bool:
    """Whether reid_hub draws a data set itself."""
    return data in DATASETS and not DATASETS[data].layout


def training_fields(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of `TrainSettings` that these options give, without the folder and the recipe."""
    return {
        "data": options.data,
        "data_dir": options.data_dir,
        "data_options": options.data_options,
        "dataset_name": options.dataset_name,
        "image_size": options.image_size,
        "epochs": options.epochs,
        "validation": options.validation,
        "keep_ids": options.keep_ids,
        "seed": options.seed,
        "resume": bool(options.resume),
        "channels_last": options.channels_last,
        "arguments": options.args,
    }


def recipe_fields(options: argparse.Namespace) -> dict[str, Any]:
    """The recipe and what replaces its values, as fields of `TrainSettings`."""
    return {"recipe": options.recipe, "changes": dict(parse_override(text) for text in options.set)}


def view_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of Factorized Distillation's views."""
    parser.add_argument("--views", nargs="+", help="names, bands NAME=TOP:BOTTOM, Hol+G1, or all")
    parser.add_argument("--view-size", type=int, nargs=2, help="height and width of a part of a picture")


def published_views(options: argparse.Namespace) -> dict[str, Any]:
    """Factorized Distillation as published: `published` of `parse_example`."""
    return {"recipe": "fd-student", "views": ["all"], "image_size": PEOPLE, "view_size": (224, 224)}


def view_fields(options: argparse.Namespace) -> dict[str, Any]:
    """The views as fields of `FDSettings`."""
    views = options.views or ["all"]
    return {"views": views[0] if len(views) == 1 else views, "view_size": options.view_size}


def pretraining_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of KDEP's teacher and pictures."""
    parser.add_argument("--teacher", help="folder, NAMESPACE/NAME or timm/NAME; by default a small one is trained")
    parser.add_argument("--tap", default="features", help="its features in front of the classifier, or of its map")
    parser.add_argument("--student", default="res18-x0.25", help="a variant: res18, mobilenetv2, res50-s3, ...")
    parser.add_argument("--basis", help="file of the basis; by default in the output folder")
    parser.add_argument("--split", default="train", help="part of the data set")
    parser.add_argument("--share", type=float, default=1.0, help="of the pictures, drawn by the seed")
    parser.add_argument("--per-class", type=int, help="pictures of each class in place of a share")
    parser.add_argument("--limit", type=int, help="the first so many pictures only")
    parser.add_argument("--streaming", action="store_true", help="read the data set as a stream, up to --limit")


def published_pretraining(options: argparse.Namespace) -> dict[str, Any]:
    """KDEP as published, in the people's size where the recipe is theirs: `published` of `parse_example`."""
    people = options.recipe.startswith("kdep-people")
    return {"recipe": "kdep", "student": "res18", "image_size": PEOPLE if people else (224, 224)}


def pretraining_fields(options: argparse.Namespace) -> dict[str, Any]:
    """Teacher, student and pictures as fields of `KDEPSettings`."""
    names = ("teacher", "tap", "basis", "split", "share", "per_class", "limit", "streaming")
    return {"model": options.student, **{name: getattr(options, name) for name in names}}
