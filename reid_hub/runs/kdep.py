"""KDEP: a basis of a teacher's features, and a student's backbone pre-trained from them without labels."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from reid_hub.data import load_reid_dataset
from reid_hub.data.describe import digest_sample
from reid_hub.data.images import ImageDataset
from reid_hub.data.stored import training_images
from reid_hub.data.unlabelled import load_images
from reid_hub.errors import ReIDError
from reid_hub.evaluation import DatasetInfo, Pretraining, Results, TrainingInfo, measure_cost
from reid_hub.hub.card import write_card
from reid_hub.logging import get_logger
from reid_hub.methods.kdep import (
    ALIGNMENTS,
    PAIR_WEIGHTS,
    TAPS,
    WITHOUT_BASIS,
    Basis,
    CachedFeatures,
    Crops,
    Tap,
    TappedTeacher,
    check_weight,
    check_widths,
    fit_basis,
    write_features,
)
from reid_hub.methods.state import STATE_FILE
from reid_hub.models import ReIDConfig, ReIDModel
from reid_hub.records import check_same
from reid_hub.registry import lookup
from reid_hub.runs.classify import ClassArguments
from reid_hub.runs.evaluate import evaluate
from reid_hub.runs.lineage import note_teachers, public_source
from reid_hub.runs.models import model_to_train, on_accelerator
from reid_hub.runs.options import Part, option
from reid_hub.runs.processes import is_main_process, wait_for_everyone
from reid_hub.runs.settings import EmbeddingArguments, OutputArguments, RecipeArguments, RunSettings, TrainSettings
from reid_hub.runs.teachers import open_teacher, small_teacher
from reid_hub.runs.train import Evaluator, TrainingRun
from reid_hub.training import Recipe, ReIDTrainer, TrainingSubset, build_sampler, override
from reid_hub.training.resume import check_fresh

logger = get_logger(__name__)


@dataclass(frozen=True)
class ImageArguments(Part):
    """Images to use, without their labels; unreadable images are skipped and counted. See `load_images`."""

    split: str = option("train", "Part of the data set.")
    share: float = option(1.0, "Share of the images, drawn by the seed.")
    per_class: int | None = option(None, "Number of images per class, instead of a share.")
    limit: int | None = option(None, "Use only this many images, from the start.")
    streaming: bool = option(False, "Read the data set as a stream, up to --limit.")


@dataclass(frozen=True)
class FeatureArguments(Part):
    """The teacher, and the layer that its features are taken from."""

    teacher: str | None = option(
        None, "Trained model: folder, NAMESPACE/NAME or timm/NAME (default: a small one is trained on the same data)."
    )
    tap: str = option(
        "features", "Layer of the teacher's features: before its classifier, or its feature map.", choices=list(TAPS)
    )
    basis: str | None = option(None, "File of the basis, computed if missing (default: below --out).")


@dataclass(frozen=True)
class PretrainArguments(Part):
    """How the student's features are matched to the teacher's."""

    align: str | None = option(
        None, "Alignment of teacher and student (default: the recipe's): svd+pts, svd, sn, sm, cs.var, interp, ..."
    )
    weight: str | None = option(None, "Weight of the loss: a number, or one of the paper's pairs (default: computed).")
    crops: int = option(
        0, "Number of fixed crops per image, on each of which the teacher runs once; 0 samples new crops."
    )
    cache: str | None = option(None, "Folder of the teacher's features of these crops (default: below --out).")


@dataclass(frozen=True)
class BasisSettings(RunSettings):
    """Settings for the basis of a teacher's features; `model` is the student, which determines the image size."""

    recipe: RecipeArguments = RecipeArguments(recipe="kdep-demo")
    output: OutputArguments = OutputArguments(out="runs/kdep")
    images: ImageArguments = ImageArguments()
    features: FeatureArguments = FeatureArguments()

    def __post_init__(self):
        if Path(self.features.basis or "basis.safetensors").is_dir():
            basis = self.features.basis
            raise ReIDError(f"the basis is one file, got the folder {basis}: give {basis}/basis.safetensors")
        lookup(TAPS, self.features.tap, "tap")
        if (
            self.recipe.recipe == "kdep" and "mobilenetv2" in self.model.model
        ):  # the published learning rate of this student
            changed = RecipeArguments(**{**vars(self.recipe), "set": {"learning_rate": 0.1, **self.recipe.set}})
            object.__setattr__(self, "recipe", changed)

    @property
    def basis_file(self) -> Path:
        """Path of the basis, whether or not it exists."""
        return Path(self.features.basis or Path(self.output.out) / STATE_FILE.with_name("basis.safetensors"))

    @property
    def align(self) -> str | None:
        """The requested alignment that replaces the recipe's."""
        return None

    def pretraining_recipe(self) -> Recipe:
        """The recipe with the settings' changes applied.

        Raises:
            ReIDError: if it belongs to another method, or has an unknown alignment.
        """
        recipe = self.recipe.resolved
        if recipe.method != "kdep":
            raise ReIDError(
                f"pre-training needs a recipe of the method 'kdep' (kdep, kdep-demo), got {self.recipe.recipe!r}"
            )
        recipe = recipe if self.align is None else override(recipe, {"options.align": self.align})
        lookup(ALIGNMENTS, recipe.options["align"], "alignment")
        return recipe

    def with_teacher(self) -> "BasisSettings":
        """A copy with a teacher; a small one is trained if none is given."""
        return self if self.features.teacher else self.but(teacher=small_teacher(self))


