"""KDEP: a basis of a teacher's features, and a student's trunk pre-trained from them without labels."""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import set_seed

from reid_hub.data import load_reid_dataset
from reid_hub.data.describe import digest_sample
from reid_hub.data.images import ImageDataset
from reid_hub.data.pictures import load_pictures
from reid_hub.data.stored import training_images
from reid_hub.evaluation import DatasetInfo, Pretraining, Results, TrainingInfo, measure_cost
from reid_hub.files import atomic_file
from reid_hub.hub.card import write_card
from reid_hub.logging import get_logger
from reid_hub.methods import KDEPMethod
from reid_hub.methods.kdep import (
    PAIR_WEIGHTS,
    WITHOUT_BASIS,
    Basis,
    CachedFeatures,
    Crops,
    Tap,
    Teacher,
    check_weight,
    check_widths,
    fit_basis,
    new_pair,
    write_features,
)
from reid_hub.models import ReIDConfig, ReIDModel
from reid_hub.registry import lookup
from reid_hub.runs.evaluate import evaluate
from reid_hub.runs.kdep_settings import KDEPSettings
from reid_hub.runs.models import model_to_train, on_accelerator
from reid_hub.runs.processes import is_main_process, wait_for_everyone
from reid_hub.runs.provenance import is_done, note_step, note_teachers, provenance, public_source
from reid_hub.runs.teachers import open_teacher, small_teacher
from reid_hub.runs.train import new_trainer, publish, run, start_weights
from reid_hub.training import HEADS_FILE, Recipe, TrainingSubset, build_sampler
from reid_hub.training.resume import check_fresh

logger = get_logger(__name__)

ABOUT_FILE = HEADS_FILE.with_name("kdep.json")
_SAMPLE = 1024  # pictures that the scale of a new pair is computed from


def make_basis(settings: KDEPSettings) -> Path:
    """Make the basis of the teacher's features of the settings' pictures, or keep the one that is there.

    Any number of processes share the work, and a killed run goes on. Returns the file.

    Raises:
        ValueError, FileNotFoundError: for anything unknown, too few pictures, or the basis of another teacher.
    """
    recipe = settings.pretraining_recipe()
    settings = replace(settings, teacher=settings.teacher or small_teacher(settings))
    student = model_to_train(settings, recipe)
    teacher = _teacher(settings, recipe, student.config)
    _check_basis(settings, recipe, teacher)
    _fit(settings, _crops(settings, recipe, student.config, teacher))
    return settings.basis_file


def pretrain(settings: KDEPSettings) -> Results:
    """Pre-train a student; the folder becomes a model like any other, to be fine-tuned with `--model`.

    With `resume` what is done is not done again, and what was begun goes on: basis, features and training.

    Returns:
        What results.json holds: how it was made, and where the data set has a query and a gallery, what it retrieves
        as it is.

    Raises:
        ValueError, FileNotFoundError: for anything unknown or impossible, before training starts; so for a student
            wider than the teacher, or a basis of another one.
    """
    recipe, out, weight = settings.pretraining_recipe(), Path(settings.output_dir), _given_weight(settings)
    if not settings.resume:
        check_fresh(out)
    settings = replace(settings, teacher=settings.teacher or small_teacher(settings))
    set_seed(settings.seed)
    student = model_to_train(settings, recipe)
    start_weights(student, settings)
    # What cannot be is said before all pictures are opened, which may take hours.
    teacher = _teacher(settings, recipe, student.config)
    check_widths(recipe.options["align"], teacher.dim, Tap(student).dim)
    _check_basis(settings, recipe, teacher)
    note_step(student.config, settings, recipe)
    note_teachers(student.config, {settings.teacher: teacher.model.config})
    crops = _crops(settings, recipe, student.config, teacher)
    _check_batch(settings, recipe, crops.images)
    about = _about(settings, recipe, crops)
    if settings.resume and _is_done(settings, about):
        return Results.read(out / "results.json")
    basis = None if recipe.options["align"] in WITHOUT_BASIS else _fit(settings, crops)
    options = {"basis": basis, "features": crops.teacher, "seed": settings.seed, **recipe.options}
    options |= {} if weight is None else {"weight": weight}
    if settings.crops:
        # One folder serves all alignments, of which one wants what is behind the ReLU.
        cache = settings.cache_dir / ("post-relu" if crops.teacher.relu else "")
        write_features(cache, crops, settings.crops)
        options["features"] = CachedFeatures(cache, settings.crops, crops.images.dataset["path"][:], crops.mark())
    method = KDEPMethod(student, **options)
    if weight is None:
        method.weight, method.scale = _new_pair(method, crops)
    made_with = {**about, "basis": basis and basis.digest()}
    subset = TrainingSubset(crops.images, np.arange(len(crops)))
    trainer = new_trainer(settings, recipe, method, subset, about=made_with)
    if trainer.is_world_process_zero():
        with atomic_file(out / ABOUT_FILE) as temporary:
            temporary.write_text(json.dumps(about, indent=2, sort_keys=True) + "\n")
    run(trainer, settings, {}, report=partial(_report, about=about))
    more = {**made_with, "weight": method.weight, "scale": method.scale, "basis_features": basis and basis.count}
    training = replace(provenance(settings, recipe, trainer), identities=None).with_extra(more)
    results = _record(settings, trainer.model.export(), training)
    publish(trainer, settings)
    return results


def _teacher(settings: KDEPSettings, recipe: Recipe, student: ReIDConfig) -> Teacher:
    """The teacher on the accelerator of this process, which will be shown what the student sees."""
    model = on_accelerator(open_teacher(settings.teacher), settings.arguments)
    if settings.channels_last:
        model.to(memory_format=torch.channels_last)
    relu = recipe.options["align"] == "post-relu"
    return Teacher(model, tap=settings.tap, relu=relu, mean=student.image_mean, std=student.image_std)


