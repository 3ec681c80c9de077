"""Compress a model's embedding: trained and fitted embedding layers, and iterative pruning to a list of sizes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from reid_hub.errors import ReIDError
from reid_hub.evaluation import UNKNOWN_TRAINING, RetrievalEvaluation, TrainingInfo, embed
from reid_hub.hub.push import push_folder
from reid_hub.methods.compression import (
    compress_model,
    fit_quantizer,
    importance,
    ladder,
    most_important,
    narrow,
    principal_directions,
    project_model,
    random_directions,
)
from reid_hub.models import ReIDModel
from reid_hub.runs.evaluate import evaluate
from reid_hub.runs.lineage import public_source
from reid_hub.runs.models import model_to_train, new_model, on_accelerator
from reid_hub.runs.options import Part, option
from reid_hub.runs.processes import is_main_process, wait_for_everyone
from reid_hub.runs.settings import ModelArguments, OutputArguments, RecipeArguments, TrainSettings
from reid_hub.runs.stage import Stage
from reid_hub.runs.train import Train, load_splits
from reid_hub.training import TrainingSubset

Made = dict[Path, RetrievalEvaluation | None]  # results by folder
Embeddings = Callable[[], Tensor]  # of the training images, (N, D); computed on demand
Cut = Callable[[ReIDModel, Embeddings], ReIDModel]  # maps a model to its compressed model

FITTED = ("pca", "random", "none")


@dataclass(frozen=True)
class CompressArguments(Part):
    """How to shorten and quantise an embedding.

    Trained embedding layers: "slice", "low_rank" (one run per size), "prune" (sizes in descending order, each from the
    one before) and "matryoshka" (one run for all sizes, a control). Controls without training, fitted to the training
    images: "pca", "random", and "none", which keeps all dimensions.
    """

    head: Literal["slice", "low_rank", "prune", "matryoshka", "pca", "random", "none"] = option(
        "low_rank", "Embedding layer that shortens the embedding; pca, random and none need no training."
    )
    dim: list[int] = option(list, "Length of the short embedding (default: the paper's, scaled). Repeat for several.")
    int8: bool = option(False, "Store one byte per dimension, quantised in training (or after fitting).")
    granularity: Literal["tensor", "dimension", "vector"] = option("tensor", "Granularity of the int8 scales.")
    start: Literal["pca", "random", "slice"] = option("pca", "Initialisation of a low-rank map; the paper uses random.")
    criterion: Literal["norm", "variance"] = option("norm", "Criterion by which prune ranks coordinates.")
    retrain: float = option(0.2, "Epochs of each retraining in prune, as a share of the recipe's.")
    base: bool | None = option(
        None, "Train the full length first for prune (default: if needed).", nargs="?", const=True
    )


@dataclass(frozen=True)
class CompressSettings(TrainSettings):
    """Settings of a compression. `model` is a trained model, or a variant to train from scratch, as in the paper."""

    model: ModelArguments = ModelArguments(model="runs/demo/model")
    recipe: RecipeArguments = RecipeArguments(recipe="compress-demo")
    output: OutputArguments = OutputArguments(out="runs/compress")
    compress: CompressArguments = CompressArguments()

    @property
    def quantization(self) -> dict[str, str | None]:
        """Keyword arguments of `compress_model`."""
        return {"quantization": "int8" if self.compress.int8 else None, "granularity": self.compress.granularity}

    def at(self, dim: int, several: bool = True) -> "CompressSettings":
        """The settings of one size, with its own folder, repository and result name."""
        name = f"{self.compress.head}-{dim}" + ("-int8" if self.compress.int8 else "")
        push = self.output.push and self.output.push + (f"-{dim}" if several else "")
        return self.but(out=Path(self.output.out) / name, origin=name, push=push)


@dataclass
class TrainCompressed(Train):
    """Train one size; `cut` compresses the base model, and `prefixes` are shorter sizes trained together with it."""

    settings: CompressSettings
    cut: Cut = field(kw_only=True)
    prefixes: Sequence[int] = field(default=(), kw_only=True)

    kind: ClassVar[str] = "compress"
    method: ClassVar[str] = "compression"

    @property
    def source(self) -> str:
        return self.settings.model.model

    @property
    def inputs(self) -> Mapping[str, Any]:
        settings, how = self.settings, self.settings.compress
        data = settings.data
        source = new_model(settings.model.model, settings.model.image_size)
        said = {
            "source": source.fingerprint() if source.name_or_path else settings.model.model,
            "init": settings.model.init,
            "data": [data.data, str(data.data_dir and Path(data.data_dir).name), data.dataset_name],
            "validation": settings.people.validation,
            "keep_ids": settings.people.keep_ids,
            "granularity": how.granularity,
            "start": how.start,
            "criterion": how.criterion,
            "prefixes": list(self.prefixes),
        }
        return {"compression": said}

    def key(self) -> dict[str, Any]:
        return {**super().key(), "size": self.settings.origin}

    @property
    def options(self) -> Mapping[str, Any]:
        return {**self.recipe.options, "prefixes": self.prefixes}

    def parts(self, model: ReIDModel, subset: TrainingSubset) -> Mapping[str, Any]:
        return {"compress": self.cut, "start": self.settings.compress.start}


@dataclass
class Fit(Stage[RetrievalEvaluation | None]):
    """Create a size without training: compress the base model, evaluate and save it."""

    settings: CompressSettings
    source: str
    cut: Callable[[ReIDModel], ReIDModel]
    training: TrainingInfo  # recorded in the results
    splits: Mapping[str, Any]

    kind: ClassVar[str] = "fit"

    @property
    def folder(self) -> Path:
        return Path(self.settings.output.out)

    @property
    def resume(self) -> bool:
        return False  # it takes seconds

    def key(self) -> dict[str, Any]:
        said = {
            "source": public_source(self.source),
            "method": self.settings.origin,
            "flip": self.settings.embedding.flip,
        }
        return {**said, **self.settings.quantization, "dataset": self.settings.data.name}

    def make(self) -> RetrievalEvaluation | None:
        settings, name = self.settings, self.settings.data.name
        base = on_accelerator(new_model(self.source, settings.model.image_size), settings.recipe.arg)
        model, results = self.cut(base).eval(), None
        model.config.lineage = [*(model.config.lineage or []), {"method": settings.origin, "dataset": name}]
        if is_main_process():
            model.save_pretrained(self.folder)
        wait_for_everyone()
        if {"query", "gallery"} <= self.splits.keys():
            training = replace(self.training, method=settings.origin)
            flip = settings.embedding.flip
            results = evaluate(model, self.splits, dataset_name=name, flip=flip, training=training, folder=self.folder)
        return results

    def publish(self) -> None:
        if self.settings.output.push:
            push_folder(self.folder, self.settings.output.push, private=self.settings.output.private)

    def result(self) -> RetrievalEvaluation | None:
        path = self.folder / "results.json"
        return RetrievalEvaluation.read(path) if path.is_file() else None


def compress(settings: CompressSettings) -> Made:
    """Create the compressed models, each a checkpoint folder below `out`. Finished stages are skipped.

    Returns:
        Folder and results of each size, the longest first; results are None if the data set has no query and gallery.

    Raises:
        ReIDError: for unknown or invalid settings, before training starts.
    """
    recipe, how = settings.recipe.resolved, settings.compress
    if how.head not in FITTED and recipe.method != "compression":
        raise ReIDError(
            "compressing needs a recipe of the method 'compression' (compress, compress-bot, compress-demo), got "
            f"{settings.recipe.recipe!r}"
        )
    model = model_to_train(settings)
    if how.head == "none":
        if how.dim:
            raise ReIDError(f"the head 'none' keeps all dimensions: leave dims out, got {list(how.dim)}")
        settings = settings.but(dim=[model.embedding_dim])
    dims = sorted(settings.compress.dim or ladder(model.embedding_dim), reverse=True)
    if len(set(dims)) < len(dims) or not 1 <= dims[-1] <= dims[0] <= model.embedding_dim:
        raise ReIDError(
            f"dims must be different sizes from 1 to {model.embedding_dim}, the length of the embedding, got {dims}"
        )
    _check(settings, model)
    make = {"prune": _prune, "matryoshka": _train_matryoshka, "slice": _train_each, "low_rank": _train_each}
    return make.get(how.head, _fit)(settings, dims)


def _check(settings: CompressSettings, model: ReIDModel) -> None:
    """Reject invalid settings before anything is embedded or trained."""
    config, how = model.config, settings.compress
    given = settings.model.init is not None or settings.people.keep_ids != 1
    if how.head in FITTED and (model.name_or_path == "" or given):
        raise ReIDError(
            f"the head {how.head!r} is fitted to a trained checkpoint on all training identities: give one, and "
            "neither init nor keep_ids"
        )
    if how.granularity != "tensor" and not how.int8:
        raise ReIDError(f"granularity {how.granularity!r} is of int8: give int8 too, or leave it out")
    if how.head == "prune" and how.retrain <= 0:
        raise ReIDError(f"retrain must be above 0, a share of the recipe's epochs, got {how.retrain}")
    if (codes := config.codes) is None:
        return
    same = settings.quantization.items() <= codes.items()
    if how.head != "prune" or codes["name"] == "low_rank" or not same or how.base:
        raise ReIDError(
            f"{settings.model.model} is compressed already ({codes['name']}, {codes['dim']} numbers, "
            f"{codes['quantization'] or 'float32'}): only prune goes on from a pruned or sliced one, with the same "
            "int8 and granularity, and without base; start from the model that it was made of"
        )


def _train(
    settings: CompressSettings, cut: Cut, prefixes: Sequence[int] = ()
) -> tuple[Path, RetrievalEvaluation | None]:
    stage = TrainCompressed(settings, cut=cut, prefixes=prefixes)
    return stage.folder, stage.run()


def _new_head(compression: str, dim: int, settings: CompressSettings) -> Cut:
    return lambda base, embeddings: compress_model(base, compression, dim, **settings.quantization)


def _train_each(settings: CompressSettings, dims: Sequence[int]) -> Made:
    head = settings.compress.head
    return dict(_train(settings.at(dim, len(dims) > 1), _new_head(head, dim, settings)) for dim in dims)


def _prune(settings: CompressSettings, dims: Sequence[int]) -> Made:
    """Train at full length, then prune and retrain size by size (arXiv:2405.14730)."""
    how, model = settings.compress, new_model(settings.model.model, settings.model.image_size)
    made, source, full = {}, settings.model.model, model.embedding_dim
    trained = model.name_or_path != "" and (not how.int8 or model.precision == "int8")
    if how.base or (how.base is None and not trained):
        made = dict([_train(settings.at(full), _new_head("pruned", full, settings))])
        source = settings.at(full).output.out

    def pruned(base: ReIDModel, embeddings: Embeddings, *, dim: int) -> ReIDModel:
        if base.config.codes is None:
            base = compress_model(base, "pruned", base.embedding_dim, **settings.quantization)
        return narrow(base, most_important(importance(embeddings(), how.criterion), dim))

    for dim in dims:
        if dim == full and made:
            continue  # already trained as the base
        # Initial weights apply only to the first training run.
        init = None if made else settings.model.init
        stage = settings.at(dim).but(model=source, epochs=how.retrain * settings.epochs, init=init)
        folder, made[folder] = _train(stage, partial(pruned, dim=dim))
        source = str(folder)
    return made


def _train_matryoshka(settings: CompressSettings, dims: Sequence[int]) -> Made:
    full = new_model(settings.model.model, settings.model.image_size).embedding_dim
    prefixes = [dim for dim in dims if dim < full]
    folder, results = _train(settings.at(full), _new_head("slice", full, settings), prefixes)
    cut = [(settings.at(dim), lambda model, dim=dim: narrow(model, torch.arange(dim))) for dim in prefixes]
    return {folder: results, **_fit_each(cut, str(folder), results.training if results else UNKNOWN_TRAINING)}


def _fit(settings: CompressSettings, dims: Sequence[int]) -> Made:
    """Fit a linear map, a scale, or both to the embeddings of the training images, without training."""
    how, seed, name = settings.compress, settings.recipe.seed, settings.model.model
    model = on_accelerator(new_model(name, settings.model.image_size), settings.recipe.arg)
    seen = torch.from_numpy(embed(model, load_splits(settings)["train"], flip=settings.embedding.flip).embeddings)

    def project(model: ReIDModel, dim: int) -> ReIDModel:
        if how.head == "none":
            student = compress_model(model, "slice", dim, **settings.quantization)
        else:
            by_chance = how.head == "random"
            rows = random_directions(model.embedding_dim, dim, seed) if by_chance else principal_directions(seen, dim)
            student = project_model(model, rows, **settings.quantization)
        fit_quantizer(student, seen)
        return student

    cut = [(settings.at(dim, len(dims) > 1), partial(project, dim=dim)) for dim in dims]
    training = TrainingInfo(method=None, recipe=None, epochs=0, seed=seed, init=public_source(name))
    return _fit_each(cut, name, training)


def _fit_each(
    cut: Sequence[tuple[CompressSettings, Callable[[ReIDModel], ReIDModel]]], source: str, training: TrainingInfo
) -> Made:
    """Create, evaluate and save compressed models of one base model."""
    splits = load_splits(cut[0][0]) if cut else {}
    stages = [Fit(settings, source, make, training, splits) for settings, make in cut]
    return {stage.folder: stage.run() for stage in stages}