@dataclass(frozen=True)
class PretrainSettings(BasisSettings):
    """Settings for pre-training a student from a teacher."""

    embedding: EmbeddingArguments = EmbeddingArguments()
    kdep: PretrainArguments = PretrainArguments()

    def __post_init__(self):
        super().__post_init__()
        if self.kdep.crops < 0:
            raise ReIDError(f"crops must be at least 0, got {self.kdep.crops}")

    @property
    def align(self) -> str | None:
        return self.kdep.align

    @property
    def weight(self) -> float | None:
        """The weight of the loss, if the settings give one.

        Raises:
            ReIDError: if it is neither a number above 0 nor one of the paper's pairs.
        """
        if self.kdep.weight is None:
            return None
        try:
            weight = float(self.kdep.weight)
        except ValueError:
            return lookup(PAIR_WEIGHTS, self.kdep.weight, "pair")
        return check_weight(weight)

    @property
    def cache_dir(self) -> Path:
        """Folder of the features of fixed crops."""
        return Path(self.kdep.cache or Path(self.output.out) / "features")


@dataclass(frozen=True)
class TaskArguments(Part):
    """The task to fine-tune a pre-trained backbone for."""

    task: Literal["reid", "classification"] = option("reid", "Person re-identification, or classification.")


@dataclass(frozen=True)
class TuneSettings(TrainSettings):
    """Settings for fine-tuning on a task; options of the other task are rejected."""

    output: OutputArguments = OutputArguments(out="runs/kdep-transfer")
    classes: ClassArguments = ClassArguments()
    task: TaskArguments = TaskArguments()

    def __post_init__(self):
        task = self.task.task
        other = ("keep_ids",) if task == "classification" else ("keep", "per_class", "evaluate_every")
        values, options = self.values(), TuneSettings.options()
        for name in other:
            if values[name] != options[name].default:
                raise ReIDError(f"--{name.replace('_', '-')} does not belong to --task {task}: leave it out")


