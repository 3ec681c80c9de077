"""Train a model: data set, model, recipe and trainer put together; evaluated, and saved with its results and card."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback, set_seed
from transformers.trainer_utils import get_last_checkpoint

from reid_hub.data import describe_splits, load_reid_dataset
from reid_hub.data.stored import training_images
from reid_hub.errors import ReIDError
from reid_hub.evaluation import Results, RetrievalEvaluation, TrainingInfo, embed, evaluate_embedded
from reid_hub.hub.convert import load_weights
from reid_hub.hub.push import push_folder
from reid_hub.logging import get_logger
from reid_hub.methods import METHODS, Method, RunContext
from reid_hub.models import ReIDModel
from reid_hub.records import check_same
from reid_hub.registry import lookup
from reid_hub.runs.evaluate import evaluate
from reid_hub.runs.lineage import note_step, origin_of, public_source, training_info
from reid_hub.runs.models import image_size_of, is_checkpoint, model_to_train, on_accelerator
from reid_hub.runs.processes import wait_for_everyone
from reid_hub.runs.settings import RunSettings, TrainSettings
from reid_hub.runs.stage import Stage
from reid_hub.training import (
    Holdout,
    Recipe,
    ReIDTrainer,
    TrainingSubset,
    deciding_arguments,
    draw_identities,
    split_identities,
    training_arguments,
)
from reid_hub.training.resume import check_fresh

logger = get_logger(__name__)
Evaluator = Callable[[Any], Mapping[str, float]]
AnySettings = TypeVar("AnySettings", bound=RunSettings)


@dataclass
class TrainingRun(Stage[Results | None], Generic[AnySettings]):
    """Base class of training runs: a model, images, a method, and a trainer that can resume.

    A subclass defines its images (`images`), the inputs of its method (`parts`), what else determines the result
    (`inputs`) and the evaluation (`evaluate`).

    Args:
        settings: what to train, on what, and where to write it.
        splits: used instead of the settings' full data set.
        said: further facts that determine the result, recorded in the results.
    """

    settings: AnySettings
    splits: Mapping[str, Any] = field(default_factory=dict)
    said: Mapping[str, Any] = field(default_factory=dict)

    method: ClassVar[str | None] = None  # the only method whose recipes are taken
    trained_by: ClassVar[str | None] = None  # the method that trains, if not the recipe's
    arguments: ClassVar[Mapping[str, Any]] = {}  # of the trainer, unless the settings have others
    kind: ClassVar[str] = "train"

    @property
    def folder(self) -> Path:
        return Path(self.settings.output.out)

    @property
    def resume(self) -> bool:
        return self.settings.output.resume

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe with the settings' changes applied.

        Raises:
            ReIDError: for an unknown recipe, or one of another method.
        """
        recipe = self.settings.recipe.resolved
        if self.method is not None and recipe.method != self.method:
            raise ReIDError(
                f"this needs a recipe of the method {self.method!r} (`reid-hub list recipes`), got "
                f"{self.settings.recipe.recipe!r} of {recipe.method!r}"
            )
        return recipe

    def load(self) -> Mapping[str, Any]:
        """The data set."""
        return self.splits or load_splits(self.settings)

    def key(self) -> dict[str, Any]:
        recipe = {name: value for name, value in asdict(self.recipe).items() if name != "source"}
        # The size of the images is said once, with what the run starts from.
        recipe["config"] = {name: value for name, value in recipe["config"].items() if name != "image_size"}
        return {
            **recipe,
            "epochs": self.settings.epochs,
            "seed": self.settings.recipe.seed,
            "arguments": deciding_arguments(self.settings.recipe.arg),
            **self.origin,
        }

    @cached_property
    def origin(self) -> dict[str, Any]:
        """What the run starts and learns from, by name; see `made_with`."""
        init = self.settings.model.init
        start = {"init": None if init is None else public_source(init), "image_size": image_size_of(self.settings)}
        return {**origin_of(self.settings), **start, **self.inputs}

    @cached_property
    def start_weights(self) -> str:
        """The fingerprint of the model that is trained, before its first step; "random" if the seed decides it."""
        given = self.settings.model.init is not None or is_checkpoint(self.settings.model.model)
        return self.new_model().fingerprint() if given else "random"

    @cached_property
    def inputs(self) -> Mapping[str, Any]:
        """What else determines the result, such as a teacher; recorded in the results too."""
        return self.said

    def new_model(self) -> ReIDModel:
        """The model to train, with its initial weights."""
        model = model_to_train(self.settings)
        start_weights(model, self.settings)
        note_step(model.config, self.settings)
        return model

    def images(self, model: ReIDModel, train_split: Any) -> tuple[TrainingSubset, Evaluator | None]:
        """The training images, and the evaluator during training, if any."""
        raise NotImplementedError

    @property
    def made_with(self) -> dict[str, Any]:
        """Facts known only when training starts, such as the weights themselves; checkpoints depend on them."""
        return {"start_weights": self.start_weights}

    def describe(self, trainer: ReIDTrainer) -> TrainingInfo:
        """What the results say of the training."""
        return training_info(self.settings, trainer).with_extra(self.inputs)

    @property
    def source(self) -> str | None:
        """Folder of the training run whose classifier is continued, if any."""
        return None

    @property
    def options(self) -> Mapping[str, Any]:
        """The method's options from the recipe, with the settings' overrides."""
        return self.recipe.options

    def parts(self, model: ReIDModel, subset: TrainingSubset) -> Mapping[str, Any]:
        """Further inputs of the method, such as a teacher; see `RunContext`."""
        return {}

    def callbacks(self, method: Method) -> Sequence[TrainerCallback]:
        """Further callbacks of the trainer."""
        return ()

    def report(self, splits: Mapping[str, Any]) -> None:
        """Log the contents of the data set."""
        report_splits(splits)

    def evaluate(self, trainer: ReIDTrainer, splits: Mapping[str, Any], training: TrainingInfo) -> Results | None:
        """Evaluate the trained model and write the results, if there is data to evaluate on."""
        raise NotImplementedError

    def trainer(self, train_split: Any) -> ReIDTrainer:
        """The trainer of the run, ready to start."""
        # Keep this order, with no random draws in between: the seed determines weights and classifier.
        set_seed(self.settings.recipe.seed)
        model = self.new_model()
        subset, evaluator = self.images(model, train_split)
        context = RunContext(
            model=model,
            subset=subset,
            options=self.options,
            source=self.source,
            seed=self.settings.recipe.seed,
            embed=partial(self.embed, subset=subset),
            parts=self.parts(model, subset),
        )
        method = lookup(METHODS, self.trained_by or self.recipe.method, "method").from_run(context)
        return self.new_trainer(method, subset, evaluator)

    def embed(self, model: ReIDModel, *, subset: TrainingSubset, retrieve: str | None = None) -> Tensor:
        """Embeddings of the training images by the test transform, (N, D); see `embed`."""
        on_accelerator(model, self.settings.recipe.arg)
        rows = subset.dataset.dataset.select(subset.rows)
        return torch.from_numpy(embed(model, rows, retrieve=retrieve).embeddings)

    def new_trainer(
        self, method: Method, subset: TrainingSubset, evaluator: Evaluator | None, **options: Any
    ) -> ReIDTrainer:
        """The trainer of a method; `options` are further ones of `ReIDTrainer`."""
        recipe, settings = self.recipe, self.settings
        values: dict[str, Any] = {"seed": settings.recipe.seed, "num_train_epochs": settings.epochs}
        values["eval_strategy"] = "epoch" if evaluator else "no"
        if "weight_decay" not in settings.recipe.set:
            values["weight_decay"] = recipe.decay_for(len(subset) * settings.epochs)
        args = training_arguments(recipe, settings.output.out, **{**values, **self.arguments, **settings.recipe.arg})
        return ReIDTrainer(
            method,
            recipe,
            args,
            subset,
            evaluator=evaluator,
            channels_last=settings.model.channels_last,
            origin={**self.origin, **self.made_with},
            callbacks=self.callbacks(method),
            **options,
        )

    def make(self) -> Results | None:
        if not self.resume:
            check_fresh(self.folder)
        splits = self.load()
        trainer = self.trainer(splits["train"])
        last = get_last_checkpoint(str(self.folder)) if self.resume and self.folder.is_dir() else None
        if trainer.is_world_process_zero():
            self.report(splits)
        self.begin()
        trainer.train(resume_from_checkpoint=last)
        trainer.save_model()
        self.save(trainer)
        wait_for_everyone()
        return self.evaluate(trainer, splits, self.describe(trainer))

    def save(self, trainer: ReIDTrainer) -> None:
        """Write what goes beside the exported model."""

    def publish(self) -> None:
        """Push the folder, where the settings name a repository."""
        if self.settings.output.push:
            push_folder(self.folder, self.settings.output.push, private=self.settings.output.private)

    def facts(self, result: Results | None) -> dict[str, Any]:
        return {"evaluated": result is not None, "start_weights": self.start_weights}

    def is_whole(self, facts: Mapping[str, Any]) -> bool:
        # The key names the model; another one may have come to lie under its name.
        check_same(self.folder, {"start_weights": facts["start_weights"]}, {"start_weights": self.start_weights})
        return (self.folder / "results.json").is_file() or not facts["evaluated"]

    def result(self) -> Results | None:
        path = self.folder / "results.json"
        return Results.read(path) if path.is_file() else None


