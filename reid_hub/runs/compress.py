"""Compress a model's embedding: heads that are trained, heads that are fitted, and pruning down a ladder of sizes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reid_hub.evaluation import UNKNOWN_TRAINING, RetrievalEvaluation, TrainingInfo, embed
from reid_hub.hub.push import push_folder
from reid_hub.logging import get_logger
from reid_hub.methods import CompressionMethod
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
from reid_hub.registry import lookup
from reid_hub.runs.evaluate import evaluate
from reid_hub.runs.models import model_to_train, new_model, on_accelerator
from reid_hub.runs.processes import is_main_process, wait_for_everyone
from reid_hub.runs.provenance import is_done, public_source
from reid_hub.runs.train import TrainSettings, load_splits, train
from reid_hub.training import RECIPES, TrainingSubset, override, read_heads

logger = get_logger(__name__)

Made = dict[Path, RetrievalEvaluation | None]  # results by folder
Embeddings = Callable[[], Tensor]  # of the training pictures, (N, D); made when they are asked for

TRAINED = ("slice", "low_rank", "prune", "matryoshka")
FITTED = ("pca", "random", "none")


@dataclass
class CompressSettings(TrainSettings):
    """What to compress and how.

    Attributes:
        model: a trained model (folder or repository), or a variant to train from its start, as the paper does.
        head: trained: "slice", "low_rank" (one run for each size), "prune" (one run down the sizes, each from the one
            before) or "matryoshka" (one run for all sizes, a control); fitted to the training pictures without
            training, all controls: "pca", "random", or "none", which keeps all dimensions.
        dims: sizes; by default those of the paper in proportion to the embedding. "none" has only one.
        int8, granularity: quantise, in training or, of a fitted head, after it; see `Quantizer`.
        start: of "low_rank", see `CompressionMethod.start_map`.
        criterion: of "prune", see `importance`.
        retrain: of "prune": epochs of each retraining, as a share of the recipe's.
        base: of "prune": train at full length first; by default where the model is not trained, or not for int8.
    """

    output_dir: str | Path = "runs/compress"
    recipe: str = "compress-demo"
    head: str = "low_rank"
    dims: Sequence[int] = ()
    int8: bool = False
    granularity: str = "tensor"
    start: str = "pca"
    criterion: str = "norm"
    retrain: float = 0.2
    base: bool | None = None

    @property
    def quantization(self) -> dict[str, str | None]:
        """Keyword arguments of `compress_model`."""
        return {"quantization": "int8" if self.int8 else None, "granularity": self.granularity}

    def at(self, dim: int, several: bool = True) -> "CompressSettings":
        """The settings of one size: its folder, its repository, and the name of its result."""
        name = f"{self.head}-{dim}" + ("-int8" if self.int8 else "")
        push_to = self.push_to and self.push_to + (f"-{dim}" if several else "")
        return replace(self, output_dir=Path(self.output_dir) / name, origin=name, push_to=push_to)


def compress(settings: CompressSettings) -> Made:
    """Make the compressed models, each a checkpoint folder below `output_dir`; what is done is not done again.

    Returns:
        Folder and results of each size, the longest first; no results where the data set has no query and gallery.

    Raises:
        ValueError, FileNotFoundError: for anything unknown or impossible, before training starts.
    """
    lookup(dict.fromkeys((*TRAINED, *FITTED)), settings.head, "head")
    recipe = override(lookup(RECIPES, settings.recipe, "recipe"), settings.changes)
    if settings.head in TRAINED and recipe.method != "compression":
        raise ValueError(
            "compressing needs a recipe of the method 'compression' (compress, compress-bot, compress-demo), got "
            f"{settings.recipe!r}"
        )
    model = model_to_train(settings, recipe)
    if settings.head == "none":
        if settings.dims:
            raise ValueError(f"the head 'none' keeps all dimensions: leave dims out, got {list(settings.dims)}")
        settings = replace(settings, dims=[model.embedding_dim])
    dims = sorted(settings.dims or ladder(model.embedding_dim), reverse=True)
    if len(set(dims)) < len(dims) or not 1 <= dims[-1] <= dims[0] <= model.embedding_dim:
        raise ValueError(
            f"dims must be different sizes from 1 to {model.embedding_dim}, the length of the embedding, got {dims}"
        )
    _check(settings, model)
    make = {"prune": _prune, "matryoshka": _train_matryoshka, "slice": _train_each, "low_rank": _train_each}
    return make.get(settings.head, _fit)(settings, dims)


def _check(settings: CompressSettings, model: ReIDModel) -> None:
    """Refuse what cannot be, before anything is embedded or trained."""
    config = model.config
    if settings.head in FITTED and (model.name_or_path == "" or settings.init is not None or settings.keep_ids != 1):
        raise ValueError(
            f"the head {settings.head!r} is fitted to a trained checkpoint on all training identities: give one, and "
            "neither init nor keep_ids"
        )
    if settings.granularity != "tensor" and not settings.int8:
        raise ValueError(f"granularity {settings.granularity!r} is of int8: give int8 too, or leave it out")
    if settings.head == "prune" and settings.retrain <= 0:
        raise ValueError(f"retrain must be above 0, a share of the recipe's epochs, got {settings.retrain}")
    if config.compression is None:
        return
    same = (config.quantization, config.quantization_granularity) == tuple(settings.quantization.values())
    if settings.head != "prune" or config.compression == "low_rank" or not same or settings.base:
        raise ValueError(
            f"{settings.model} is compressed already ({config.compression}, {config.compressed_dim} numbers, "
            f"{config.quantization or 'float32'}): only prune goes on from a pruned or sliced one, with the same int8 "
            "and granularity, and without base; start from the model that it was made of"
        )


def _train_each(settings: CompressSettings, dims: Sequence[int]) -> Made:
    return dict(_train(settings.at(dim, len(dims) > 1), _new_head(settings.head, dim, settings)) for dim in dims)


def _prune(settings: CompressSettings, dims: Sequence[int]) -> Made:
    """Train at full length, then prune and retrain from size to size (arXiv:2405.14730)."""
    model = new_model(settings.model, settings.image_size)
    made, source, full = {}, settings.model, model.embedding_dim
    trained = model.name_or_path != "" and (not settings.int8 or model.config.quantization == "int8")
    if settings.base or (settings.base is None and not trained):
        made = dict([_train(settings.at(full), _new_head("pruned", full, settings))])
        source = str(settings.at(full).output_dir)
    epochs = settings.retrain * (settings.epochs or override(RECIPES[settings.recipe], settings.changes).epochs)

    def pruned(base: ReIDModel, embeddings: Embeddings, *, dim: int) -> ReIDModel:
        if base.config.compression is None:
            base = compress_model(base, "pruned", base.embedding_dim, **settings.quantization)
        return narrow(base, most_important(importance(embeddings(), settings.criterion), dim))

    for dim in dims:
        if dim == full and made:
            continue  # that was the base
        # Initial weights are for the first training alone.
        stage = replace(settings.at(dim), model=source, epochs=epochs, init=None if made else settings.init)
        folder, made[folder] = _train(stage, partial(pruned, dim=dim))
        source = str(folder)
    return made


def _train_matryoshka(settings: CompressSettings, dims: Sequence[int]) -> Made:
    full = new_model(settings.model, settings.image_size).embedding_dim
    prefixes, whole = [dim for dim in dims if dim < full], settings.at(full)
    folder, results = _train(whole, _new_head("slice", full, settings), prefixes=prefixes)
    cut = [(settings.at(dim), lambda model, dim=dim: narrow(model, torch.arange(dim))) for dim in prefixes]
    return {folder: results, **_evaluate_each(cut, str(folder), results.training if results else UNKNOWN_TRAINING)}


def _new_head(compression: str, dim: int, settings: CompressSettings) -> Callable[[ReIDModel, Embeddings], ReIDModel]:
    return lambda base, embeddings: compress_model(base, compression, dim, **settings.quantization)


def _train(
    settings: CompressSettings,
    cut: Callable[[ReIDModel, Embeddings], ReIDModel],
    prefixes: Sequence[int] = (),
) -> tuple[Path, RetrievalEvaluation | None]:
    """Train one size; `cut` makes the compressed model of the base, and may ask for its embeddings."""
    folder = Path(settings.output_dir)
    recipe, about = override(lookup(RECIPES, settings.recipe, "recipe"), settings.changes), _about(settings, prefixes)
    if settings.resume and is_done(settings):
        results = RetrievalEvaluation.read(folder / "results.json")
        found = results.training.extra.get("compression") or {}
        differing = [f"{key} {found.get(key)} instead of {about[key]}" for key in about if found.get(key) != about[key]]
        if differing:
            raise ValueError(f"{folder} was made with {', '.join(differing)}: give another output folder")
        _push(settings)  # a push that failed is made up for
        return folder, results

    def make_method(base: ReIDModel, subset: TrainingSubset) -> CompressionMethod:
        def embeddings() -> Tensor:
            on_accelerator(base, settings.arguments)
            return torch.from_numpy(embed(base, subset.dataset.dataset.select(subset.rows)).embeddings)

        model = cut(base, embeddings)
        method = CompressionMethod(model, len(subset.identities), **recipe.options, prefixes=prefixes)
        low_rank = model.config.compression == "low_rank"
        if low_rank:
            method.start_map(settings.start, embeddings() if settings.start == "pca" else None)
        if not low_rank or settings.start != "random":
            method.start_classifier(_heads(settings, subset), base)
        return method

    return folder, train(settings, make_method=make_method, about={"compression": about})


def _about(settings: CompressSettings, prefixes: Sequence[int]) -> dict[str, Any]:
    """What the result of a size depends on beside the recipe; kept in its results.json."""
    source = new_model(settings.model, settings.image_size)
    return {
        "source": source.fingerprint() if source.name_or_path else settings.model,
        "init": settings.init,
        "data": [settings.data, str(settings.data_dir and Path(settings.data_dir).name), settings.dataset_name],
        "validation": settings.validation,
        "keep_ids": settings.keep_ids,
        "granularity": settings.granularity,
        "start": settings.start,
        "criterion": settings.criterion,
        "prefixes": list(prefixes),
    }


def _push(settings: CompressSettings) -> None:
    if settings.push_to and is_main_process():
        push_folder(settings.output_dir, settings.push_to, private=settings.private)


def _heads(settings: CompressSettings, subset: TrainingSubset) -> dict[str, Tensor]:
    """Classifier and norm of the run that trained the model, if they are there and of the same identities."""
    try:
        return read_heads(settings.model, subset.identities)
    except (FileNotFoundError, ValueError) as error:
        logger.warning(f"the classifier starts from random weights: {error}")
        return {}


def _fit(settings: CompressSettings, dims: Sequence[int]) -> Made:
    """What needs no training: a linear map, a scale, or both, from the embeddings of the training pictures."""
    model = on_accelerator(new_model(settings.model, settings.image_size), settings.arguments)
    seen = torch.from_numpy(embed(model, load_splits(settings)["train"], flip=settings.flip).embeddings)

    def project(model: ReIDModel, dim: int) -> ReIDModel:
        if settings.head == "none":
            student = compress_model(model, "slice", dim, **settings.quantization)
        else:
            full = model.embedding_dim
            by_chance = settings.head == "random"
            rows = random_directions(full, dim, settings.seed) if by_chance else principal_directions(seen, dim)
            student = project_model(model, rows, **settings.quantization)
        fit_quantizer(student, seen)
        return student

    cut = [(settings.at(dim, len(dims) > 1), partial(project, dim=dim)) for dim in dims]
    training = TrainingInfo(method=None, recipe=None, epochs=0, seed=settings.seed, init=public_source(settings.model))
    return _evaluate_each(cut, settings.model, training)


def _evaluate_each(
    cut: Sequence[tuple[CompressSettings, Callable[[ReIDModel], ReIDModel]]], source: str, training: TrainingInfo
) -> Made:
    """Save and evaluate models that are made of another without further training."""
    made: Made = {}
    splits = load_splits(cut[0][0]) if cut else {}  # of all alike
    for settings, make in cut:
        folder = Path(settings.output_dir)
        base = on_accelerator(new_model(source, settings.image_size), settings.arguments)
        model, made[folder] = make(base).eval(), None
        step = {"method": settings.origin, "dataset": settings.dataset_name or settings.data}
        model.config.lineage = [*(model.config.lineage or []), step]
        if is_main_process():
            model.save_pretrained(folder)
        wait_for_everyone()
        if {"query", "gallery"} <= splits.keys():
            made[folder] = evaluate(
                model,
                splits,
                dataset_name=settings.dataset_name or settings.data,
                flip=settings.flip,
                training=replace(training, method=settings.origin),
                folder=folder,
            )
        _push(settings)
    return made