def _check_basis(settings: KDEPSettings, recipe: Recipe, teacher: Teacher) -> None:
    """Refuse a basis that is there and of another teacher."""
    if recipe.options["align"] not in WITHOUT_BASIS and settings.basis_file.is_file():
        Basis.load(settings.basis_file, teacher.fingerprint())


def _check_batch(settings: KDEPSettings, recipe: Recipe, images: ImageDataset) -> None:
    """Refuse a batch that these pictures do not fill, before a pass over them."""
    size = settings.arguments.get("per_device_train_batch_size", recipe.batch_size)
    processes = int(os.environ.get("WORLD_SIZE", 1))
    build_sampler(recipe, images.pids, batch_size=size, seed=settings.seed, num_processes=processes)


def _crops(settings: KDEPSettings, recipe: Recipe, config: ReIDConfig, teacher: Teacher) -> Crops:
    """The pictures as the student of this configuration will see them."""
    pictures = load_pictures(
        settings.data,
        settings.data_dir,
        split=settings.split,
        share=settings.share,
        per_class=settings.per_class,
        limit=settings.limit,
        streaming=settings.streaming,
        seed=settings.seed,
        **settings.data_options,
    )
    size, options = tuple(config.image_size), {"interpolation": recipe.interpolation, "on_error": "skip"}
    images = training_images(pictures, size, recipe.augmentation, **options)
    return Crops(teacher, images, recipe.augmentation, config, settings.seed, len(pictures))


def _fit(settings: KDEPSettings, crops: Crops) -> Basis:
    about = {"data": settings.dataset_name or settings.data, "images": len(crops), "skipped": crops.skipped}
    about |= {"share": settings.share, "per_class": settings.per_class}
    basis = fit_basis(settings.basis_file, crops, about)
    if settings.basis is None and basis.about["pictures"] != crops.mark()["pictures"]:
        raise ValueError(
            f"{settings.basis_file} was made of other pictures by a start that did not end: remove it, or give it as "
            "the basis if that is what you want"
        )
    logger.info(f"basis of {basis.count:,} features of {basis.about['data']}: {settings.basis_file}")
    return basis


def _given_weight(settings: KDEPSettings) -> float | None:
    """The loss' weight, if the settings say one; refused before hours go into a basis."""
    if settings.weight is None:
        return None
    try:
        weight = float(settings.weight)
    except ValueError:
        return lookup(PAIR_WEIGHTS, settings.weight, "pair")
    return check_weight(weight)


def _new_pair(method: KDEPMethod, crops: Crops) -> tuple[float, float]:
    """Weight and scale of a new pair, from the first crops of some pictures."""
    rows = np.linspace(0, len(crops) - 1, min(_SAMPLE, len(crops))).astype(int)
    batches = np.array_split(rows, -(-len(rows) // 64))
    features = torch.cat([crops.represent(batch).cpu() for batch in batches])
    return new_pair(method.alignment(features))


def _about(settings: KDEPSettings, recipe: Recipe, crops: Crops) -> dict[str, Any]:
    """What decides the result beside the recipe: kept in the folder, so that only the same run goes on in it."""
    return {
        "data": settings.dataset_name or settings.data,
        "pictures": digest_sample(crops.images.dataset),
        "student": public_source(settings.model),
        "initial": None if settings.init is None else public_source(settings.init),
        "teacher": public_source(settings.teacher),
        "teacher_fingerprint": crops.teacher.fingerprint()["teacher"],
        "tap": settings.tap,
        "align": recipe.options["align"],
        "asked_weight": settings.weight,
        "images": len(crops),
        "skipped": crops.skipped,
        "share": settings.share,
        "per_class": settings.per_class,
        "limit": settings.limit,
        "crops": settings.crops,
    }


def _is_done(settings: KDEPSettings, about: Mapping[str, Any]) -> bool:
    """Whether the folder holds the result of these settings.

    Raises:
        ValueError: if it holds a run of others, finished or begun.
    """
    path = Path(settings.output_dir) / ABOUT_FILE
    if path.is_file():
        before = json.loads(path.read_text())
        if differing := [
            f"{key} {before.get(key)} instead of {about[key]}" for key in about if before.get(key) != about[key]
        ]:
            raise ValueError(f"{settings.output_dir} was made with {', '.join(differing)}: give another output folder")
    fitted = about["align"] not in WITHOUT_BASIS and settings.basis_file.is_file()
    return is_done(settings, {"basis": Basis.load(settings.basis_file).digest()} if fitted else None)


def _report(splits: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    skipped = f"; {about['skipped']:,} more cannot be read and are left out" if about["skipped"] else ""
    logger.info(f"{about['images']:,} images without labels{skipped}")


def _record(settings: KDEPSettings, model: ReIDModel, training: TrainingInfo) -> Results:
    """results.json and card: with what the student retrieves as it is, where the data set has a query and a gallery."""
    name = settings.dataset_name or settings.data
    splits = {}
    if "/" not in settings.data and not settings.streaming:
        splits = load_reid_dataset(settings.data, settings.data_dir, **settings.data_options)
    if {"query", "gallery"} <= set(splits):
        return evaluate(
            model, splits, dataset_name=name, flip=settings.flip, training=training, folder=settings.output_dir
        )
    results = Pretraining(
        model=f"{model.config.variant or 'reid'}.{training.method}",
        dataset=DatasetInfo(
            name=name, split=settings.split, data_dir_counts={settings.split: {"images": training.images}}
        ),
        cost=measure_cost(model),
        training=training,
    )
    if is_main_process():
        results.write(Path(settings.output_dir) / "results.json")
        write_card(settings.output_dir)
    wait_for_everyone()
    return results
