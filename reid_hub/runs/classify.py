"""Train and evaluate a general image classifier: PTL's CIFAR experiments and KDEP's transfer learning."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch.distributed as dist

from reid_hub.data.images import ImageDataset
from reid_hub.data.stored import training_images
from reid_hub.data.unlabelled import draw_rows
from reid_hub.errors import ReIDError
from reid_hub.evaluation import (
    ClassificationEvaluation,
    ClassificationMetrics,
    ClassificationProtocol,
    DatasetInfo,
    TrainingInfo,
    measure_cost,
    topk_accuracy,
)
from reid_hub.evaluation import classify as classify_split
from reid_hub.evaluation.embedding import open_images
from reid_hub.hub.card import write_card
from reid_hub.logging import get_logger
from reid_hub.methods import METHODS, ClassificationMethod, Method
from reid_hub.models import ReIDConfig, ReIDForImageClassification
from reid_hub.registry import lookup
from reid_hub.runs.lineage import note_step
from reid_hub.runs.models import (
    check_changes,
    check_free_size,
    has_free_size,
    is_checkpoint,
    new_model,
    recipe_config,
    shortest_in,
)
from reid_hub.runs.options import Part, option
from reid_hub.runs.settings import DataArguments, OutputArguments, RecipeArguments, RunSettings
from reid_hub.runs.train import Evaluator, TrainingRun, load_splits, start_weights
from reid_hub.training import ReIDTrainer, TrainingSubset, draw_images

logger = get_logger(__name__)

# Configuration fields before and after the backbone.
_OF_EDGES = tuple(
    f"config.{name}"
    for name in (
        "image_size", "image_mean", "image_std", "resize_shortest", "interpolation", "neck", "classifier_hidden",
    )
)  # fmt: skip


@dataclass(frozen=True)
class ClassArguments(Part):
    """Selection of images per class, and the evaluation interval."""

    keep: float = option(1.0, "Share of the training images of each class kept, drawn by the seed (few-shot).")
    per_class: int | None = option(None, "Number of images per class, instead of a share.")
    evaluate_every: int = option(1, "Number of epochs between evaluations on the test set.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.evaluate_every < 1:
            raise ReIDError(f"evaluate_every must be at least 1 epoch, got {self.evaluate_every}")
        if self.per_class is not None and (self.per_class < 1 or self.keep != 1):
            raise ReIDError(
                f"per_class is at least 1 image, in place of keep; got per_class={self.per_class}, keep={self.keep}"
            )


@dataclass(frozen=True)
class ClassifySettings(RunSettings):
    """Settings of a classifier's training, on a data set with columns image and label and splits train and test.

    `model` is a variant, or a reid_hub checkpoint to continue. From a checkpoint without a classifier only the backbone
    is used; neck, normalisation and cropping are the recipe's, as for a variant.
    """

    data: DataArguments = DataArguments(data="shapes")
    recipe: RecipeArguments = RecipeArguments(recipe="classify-demo")
    output: OutputArguments = OutputArguments(out="runs/classify")
    classes: ClassArguments = ClassArguments()


class Classify(TrainingRun[ClassifySettings]):
    """Train a general image classifier, with evaluations on the test set during training.

    The folder contains the last epoch's model, and best/ that of the best evaluation. The papers report the best one,
    which is selected on the test set and therefore biased upwards; the results contain both.
    """

    kind: ClassVar[str] = "classify"
    arguments: ClassVar[Mapping[str, Any]] = {"metric_for_best_model": "top1"}

    @cached_property
    def data(self) -> Mapping[str, Any]:
        """The splits; all images of train and test have a label."""
        splits = self.splits or load_splits(self.settings)
        class_names(splits)
        return splits

    def load(self) -> Mapping[str, Any]:
        return self.data

    def key(self) -> dict[str, Any]:
        return {**super().key(), "keep": self.settings.classes.keep, "per_class": self.settings.classes.per_class}

    def new_model(self) -> ReIDForImageClassification:
        return new_classifier(self.settings, class_names(self.data))

    def images(self, model: ReIDForImageClassification, train_split: Any) -> tuple[TrainingSubset, Evaluator]:
        classes, seed = self.settings.classes, self.settings.recipe.seed
        images = training_images(
            train_split,
            tuple(model.config.image_size),
            self.recipe.augmentation,
            interpolation=self.recipe.interpolation,
            resize_shortest=model.config.resize_shortest,
        )
        if classes.per_class is None:
            rows = draw_images(images.pids, classes.keep, seed)
        else:
            rows = draw_rows(len(images), images.pids, per_class=classes.per_class, seed=seed)
        subset = TrainingSubset(images, rows)
        absent = sorted(set(range(model.num_labels)) - set(subset.identities.tolist()))
        if absent or len(subset.identities) != model.num_labels:
            names = ", ".join(model.config.id2label[number] for number in absent[:5])
            raise ReIDError(f"{len(absent)} of {model.num_labels} classes have no training images: {names}")
        self.test = open_images(self.data["test"], model.config)
        return subset, lambda exported: topk_accuracy(*classify_split(exported, self.test, progress=False))

    def new_trainer(
        self, method: Method, subset: TrainingSubset, evaluator: Evaluator | None, **options: Any
    ) -> ReIDTrainer:
        every = self.settings.classes.evaluate_every
        return super().new_trainer(method, subset, evaluator, evaluate_every=every, **options)

    def report(self, splits: Mapping[str, Any]) -> None:
        for part, found in _counts(splits).items():
            logger.info("%s: %s images of %s classes", part, f"{found['images']:,}", f"{found['classes']:,}")

    def describe(self, trainer: ReIDTrainer) -> TrainingInfo:
        classes, said = self.settings.classes, super().describe(trainer)
        said = replace(said, classes=said.identities, identities=None)
        return said.with_extra({"keep": classes.keep, "per_class": classes.per_class})

    def evaluate(
        self, trainer: ReIDTrainer, splits: Mapping[str, Any], training: TrainingInfo
    ) -> ClassificationEvaluation:
        return evaluate_classifier(
            trainer.model.export(),
            self.test,
            history=trainer.state.log_history,
            dataset=DatasetInfo(name=self.settings.data.name, split="test", data_dir_counts=_counts(splits)),
            training=training,
            folder=self.folder,
        )


def classify(
    settings: ClassifySettings, *, splits: Mapping[str, Any] | None = None, said: Mapping[str, Any] | None = None
) -> ClassificationEvaluation:
    """Train with a recipe, and evaluate on the test set during and after training; see `Classify`.

    Args:
        splits: used instead of the settings' full data set.
        said: further facts that determine the result, recorded in the results.

    Returns:
        The contents of results.json: "top1" and "top5" of the last epoch, "top1_best" of the best one, "best_epoch".

    Raises:
        ReIDError: for unknown or invalid settings, before training starts.
    """
    method = settings.recipe.resolved.method
    if not issubclass(lookup(METHODS, method, "method"), ClassificationMethod):
        raise ReIDError(
            f"a classifier needs a recipe of the method 'classification' (cifar, transfer, classify-demo), got one of "
            f"{method!r}"
        )
    return Classify(settings, splits or {}, said or {}).run()


def new_classifier(settings: ClassifySettings, names: Sequence[str]) -> ReIDForImageClassification:
    """Create the model to train on these classes: a variant configured by the recipe, or an unchanged checkpoint.

    A checkpoint's classifier is kept; the backbone of a `ReIDModel` gets a new one, see `_on_backbone`.

    Raises:
        ReIDError: if the name is neither, or the checkpoint's classifier has other classes.
    """
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}
    name, image_size = settings.model.model, settings.model.image_size
    size = {} if image_size is None else {"image_size": list(image_size)}
    if is_checkpoint(name):
        known = ReIDConfig.from_pretrained(name)
        if ReIDForImageClassification.__name__ not in (known.architectures or ()):
            return _begun(_on_backbone(settings, labels), settings)
        check_changes(known, settings.recipe.set)
        if known.id2label != labels["id2label"]:
            raise ReIDError(
                f"{name} knows {known.num_labels} classes ({', '.join(known.id2label.values())[:50]}...), "
                f"not the {len(names)} of the data: start from its backbone alone with init"
            )
        if size and size["image_size"] != known.image_size:
            check_free_size(known, image_size)
            size["resize_shortest"] = shortest_in(image_size, known.image_size, known.resize_shortest)
        model = ReIDForImageClassification.from_pretrained(name, **labels, **size)
    else:
        # No neck: the features before it are not compared.
        fields = {"neck": "none", **recipe_config(settings), **size, **labels}
        model = ReIDForImageClassification(ReIDConfig.from_variant(name, **fields))
    return _begun(model, settings)


def _begun(model: ReIDForImageClassification, settings: ClassifySettings) -> ReIDForImageClassification:
    start_weights(model.reid, settings)
    note_step(model.config, settings)
    return model


def _on_backbone(settings: ClassifySettings, labels: Mapping[str, Any]) -> ReIDForImageClassification:
    """Put a new classifier on the backbone of a `ReIDModel`; the recipe sets everything else.

    It thus differs only in its weights from the same variant with random initial weights.
    """
    name, changes = settings.model.model, settings.recipe.set
    has_any_size = has_free_size(ReIDConfig.from_pretrained(name))
    of_recipe = settings.recipe.resolved.config.get("image_size") if has_any_size else None
    base = new_model(name, settings.model.image_size or of_recipe)
    check_changes(base.config, {name: v for name, v in changes.items() if name not in _OF_EDGES})
    asked = {"neck": "none", **recipe_config(settings, base.config.image_size)}
    if "last_stride" in asked and asked["last_stride"] != base.config.last_stride:
        logger.info("the backbone keeps its last_stride %s, the recipe has another", base.config.last_stride)
    edges = {name: value for name, value in asked.items() if f"config.{name}" in _OF_EDGES and name != "image_size"}
    fields = {name: value for name, value in base.config.to_dict().items() if name != "architectures"}
    model = ReIDForImageClassification(ReIDConfig.from_dict({**fields, **edges, **labels}))
    goes_on, state = base.state_dict(), model.reid.state_dict()
    model.reid.load_state_dict({**state, **{name: goes_on[name] for name in state if name in goes_on}})
    return model


def evaluate_classifier(
    model: ReIDForImageClassification,
    test: ImageDataset,
    *,
    history: Sequence[Mapping[str, float]] = (),
    dataset: DatasetInfo,
    training: TrainingInfo,
    folder: str | Path | None = None,
) -> ClassificationEvaluation:
    """Evaluate a trained classifier; write results.json and the card to `folder`, and return the results.

    Args:
        history: the trainer's log, used to find the best evaluation; the first one wins a tie.
    """
    accuracy = topk_accuracy(*classify_split(model, test))
    watched = [(entry["eval_top1"], -entry["epoch"]) for entry in history if "eval_top1" in entry]
    best, epoch = max(watched, default=(accuracy["top1"], -training.epochs))
    results = ClassificationEvaluation(
        model=f"{model.config.variant or 'reid'}.{training.method}",
        dataset=dataset,
        metrics=ClassificationMetrics(**accuracy, top1_best=best, best_epoch=-epoch),
        protocol=ClassificationProtocol(
            num_images=len(test),
            resize_shortest=model.config.resize_shortest,
            image_size=list(model.config.image_size),
            evaluations=len(watched),
            best_chosen_on="the test set",
        ),
        cost=measure_cost(model),
        training=training,
    )
    if folder is not None and (not dist.is_initialized() or dist.get_rank() == 0):
        results.write(Path(folder) / "results.json")
        write_card(folder)
    return results


def class_names(splits: Mapping[str, Any]) -> list[str]:
    """Class names of a data set with the splits train and test.

    Raises:
        ReIDError: if a split is missing, or some or all of its images have no label.
    """
    for part in ("train", "test"):
        if part not in splits or "label" not in splits[part].column_names:
            raise ReIDError(
                f"a classifier needs a data set with labels and the splits train and test (cifar10, classes, ...); its "
                f"splits are {', '.join(splits)}, {part} with labels is missing"
            )
        if unlabelled := int((np.asarray(splits[part]["label"]) < 0).sum()):
            raise ReIDError(f"{unlabelled} images of {part} have a label below 0, which is none: leave them out")
    feature = splits["train"].features["label"]
    if hasattr(feature, "names"):
        return list(feature.names)
    return [str(number) for number in range(max(splits["train"]["label"]) + 1)]


def _counts(splits: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    return {
        part: {"images": len(split), "classes": len(np.unique(np.asarray(split["label"])))}
        for part, split in splits.items()
    }
