"""The options that several runs share, and the settings of a training."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from reid_hub.errors import ReIDError
from reid_hub.registry import lookup
from reid_hub.runs.options import Pairs, Part, Settings, option
from reid_hub.training import RECIPES, Recipe, override

IMAGE_SIZE = "Height and width of the images in pixels (default: the model's)."


@dataclass(frozen=True)
class DataArguments(Part):
    """The data set to train or evaluate on."""

    data: str = option("synthetic", "Data set: a name of `reid-hub list datasets`, or NAMESPACE/NAME on the Hub.")
    data_dir: str | None = option(None, "Folder of the unpacked data set.")
    data_option: Pairs = option(Pairs, "Option of the data set's loader, such as camera=PATTERN.", metavar="NAME=VALUE")
    dataset_name: str | None = option(None, "Name of the data set in results and card (default: --data).")

    @property
    def name(self) -> str:
        """What the results call the data set."""
        return self.dataset_name or self.data


@dataclass(frozen=True)
class ModelArguments(Part):
    """The model to train."""

    model: str = option("res18-x0.25", "Variant (`reid-hub list variants`), checkpoint folder or NAMESPACE/NAME.")
    init: str | None = option(None, "Initial weights: a file, torchvision/NAME, timm/NAME or a checkpoint.")
    image_size: list[int] | None = option(None, IMAGE_SIZE, nargs=2, metavar="PIXELS")
    channels_last: bool = option(False, "Store images and convolutions channels last: faster for CNNs.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size is not None:
            check_size(self.image_size)
            self._put("image_size", list(self.image_size))


@dataclass(frozen=True)
class RecipeArguments(Part):
    """How to train.

    Equivalent settings are stored once: a trainer argument that the recipe or an option here also sets
    (`--arg num_train_epochs=3`, `--arg learning_rate=0.1`) becomes that option or that value of the recipe.
    """

    recipe: str = option("demo", "Training recipe (`reid-hub list recipes`).")
    set: Pairs = option(Pairs, "Replace a value of the recipe, such as learning_rate=0.001.", metavar="NAME=VALUE")
    epochs: float | None = option(None, "Number of epochs (default: the recipe's); its schedule is stretched to them.")
    seed: int = option(0, "Seed of weights, batches and augmentation.")
    arg: Pairs = option(Pairs, "Set an argument of transformers.TrainingArguments, such as bf16=true.",
                        metavar="NAME=VALUE")  # fmt: skip

    _OPTIONS: ClassVar[dict[str, str]] = {"num_train_epochs": "epochs", "seed": "seed"}
    _OF_RECIPE: ClassVar[dict[str, str]] = {
        "learning_rate": "learning_rate",
        "weight_decay": "weight_decay",
        "per_device_train_batch_size": "batch_size",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        arguments, changes = Pairs(self.arg), Pairs(self.set)
        for name, own in self._OPTIONS.items():
            if name in arguments:
                value, default = arguments.pop(name), type(self).__dataclass_fields__[own].default
                _say_once(name, value, own, getattr(self, own), default)
                self._put(own, value)
        for name, own in self._OF_RECIPE.items():
            if name in arguments:
                value = arguments.pop(name)
                _say_once(name, value, own, changes.get(own), None)
                changes[own] = value
        self._put("arg", arguments)
        self._put("set", changes)
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            raise ReIDError(
                f"epochs must be above 0 and finite, got {self.epochs}; a weight chain that is only clustered lies in "
                "the folder `clustered` of a refinement, or comes from WeightChain.from_teacher"
            )

    @property
    def of_machine(self) -> dict[str, Any]:
        """The batch size, if it is given: what a machine can hold counts for the stages before a run, too."""
        return {name: self.set[name] for name in ("batch_size",) if name in self.set}

    @property
    def resolved(self) -> Recipe:
        """The recipe with what replaces its values.

        Raises:
            ReIDError: for an unknown recipe or value.
        """
        return override(lookup(RECIPES, self.recipe, "recipe"), self.set)


@dataclass(frozen=True)
class OutputArguments(Part):
    """Output folder and repository."""

    out: str = option("runs/train", "Folder of the result.")
    resume: bool = option(False, "Skip finished stages and resume interrupted ones in --out.")
    push: str | None = option(None, "Publish the result to this Hub repository.", metavar="NAMESPACE/NAME")
    private: bool | None = option(None, "Make the repository private if it is created.", nargs="?", const=True)


@dataclass(frozen=True)
class PeopleArguments(Part):
    """Selection of the training identities."""

    validation: float = option(0.1, "Share of the training identities held out to watch the training; 0 for none.")
    keep_ids: float = option(1.0, "Share of the training identities kept, drawn by the seed (few-shot).")


@dataclass(frozen=True)
class EmbeddingArguments(Part):
    """How an image becomes a vector."""

    flip: bool = option(False, "Average the embeddings of an image and of its mirror image.")


@dataclass(frozen=True)
class RunSettings(Settings):
    """Settings common to all training runs."""

    data: DataArguments = DataArguments()
    model: ModelArguments = ModelArguments()
    recipe: RecipeArguments = RecipeArguments()
    output: OutputArguments = OutputArguments()
    origin: str | None = None  # origin of the initial weights ("oskt", "wtsel", ...); names the result

    @property
    def method(self) -> str:
        """What the results call the method."""
        return self.origin or self.recipe.resolved.method

    @property
    def epochs(self) -> float:
        """The number of epochs."""
        return self.recipe.epochs or self.recipe.resolved.epochs


@dataclass(frozen=True)
class TrainSettings(RunSettings):
    """Settings of training on labelled people."""

    people: PeopleArguments = PeopleArguments()
    embedding: EmbeddingArguments = EmbeddingArguments()


@dataclass(frozen=True)
class CheckpointArguments(Part):
    """An existing model."""

    model: str = option(None, "Checkpoint folder or NAMESPACE/NAME.", argument=True)
    revision: str | None = option(None, "Branch, tag or commit of a repository.")


def check_size(size: Any) -> None:
    """Reject an invalid image size.

    Raises:
        ReIDError: unless it is a height and a width.
    """
    if len(size) != 2 or min(size) < 1:
        raise ReIDError(f"an image size is a height and a width in pixels, such as 256 128; got {list(size)}")


def _say_once(argument: str, value: Any, option: str, given: Any, default: Any) -> None:
    if given not in (default, value):
        raise ReIDError(f"{option} is {given} and the argument {argument} is {value}: give one of them")
