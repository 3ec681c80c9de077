"""Train and evaluate a classifier of general pictures: PTL's CIFAR experiments and KDEP's transfer learning."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from transformers import TrainerCallback, set_seed

from reid_hub.data.images import ImageDataset
from reid_hub.data.pictures import draw_pictures
from reid_hub.data.stored import training_images
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
from reid_hub.runs.models import (
    check_changes,
    check_free_size,
    has_free_size,
    is_checkpoint,
    new_model,
    recipe_config,
    shortest_in,
)
from reid_hub.runs.provenance import note_step, provenance
from reid_hub.runs.train import TrainSettings, load_splits, method_of, new_trainer, publish, run, start_weights
from reid_hub.training import RECIPES, Recipe, ReIDTrainer, TrainingSubset, draw_images, override

logger = get_logger(__name__)

# What lies in front of a trunk and behind it.
_OF_EDGES = tuple(
    f"config.{name}"
    for name in (
        "image_size", "image_mean", "image_std", "resize_shortest", "interpolation", "neck", "classifier_hidden",
    )
)  # fmt: skip


@dataclass
class ClassifySettings(TrainSettings):
    """What to train on which classes, and where to write it.

    Attributes:
        data: a data set with the columns image and label and the splits train and test.
        model: a variant; or a checkpoint of ours to go on with. Of one without a classifier the trunk goes on: neck,
            normalisation and what is cut off are the recipe's, as a variant has them.
        init: weights of the trunk to start from, see `load_weights`.
        evaluate_every: epochs between two evaluations on the test set; the last epoch always has one.
        keep: share of the training images of each class that is kept, drawn by the seed (the few-shot setting).
        per_class: so many of each class in place of a share.
    """

    output_dir: str | Path = "runs/classify"
    data: str = "shapes"
    recipe: str = "classify-demo"
    validation: float = 0.0
    evaluate_every: int = 1
    keep: float = 1.0
    per_class: int | None = None

    def __post_init__(self):
        if self.validation or self.keep_ids != 1 or self.flip:
            raise ValueError(
                "a classifier is watched on the test set as the papers do, and is shown each picture once: validation, "
                f"keep_ids and flip are not offered, got {self.validation}, {self.keep_ids} and {self.flip}; few "
                "pictures of every class is keep"
            )
        if self.evaluate_every < 1:
            raise ValueError(f"evaluate_every must be at least 1 epoch, got {self.evaluate_every}")
        if self.per_class is not None and (self.per_class < 1 or self.keep != 1):
            raise ValueError(
                f"per_class is at least 1 picture, in place of keep; got per_class={self.per_class}, keep={self.keep}"
            )


def classify(
    settings: ClassifySettings,
    *,
    splits: Mapping[str, Any] | None = None,
    about: Mapping[str, Any] | None = None,
    **parts: Any,
) -> ClassificationEvaluation:
    """Train by a recipe, evaluate on the test set on the way and at the end.

    The output folder has the last epoch's model, and in best/ that of the best evaluation. The papers report the best,
    which was chosen on the test set and is therefore too good; the results have both.

    Args:
        splits: in place of the settings' data set as it is.
        about: more for the results to say of the training.
        parts: what else `build_classifier_trainer` takes, for methods that need more than a data set.

    Returns:
        What results.json holds: "top1" and "top5" of the last epoch, "top1_best" of the best one, "best_epoch".

    Raises:
        ValueError, FileNotFoundError: for anything unknown or impossible, before training starts.
    """
    recipe = override(lookup(RECIPES, settings.recipe, "recipe"), settings.changes)
    splits = load_splits(settings) if splits is None else splits
    names = class_names(splits)
    set_seed(settings.seed)
    model = new_classifier(settings, recipe, names)
    test = open_images(splits["test"], model.config)
    trainer = build_classifier_trainer(settings, recipe, model, splits["train"], test, **parts)
    run(trainer, settings, splits, report=_report)
    training = provenance(settings, recipe, trainer)
    training = replace(training, classes=training.identities, identities=None)
    results = evaluate_classifier(
        trainer.model.export(),
        test,
        history=trainer.state.log_history,
        dataset=DatasetInfo(name=settings.dataset_name or settings.data, split="test", data_dir_counts=_counts(splits)),
        training=training.with_extra({"keep": settings.keep, "per_class": settings.per_class, **(about or {})}),
        folder=settings.output_dir,
    )
    publish(trainer, settings)
    return results


def new_classifier(settings: ClassifySettings, recipe: Recipe, names: Sequence[str]) -> ReIDForImageClassification:
    """The model to train, of these classes: a variant with the recipe's configuration, or a checkpoint as it is.

    A checkpoint's classifier goes on; on the trunk of a `ReIDModel` one starts anew, see `_on_trunk`.

    Raises:
        ValueError: for a name that is neither, or a classifier of other classes.
    """
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}
    size = {} if settings.image_size is None else {"image_size": list(settings.image_size)}
    if is_checkpoint(settings.model):
        known = ReIDConfig.from_pretrained(settings.model)
        if ReIDForImageClassification.__name__ not in (known.architectures or ()):
            return _begun(_on_trunk(settings, recipe, labels), settings, recipe)
        check_changes(known, settings.changes)
        if known.id2label != labels["id2label"]:
            raise ValueError(
                f"{settings.model} knows {known.num_labels} classes ({', '.join(known.id2label.values())[:50]}...), "
                f"not the {len(names)} of the data: start from its trunk alone with init"
            )
        if size and size["image_size"] != known.image_size:
            check_free_size(known, settings.image_size)
            size["resize_shortest"] = shortest_in(settings.image_size, known.image_size, known.resize_shortest)
        model = ReIDForImageClassification.from_pretrained(settings.model, **labels, **size)
    else:
        # No neck: nothing compares the features in front of it.
        fields = {"neck": "none", **recipe_config(settings, recipe), **size, **labels}
        model = ReIDForImageClassification(ReIDConfig.from_variant(settings.model, **fields))
    return _begun(model, settings, recipe)


def _begun(model: ReIDForImageClassification, settings: ClassifySettings, recipe: Recipe) -> ReIDForImageClassification:
    start_weights(model.reid, settings)
    note_step(model.config, settings, recipe)
    return model


def _on_trunk(settings: ClassifySettings, recipe: Recipe, labels: Mapping[str, Any]) -> ReIDForImageClassification:
    """A new classifier on the trunk of a `ReIDModel`, at whose edges everything is as the recipe prescribes it.

    So that it differs in nothing but weights from the same variant that starts from random ones.
    """
    of_recipe = recipe.config.get("image_size") if has_free_size(ReIDConfig.from_pretrained(settings.model)) else None
    base = new_model(settings.model, settings.image_size or of_recipe)
    check_changes(base.config, {name: v for name, v in settings.changes.items() if name not in _OF_EDGES})
    asked = {"neck": "none", **recipe_config(replace(settings, image_size=base.config.image_size), recipe)}
    if "last_stride" in asked and asked["last_stride"] != base.config.last_stride:
        logger.warning(
            f"the backbone keeps its last_stride {base.config.last_stride}, the recipe's variants have another"
        )
    edges = {name: value for name, value in asked.items() if f"config.{name}" in _OF_EDGES and name != "image_size"}
    fields = {name: value for name, value in base.config.to_dict().items() if name != "architectures"}
    model = ReIDForImageClassification(ReIDConfig.from_dict({**fields, **edges, **labels}))
    goes_on, state = base.state_dict(), model.reid.state_dict()
    model.reid.load_state_dict({**state, **{name: goes_on[name] for name in state if name in goes_on}})
    return model


def build_classifier_trainer(
    settings: ClassifySettings,
    recipe: Recipe,
    model: ReIDForImageClassification,
    train_split: Any,
    test: ImageDataset,
    *,
    make_method: Callable[[ReIDForImageClassification, TrainingSubset], Method] | None = None,
    make_callbacks: Callable[[Method], Sequence[TrainerCallback]] = lambda method: (),
) -> ReIDTrainer:
    """The trainer of a run: a model on (a share of) the training split, watched on the test set.

    Args:
        make_method: from the model and what it is trained on; by default the recipe's method with its options.
        make_callbacks: further callbacks of the trainer.

    Raises:
        ValueError: if a class has no training pictures, or the recipe trains no classifier.
    """
    images = training_images(
        train_split,
        tuple(model.config.image_size),
        recipe.augmentation,
        interpolation=recipe.interpolation,
        resize_shortest=model.config.resize_shortest,
    )
    if settings.per_class is None:
        rows = draw_images(images.pids, settings.keep, settings.seed)
    else:
        rows = draw_pictures(len(images), images.pids, per_class=settings.per_class, seed=settings.seed)
    subset = TrainingSubset(images, rows)
    absent = sorted(set(range(model.num_labels)) - set(subset.identities.tolist()))
    if absent or len(subset.identities) != model.num_labels:
        names = ", ".join(model.config.id2label[number] for number in absent[:5])
        raise ValueError(f"{len(absent)} of {model.num_labels} classes have no training pictures: {names}")
    if make_method is None and not issubclass(lookup(METHODS, recipe.method, "method"), ClassificationMethod):
        raise ValueError(
            f"a classifier needs a recipe of the method 'classification' (cifar, transfer, classify-demo), got one of "
            f"{recipe.method!r}"
        )
    method = (make_method or partial(method_of, recipe))(model, subset)
    return new_trainer(
        settings,
        recipe,
        method,
        subset,
        evaluator=lambda exported: topk_accuracy(*classify_split(exported, test, progress=False)),
        evaluate_every=settings.evaluate_every,
        arguments={"metric_for_best_model": "top1"},
        callbacks=make_callbacks(method),
    )


def evaluate_classifier(
    model: ReIDForImageClassification,
    test: ImageDataset,
    *,
    history: Sequence[Mapping[str, float]] = (),
    dataset: DatasetInfo,
    training: TrainingInfo,
    folder: str | Path | None = None,
) -> ClassificationEvaluation:
    """Evaluate a trained classifier; returns what results.json holds, and writes it with the card into `folder`.

    Args:
        history: the trainer's log, for the best evaluation; of equal ones the first counts.
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
    """The names of the classes of a data set with the splits train and test.

    Raises:
        ValueError: if a split is missing, or has no labels, or not of all its pictures.
    """
    for part in ("train", "test"):
        if part not in splits or "label" not in splits[part].column_names:
            raise ValueError(
                f"a classifier needs a data set with labels and the splits train and test (cifar10, classes, ...); its "
                f"splits are {', '.join(splits)}, {part} with labels is missing"
            )
        if unlabelled := int((np.asarray(splits[part]["label"]) < 0).sum()):
            raise ValueError(f"{unlabelled} pictures of {part} have a label below 0, which is none: leave them out")
    feature = splits["train"].features["label"]
    if hasattr(feature, "names"):
        return list(feature.names)
    return [str(number) for number in range(max(splits["train"]["label"]) + 1)]


def _counts(splits: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    return {
        part: {"images": len(split), "classes": len(np.unique(np.asarray(split["label"])))}
        for part, split in splits.items()
    }


def _report(splits: Mapping[str, Any]) -> None:
    for part, found in _counts(splits).items():
        logger.info(f"{part}: {found['images']:,} images of {found['classes']:,} classes")