class Pretrain(TrainingRun[PretrainSettings]):
    """Pre-train a student; the result is an ordinary model folder, to be fine-tuned with `--model`."""

    kind: ClassVar[str] = "pretrain"
    method: ClassVar[str] = "kdep"

    @cached_property
    def recipe(self) -> Recipe:
        return self.settings.pretraining_recipe()

    @cached_property
    def crops(self) -> Crops:
        """The images as the student sees them, and the teacher.

        Invalid settings are rejected before opening all images, which may take hours.
        """
        settings, student = self.settings, model_to_train(self.settings)
        teacher = _teacher(settings, self.recipe, student.config)
        check_widths(self.recipe.options["align"], teacher.dim, Tap(student).dim)
        _check_basis(settings, self.recipe, teacher)
        crops = _crops(settings, self.recipe, student.config, teacher)
        _check_batch(settings, self.recipe, crops.images)
        return crops

    @cached_property
    def inputs(self) -> Mapping[str, Any]:
        settings, crops = self.settings, self.crops
        said = {
            "data": settings.data.name,
            "pictures": digest_sample(crops.images.dataset),
            "student": public_source(settings.model.model),
            "initial": None if settings.model.init is None else public_source(settings.model.init),
            "teacher": public_source(settings.features.teacher),
            "teacher_fingerprint": crops.teacher.fingerprint()["teacher"],
            "tap": settings.features.tap,
            "align": self.recipe.options["align"],
            "asked_weight": settings.kdep.weight,
            "images": len(crops),
            "skipped": crops.skipped,
            **{name: getattr(settings.images, name) for name in ("share", "per_class", "limit")},
            "crops": settings.kdep.crops,
        }
        return said

    @cached_property
    def basis(self) -> Basis | None:
        """The basis of the teacher's features, computed if missing; None for an alignment without a basis."""
        return _fit(self.settings, self.crops) if self.has_basis else None

    @property
    def has_basis(self) -> bool:
        """Whether the alignment needs a basis."""
        return self.recipe.options["align"] not in WITHOUT_BASIS

    @property
    def made_with(self) -> dict[str, Any]:
        return {**super().made_with, "basis": self.basis and self.basis.digest()}

    def done(self) -> bool:
        if not super().done():
            return False
        # The basis may have been removed since; do not recompute it if nothing is left to do.
        if self.has_basis and self.settings.basis_file.is_file():
            found = {"basis": Results.read(self.folder / "results.json").training.extra["basis"]}
            check_same(self.folder, found, {"basis": Basis.load(self.settings.basis_file).digest()})
        return True

    @property
    def options(self) -> Mapping[str, Any]:
        weight = self.settings.weight
        return {**self.recipe.options, **({} if weight is None else {"weight": weight})}

    def trainer(self, train_split: Any) -> ReIDTrainer:
        _ = self.crops  # opened first: they draw from the random state that the seed then sets for the student
        return super().trainer(train_split)

    def load(self) -> Mapping[str, Any]:
        return {"train": None}  # the images are those of `crops`

    def images(self, model: ReIDModel, train_split: Any) -> tuple[TrainingSubset, Evaluator | None]:
        return TrainingSubset(self.crops.images, np.arange(len(self.crops))), None

    def parts(self, model: ReIDModel, subset: TrainingSubset) -> Mapping[str, Any]:
        crops, settings = self.crops, self.settings
        note_teachers(model.config, {settings.features.teacher: crops.teacher.model.config})
        features: Any = crops.teacher
        if settings.kdep.crops:
            # One folder serves all alignments, one of which needs the features after the ReLU.
            cache = settings.cache_dir / ("post-relu" if crops.teacher.relu else "")
            write_features(cache, crops, settings.kdep.crops)
            features = CachedFeatures(cache, settings.kdep.crops, crops.images.dataset["path"][:], crops.mark())
        return {"features": features, "basis": self.basis, "crops": crops}

    def report(self, splits: Mapping[str, Any]) -> None:
        skipped = self.crops.skipped
        more = f"; {skipped:,} more cannot be read and are left out" if skipped else ""
        logger.info("%s images without labels%s", f"{len(self.crops):,}", more)

    def describe(self, trainer: ReIDTrainer) -> TrainingInfo:
        method, basis = trainer.model, self.basis
        more = {"basis": basis and basis.digest(), "basis_features": basis and basis.count}
        more |= {"weight": method.weight, "scale": method.scale}
        return replace(super().describe(trainer), identities=None).with_extra(more)

    def evaluate(self, trainer: ReIDTrainer, splits: Mapping[str, Any], training: TrainingInfo) -> Results:
        """Write results and card, with retrieval metrics before fine-tuning if there are query and gallery."""
        model, data = trainer.model.export(), self.settings.data
        found = {}
        if "/" not in data.data and not self.settings.images.streaming:
            found = load_reid_dataset(data.data, data.data_dir, **data.data_option)
        if {"query", "gallery"} <= set(found):
            flip = self.settings.embedding.flip
            return evaluate(model, found, dataset_name=data.name, flip=flip, training=training, folder=self.folder)
        split = self.settings.images.split
        results = Pretraining(
            model=f"{model.config.variant or 'reid'}.{training.method}",
            dataset=DatasetInfo(name=data.name, split=split, data_dir_counts={split: {"images": training.images}}),
            cost=measure_cost(model),
            training=training,
        )
        if is_main_process():
            results.write(self.folder / "results.json")
            write_card(self.folder)
        wait_for_everyone()
        return results