class Train(TrainingRun[TrainSettings]):
    """A training on people with labels, watched on held-out training identities, evaluated once on the test set."""

    def key(self) -> dict[str, Any]:
        return {**super().key(), "flip": self.settings.embedding.flip}

    def images(self, model: ReIDModel, train_split: Any) -> tuple[TrainingSubset, Evaluator | None]:
        people, seed = self.settings.people, self.settings.recipe.seed
        resize = {"interpolation": self.recipe.interpolation, "resize_shortest": model.config.resize_shortest}
        images = training_images(train_split, tuple(model.config.image_size), self.recipe.augmentation, **resize)
        rows, evaluator = np.flatnonzero(images.pids >= 0), None
        if people.validation:
            holdout = split_identities(images.pids, images.camids, people.validation, seed)
            watch = partial(validate, train_split=images.dataset, holdout=holdout)
            rows, evaluator = holdout.train, lambda exported: watch(self.evaluated(exported))
        if people.keep_ids != 1:
            rows = rows[np.isin(images.pids[rows], draw_identities(images.pids[rows], people.keep_ids, seed))]
        return TrainingSubset(images, rows), evaluator

    def evaluated(self, exported: PreTrainedModel) -> ReIDModel:
        """The model that is evaluated, from what the method exports."""
        return exported

    def evaluate(self, trainer: ReIDTrainer, splits: Mapping[str, Any], training: TrainingInfo) -> Results | None:
        if not {"query", "gallery"} <= splits.keys():
            return None
        return evaluate(
            self.evaluated(trainer.model.export()),
            splits,
            dataset_name=self.settings.data.name,
            name=self.result_name(trainer),
            flip=self.settings.embedding.flip,
            training=training,
            folder=self.folder,
        )

    def result_name(self, trainer: ReIDTrainer) -> str | None:
        """Name of the model in the results; None uses variant and method."""
        return None


