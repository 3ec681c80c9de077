"""Train a model: data set, model, recipe and trainer put together; evaluated, and saved with its results and card."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, TrainerCallback, set_seed
from transformers.trainer_utils import get_last_checkpoint

from reid_hub.data import describe_splits, load_reid_dataset
from reid_hub.data.stored import training_images
from reid_hub.evaluation import RetrievalEvaluation, embed, evaluate_embedded
from reid_hub.hub.convert import load_weights
from reid_hub.hub.push import push_folder
from reid_hub.logging import get_logger
from reid_hub.methods import METHODS, Method, SupervisedMethod
from reid_hub.models import ReIDModel
from reid_hub.registry import lookup
from reid_hub.runs.evaluate import evaluate
from reid_hub.runs.models import is_checkpoint, model_to_train
from reid_hub.runs.processes import wait_for_everyone
from reid_hub.runs.provenance import data_and_start, epochs_of, note_step, provenance
from reid_hub.training import (
    RECIPES,
    Holdout,
    Recipe,
    ReIDTrainer,
    TrainingSubset,
    draw_identities,
    override,
    read_heads,
    split_identities,
    training_arguments,
)

logger = get_logger(__name__)


@dataclass
class TrainSettings:
    """What to train, on what, and where to write it.

    Attributes:
        output_dir: becomes the model's folder; best/ and the checkpoints to resume from lie in it.
        data, data_dir, data_options: see `load_reid_dataset`.
        dataset_name: what the results call the data set; by default `data`.
        model: a variant (`list_variants`), or a checkpoint of ours (folder or repository) to go on with.
        recipe, changes: a key of `RECIPES`, and values that replace the recipe's (see `override`).
        image_size: (height, width); by default that of the model.
        init: weights to start from, see `load_weights`.
        epochs: in place of the recipe's, whose schedule is stretched in proportion.
        validation: share of the *training* identities held out to watch the training; 0 trains on all.
        resume: go on from the last checkpoint in `output_dir`, if there is one.
        flip: average the embeddings of mirror images on the test set.
        channels_last: memory format; faster for CNNs in half precision.
        keep_ids: share of the training identities that are kept, drawn by the seed (the few-shot setting).
        origin: how the initial weights came about ("oskt", "wtsel", ...); names the result.
        push_to, private: publish the result as this repository of the Hub.
        arguments: anything of `transformers.TrainingArguments`, such as bf16, report_to, save_steps.
    """

    output_dir: str | Path = "runs/train"
    data: str = "synthetic"
    data_dir: str | None = None
    data_options: Mapping[str, Any] = field(default_factory=dict)
    dataset_name: str | None = None
    model: str = "res18-x0.25"
    recipe: str = "demo"
    changes: Mapping[str, Any] = field(default_factory=dict)
    image_size: Sequence[int] | None = None
    init: str | None = None
    epochs: float | None = None
    seed: int = 0
    validation: float = 0.1
    resume: bool = False
    flip: bool = False
    channels_last: bool = False
    keep_ids: float = 1.0
    origin: str | None = None
    push_to: str | None = None
    private: bool | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)


def train(
    settings: TrainSettings,
    *,
    splits: Mapping[str, Any] | None = None,
    about: Mapping[str, Any] | None = None,
    **parts: Any,
) -> RetrievalEvaluation | None:
    """Train by a recipe, then evaluate the last epoch's model once on the test set.

    Args:
        splits: in place of the settings' data set as it is.
        about: more for the results to say of the training.
        parts: what else `build_trainer` takes, for methods that need more than a data set.

    Returns:
        What results.json holds, or None where the data set has no query and gallery.

    Raises:
        ValueError, FileNotFoundError: for anything unknown or impossible, before training starts.
    """
    recipe = override(lookup(RECIPES, settings.recipe, "recipe"), settings.changes)
    splits = load_splits(settings) if splits is None else splits
    trainer = build_trainer(settings, recipe, splits["train"], about=about, **parts)
    run(trainer, settings, splits)
    results = None
    if {"query", "gallery"} <= splits.keys():
        results = evaluate(
            trainer.model.export(),
            splits,
            dataset_name=settings.dataset_name or settings.data,
            flip=settings.flip,
            training=provenance(settings, recipe, trainer).with_extra(about),
            folder=settings.output_dir,
        )
    publish(trainer, settings)
    return results


def load_splits(settings: TrainSettings) -> Mapping[str, Any]:
    """The data set of a run.

    Raises:
        ValueError: if it has nothing to train on.
    """
    splits = load_reid_dataset(settings.data, settings.data_dir, **settings.data_options)
    if "train" not in splits:
        raise ValueError(f"{settings.data} has no training split, only {', '.join(splits)}")
    return splits


def run(
    trainer: ReIDTrainer,
    settings: TrainSettings,
    splits: Mapping[str, Any],
    report: Callable[[Mapping[str, Any]], None] | None = None,
) -> None:
    """Train, from the last checkpoint where the settings say so, and write the exported model; `report` of the data."""
    output_dir = Path(settings.output_dir)
    last = get_last_checkpoint(str(output_dir)) if settings.resume and output_dir.is_dir() else None
    if trainer.is_world_process_zero():
        (report or report_splits)(splits)
    trainer.train(resume_from_checkpoint=last)
    trainer.save_model()
    wait_for_everyone()


def publish(trainer: ReIDTrainer, settings: TrainSettings) -> None:
    """Push what a run made, where the settings name a repository."""
    if settings.push_to and trainer.is_world_process_zero():
        push_folder(settings.output_dir, settings.push_to, private=settings.private)


def build_trainer(
    settings: TrainSettings,
    recipe: Recipe,
    train_split: Any,
    *,
    make_method: Callable[[ReIDModel, TrainingSubset], Method] | None = None,
    validated: Callable[[PreTrainedModel], ReIDModel] = lambda model: model,
    make_callbacks: Callable[[Method], Sequence[TrainerCallback]] = lambda method: (),
    about: Mapping[str, Any] | None = None,
) -> ReIDTrainer:
    """The trainer of a run: a model on the training split, watched on held-out identities of it.

    Args:
        make_method: from the model and what it is trained on; by default the recipe's method with its options.
        validated: from what the method exports to the model that is evaluated.
        make_callbacks: further callbacks of the trainer.
        about: what else decides the run, such as a teacher; it goes on from checkpoints of the same alone.
    """
    set_seed(settings.seed)
    model = model_to_train(settings, recipe)
    start_weights(model, settings)
    note_step(model.config, settings, recipe)
    given = settings.init is not None or is_checkpoint(settings.model)
    about = {"start_weights": model.fingerprint() if given else "random", **(about or {})}
    resize = {"interpolation": recipe.interpolation, "resize_shortest": model.config.resize_shortest}
    images = training_images(train_split, tuple(model.config.image_size), recipe.augmentation, **resize)
    rows, evaluator = np.flatnonzero(images.pids >= 0), None
    if settings.validation:
        holdout = split_identities(images.pids, images.camids, settings.validation, settings.seed)
        watch = partial(validate, train_split=images.dataset, holdout=holdout)
        rows, evaluator = holdout.train, lambda exported: watch(validated(exported))
    if settings.keep_ids != 1:
        rows = rows[np.isin(images.pids[rows], draw_identities(images.pids[rows], settings.keep_ids, settings.seed))]
    subset = TrainingSubset(images, rows)
    method = (make_method or partial(method_of, recipe))(model, subset)
    options = {"evaluator": evaluator, "callbacks": make_callbacks(method), "about": about}
    return new_trainer(settings, recipe, method, subset, **options)


def start_weights(model: ReIDModel, settings: TrainSettings) -> None:
    """Give a model the initial weights that the settings name, if they name some."""
    if settings.init is not None:
        logger.info(f"initial weights from {settings.init}: {load_weights(model, settings.init)}")


def new_trainer(
    settings: TrainSettings,
    recipe: Recipe,
    method: Method,
    subset: TrainingSubset,
    *,
    evaluator: Callable[[Any], Mapping[str, float]] | None = None,
    arguments: Mapping[str, Any] | None = None,
    about: Mapping[str, Any] | None = None,
    **options: Any,
) -> ReIDTrainer:
    """The trainer that the settings describe, of a method on a training set.

    Args:
        arguments: defaults for the settings' arguments.
        about: see `build_trainer`.
        options: further ones of `ReIDTrainer`.
    """
    decay = recipe.weight_decay
    if "weight_decay" not in settings.changes:
        decay = recipe.decay_for(len(subset) * epochs_of(settings, recipe))
    values = {
        "weight_decay": decay,
        "seed": settings.seed,
        "eval_strategy": "epoch" if evaluator else "no",
        **({} if settings.epochs is None else {"num_train_epochs": settings.epochs}),
        **(arguments or {}),
        **settings.arguments,
    }
    args = training_arguments(recipe, settings.output_dir, **values)
    origin = {**data_and_start(settings), **(about or {})}
    options = {"evaluator": evaluator, "channels_last": settings.channels_last, "origin": origin, **options}
    return ReIDTrainer(method, recipe, args, subset, **options)


def method_of(recipe: Recipe, model: ReIDModel, subset: TrainingSubset) -> Method:
    """The recipe's method with its options; a ValueError if it needs more than a data set."""
    make = lookup(METHODS, recipe.method, "method")
    needs = [p.name for p in signature(make).parameters.values() if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    if needs:
        raise ValueError(
            f"the method {recipe.method!r} needs more than a data set ({', '.join(needs)}): see reid-hub --help"
        )
    return make(model, int(subset.pids.max()) + 1, **recipe.options)


def start_heads(method: SupervisedMethod, folder: str | Path, subset: TrainingSubset) -> None:
    """Start a method's classifier and centers from those of the training run in a folder; says what does not fit.

    Raises:
        ValueError: if they are of other identities.
    """
    try:
        heads = read_heads(folder, subset.identities)
    except FileNotFoundError:
        logger.warning(f"{folder} has no classifier beside it: it starts from random weights")
        return
    state = method.state_dict()
    used = {name: tensor for name, tensor in heads.items() if name in state and tensor.shape == state[name].shape}
    method.load_state_dict({**state, **used})
    if left := sorted(set(heads) - set(used)):
        logger.warning(f"this recipe has another classifier than {folder}: {', '.join(left)} of it are not used")


def validate(model: ReIDModel, *, train_split: Any, holdout: Holdout) -> dict[str, float]:
    """Metrics on the identities that were held out of the training split."""
    parts = [holdout.query, holdout.gallery]
    query, gallery = (embed(model, train_split.select(rows), progress=False) for rows in parts)
    results = evaluate_embedded(query, gallery, flip=False, progress=False)
    return {name: getattr(results, name) for name in ("mAP", "rank1", "rank5", "rank10", "mINP")}


def report_splits(splits: Mapping[str, Any], show: Callable[[str], None] = print) -> None:
    """Say what the data holds and what in it training or evaluation will skip."""
    report = describe_splits(splits)
    for name in splits:
        part = report[name]
        single = part["single_image_ids"], part["single_camera_ids"]
        note = f" ({single[0]} with one image, {single[1]} with one camera)" if any(single) else ""
        show(f"{name}: {part['images']:,} images of {part['identities']:,} identities{note}, {part['cameras']} cameras")
    if report.get("queries_without_true_match"):
        show(f"{report['queries_without_true_match']} queries have no true match and are left out of the evaluation")
    if report["camera_note"]:
        show(report["camera_note"])