def pretrain(settings: PretrainSettings) -> Results:
    """Pre-train a student from a teacher's features.

    With `resume`, finished stages (basis, features, training) are skipped and interrupted ones are resumed.

    Returns:
        The contents of results.json: how the student was trained and, if the data set has a query and a gallery, its
        retrieval metrics before fine-tuning.

    Raises:
        ReIDError: for unknown or invalid settings, before training starts; also if the student is wider than the
            teacher, or the basis belongs to another teacher.
    """
    settings.pretraining_recipe()
    _ = settings.weight  # raises before hours are spent on a basis
    if not settings.output.resume:
        check_fresh(settings.output.out)
    return Pretrain(settings.with_teacher()).run()


def make_basis(settings: BasisSettings) -> Path:
    """Compute the basis of the teacher's features of the settings' images, or keep an existing one; returns the file.

    Any number of processes share the work, and an interrupted run can be resumed.

    Raises:
        ReIDError: for unknown settings, too few images, or an existing basis of another teacher.
    """
    recipe = settings.pretraining_recipe()
    settings = settings.with_teacher()
    student = model_to_train(settings)
    teacher = _teacher(settings, recipe, student.config)
    _check_basis(settings, recipe, teacher)
    _fit(settings, _crops(settings, recipe, student.config, teacher))
    return settings.basis_file


def _teacher(settings: BasisSettings, recipe: Recipe, student: ReIDConfig) -> TappedTeacher:
    """Open the teacher on this process's accelerator, for the same inputs as the student's."""
    model = on_accelerator(open_teacher(settings.features.teacher), settings.recipe.arg)
    if settings.model.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-arg]  # as transformers wraps it
    relu = recipe.options["align"] == "post-relu"
    return TappedTeacher(model, tap=settings.features.tap, relu=relu, mean=student.image_mean, std=student.image_std)


def _check_basis(settings: BasisSettings, recipe: Recipe, teacher: TappedTeacher) -> None:
    """Reject an existing basis of another teacher."""
    if recipe.options["align"] not in WITHOUT_BASIS and settings.basis_file.is_file():
        Basis.load(settings.basis_file, teacher.fingerprint())


def _check_batch(settings: BasisSettings, recipe: Recipe, images: ImageDataset) -> None:
    """Reject a batch that these images cannot fill, before a pass over them."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    build_sampler(recipe, images.pids, batch_size=recipe.batch_size, seed=settings.recipe.seed, num_processes=processes)


def _crops(settings: BasisSettings, recipe: Recipe, config: ReIDConfig, teacher: TappedTeacher) -> Crops:
    """The images as a student of this configuration sees them."""
    data, chosen, seed = settings.data, settings.images, settings.recipe.seed
    found = load_images(
        data.data,
        data.data_dir,
        split=chosen.split,
        share=chosen.share,
        per_class=chosen.per_class,
        limit=chosen.limit,
        streaming=chosen.streaming,
        seed=seed,
        **data.data_option,
    )
    size, options = tuple(config.image_size), {"interpolation": recipe.interpolation, "on_error": "skip"}
    images = training_images(found, size, recipe.augmentation, **options)
    return Crops(teacher, images, recipe.augmentation, config, seed, len(found))


def _fit(settings: BasisSettings, crops: Crops) -> Basis:
    about = {"data": settings.data.name, "images": len(crops), "skipped": crops.skipped}
    about |= {"share": settings.images.share, "per_class": settings.images.per_class}
    basis = fit_basis(settings.basis_file, crops, about)
    if settings.features.basis is None and basis.about["pictures"] != crops.mark()["pictures"]:
        raise ReIDError(
            f"{settings.basis_file} was made of other images by a start that did not end: remove it, or give it as "
            "the basis if that is what you want"
        )
    logger.info("basis of %s features of %s: %s", f"{basis.count:,}", basis.about["data"], settings.basis_file)
    return basis