def train(settings: TrainSettings, *, splits: Mapping[str, Any] | None = None) -> RetrievalEvaluation | None:
    """Train by a recipe, then evaluate the last epoch's model once on the test set.

    Args:
        splits: used instead of the settings' full data set.

    Returns:
        The contents of results.json, or None if the data set has no query and gallery.

    Raises:
        ReIDError: for unknown or invalid settings, before training starts.
    """
    return Train(settings, splits or {}).run()


def load_splits(settings: RunSettings) -> Mapping[str, Any]:
    """The data set of a run.

    Raises:
        ReIDError: if it has nothing to train on.
    """
    data = settings.data
    splits = load_reid_dataset(data.data, data.data_dir, **data.data_option)
    if "train" not in splits:
        raise ReIDError(f"{data.data} has no training split, only {', '.join(splits)}")
    return splits


def start_weights(model: ReIDModel, settings: RunSettings) -> None:
    """Load the initial weights named in the settings, if any, into a model."""
    if settings.model.init is not None:
        logger.info("initial weights from %s: %s", settings.model.init, load_weights(model, settings.model.init))


def validate(model: ReIDModel, *, train_split: Any, holdout: Holdout) -> dict[str, float]:
    """Metrics on the identities that were held out of the training split."""
    parts = [holdout.query, holdout.gallery]
    query, gallery = (embed(model, train_split.select(rows), progress=False) for rows in parts)
    results = evaluate_embedded(query, gallery, flip=False, progress=False)
    return {name: getattr(results, name) for name in ("mAP", "rank1", "rank5", "rank10", "mINP")}


def report_splits(splits: Mapping[str, Any]) -> None:
    """Log the contents of the data and what training or evaluation will skip."""
    report = describe_splits(splits)
    for name in splits:
        part = report[name]
        single = part["single_image_ids"], part["single_camera_ids"]
        note = f" ({single[0]} with one image, {single[1]} with one camera)" if any(single) else ""
        logger.info(
            "%s: %s images of %s identities%s, %s cameras",
            name, f"{part['images']:,}", f"{part['identities']:,}", note, part["cameras"],
        )  # fmt: skip
    if missing := report.get("queries_without_true_match"):
        logger.info("%s queries have no true match and are left out of the evaluation", missing)
    if report["camera_note"]:
        logger.warning(report["camera_note"])
