"""Evaluate a model on a data set and save the results beside it: results.json, card and plots."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from reid_hub.data import camera_note, load_reid_dataset
from reid_hub.errors import ReIDError
from reid_hub.evaluation import (
    UNKNOWN_TRAINING,
    DatasetInfo,
    Embedded,
    Rerank,
    Results,
    RetrievalEvaluation,
    RetrievalMetrics,
    RetrievalProtocol,
    RetrievalResults,
    Shortlist,
    TrainingInfo,
    embed,
    evaluate_embedded,
    measure_cost,
    plot_cmc,
    plot_embedding_map,
    plot_rank_lists,
    public_command,
    stored,
)
from reid_hub.hub.card import write_card
from reid_hub.models import ReIDModel
from reid_hub.models.codes import STORED_AS, bytes_per_vector
from reid_hub.registry import lookup
from reid_hub.runs.models import open_model
from reid_hub.runs.options import Part, Settings, option
from reid_hub.runs.search import new_index
from reid_hub.runs.settings import CheckpointArguments, DataArguments, EmbeddingArguments


@dataclass(frozen=True)
class EvaluateArguments(Part):
    """How to evaluate a model."""

    rerank: bool = option(False, "Re-rank by k-reciprocal neighbours (k1 20, k2 6, lambda 0.3).")
    codec: str | None = option(None, "Rank stored codes: float16, int8, binary, binary+float16, binary+int8, ...")
    shortlist: int = option(100, "Number of candidates re-ranked by the second part of a codec such as binary+int8.")
    batch_size: int = option(64, "Number of images per batch.")
    name: str | None = option(None, "Name of the model in the results (default: variant and method).")
    out: str | None = option(None, "Checkpoint folder for results.json and card (default: MODEL, if it is a folder).")
    plots: str | None = option(None, "Folder for rank lists, CMC curve and embedding map.")


@dataclass(frozen=True)
class EvaluateSettings(Settings):
    """The settings of `reid-hub evaluate`."""

    checkpoint: CheckpointArguments = CheckpointArguments()
    data: DataArguments = DataArguments()
    embedding: EmbeddingArguments = EmbeddingArguments()
    how: EvaluateArguments = EvaluateArguments()

    @property
    def folder(self) -> Path | None:
        """Folder for the results."""
        model = Path(self.checkpoint.model)
        return Path(self.how.out) if self.how.out else model if model.is_dir() else None


def evaluate_checkpoint(settings: EvaluateSettings) -> Results:
    """Evaluate a model given by name on the query and gallery of a data set; see `evaluate`.

    Raises:
        ReIDError: for unknown names; see `evaluate`.
    """
    how, data, model = settings.how, settings.data, settings.checkpoint.model
    if how.shortlist < 1 or how.batch_size < 1:
        raise ReIDError(f"shortlist and batch_size must be at least 1, got {how.shortlist} and {how.batch_size}")
    return evaluate(
        open_model(model, settings.checkpoint.revision),
        load_reid_dataset(data.data, data.data_dir, **data.data_option),
        dataset_name=data.name,
        name=how.name,
        flip=settings.embedding.flip,
        rerank=how.rerank,
        codec=how.codec,
        shortlist=how.shortlist,
        batch_size=how.batch_size,
        training=recorded_training(model),
        folder=settings.folder,
        plots=how.plots,
    )


def evaluate(
    model: ReIDModel,
    splits: Mapping[str, Any],
    *,
    dataset_name: str,
    name: str | None = None,
    flip: bool = False,
    rerank: bool | Rerank = False,
    codec: str | None = None,
    shortlist: int = 100,
    batch_size: int = 64,
    training: TrainingInfo = UNKNOWN_TRAINING,
    command: Sequence[str] | None = None,
    folder: str | Path | None = None,
    plots: str | Path | None = None,
) -> RetrievalEvaluation:
    """Evaluate on query and gallery; returns the contents of results.json.

    Args:
        codec: rank codes stored with this codec instead of the embeddings: "float16", "int8", "binary", or a pair such
            as "binary+float16", which re-ranks the `shortlist` nearest by their bits. Bytes per vector and search time
            are then those of the codec.
        name: of the model in the results (default: variant and method).
        training: how the model was trained, recorded in the results.
        folder: checkpoint folder for results.json and the card rendered from it.
        plots: folder for rank lists, CMC curve and embedding map.

    Raises:
        ValueError: if a split is missing, the model outputs NaN or Inf, or no query has a true match.
    """
    missing = {"query", "gallery"} - set(splits)
    if missing:
        raise ReIDError(f"an evaluation needs query and gallery; {dataset_name} lacks {', '.join(sorted(missing))}")
    query, gallery = (
        embed(model, splits[part], batch_size=batch_size, flip=flip, quantized=codec is None)
        for part in ("query", "gallery")
    )
    cost = measure_cost(model, dtype=torch.int8 if model.precision == "int8" else torch.float32)
    if codec is None:
        measured = evaluate_embedded(query, gallery, flip=flip, rerank=rerank)
    else:
        measured = evaluate_stored(model, query, gallery, codec, shortlist=shortlist, flip=flip, rerank=rerank)
        cost = replace(
            cost,
            bytes_per_vector=bytes_per_vector(model.embedding_dim, codec),
            search_ms=search_ms(model, query.embeddings, gallery.embeddings, codec),
        )
    name = name or f"{model.config.variant or 'reid'}.{training.method or 'converted'}"
    results = RetrievalEvaluation(
        model=name,
        dataset=describe_dataset(dataset_name, splits),
        protocol=RetrievalProtocol.of(measured),
        metrics=RetrievalMetrics.of(measured),
        cost=cost,
        training=training,
        command=public_command(sys.argv if command is None else command),
    )
    if not dist.is_initialized() or dist.get_rank() == 0:
        if folder is not None:
            results.write(Path(folder) / "results.json")
            write_card(folder)
        if plots is not None:
            draw_plots(Path(plots), name, measured, splits, query, gallery)
    return results


def evaluate_stored(
    model: ReIDModel, query: Embedded, gallery: Embedded, codec: str, *, shortlist: int = 100, **options: Any
) -> RetrievalResults:
    """Metrics of vectors before the model's quantiser, with query and gallery stored with a codec.

    Raises:
        ValueError: for an unknown codec.
    """
    lookup(dict.fromkeys(STORED_AS), codec, "codec")
    first, *second = codec.split("+")
    forms = {part: [stored(model, split.embeddings, part) for split in (query, gallery)] for part in codec.split("+")}
    pair = [
        split._replace(embeddings=form)
        for split, form in zip((query, gallery), forms[second[0] if second else first], strict=True)
    ]
    if second:
        options["shortlist"] = Shortlist(*forms[first], shortlist)
    results = evaluate_embedded(*pair, **options)
    return replace(results, protocol={**results.protocol, "codec": codec})


def search_ms(model: ReIDModel, queries: np.ndarray, gallery: np.ndarray, codec: str, k: int = 10) -> float:
    """Milliseconds per query to find its `k` nearest in an index with this codec, all queries in one batch; warm."""
    index = new_index(model, codec)
    index.add(gallery, map(str, range(len(gallery))))
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        index.search(queries, k)
        seconds.append(time.perf_counter() - start)
    return round(1000 * min(seconds[1:]) / len(queries), 4)


def recorded_training(folder: str | Path) -> TrainingInfo:
    """Read how a checkpoint folder's model was trained from an earlier results.json in the folder."""
    path = Path(folder) / "results.json"
    return Results.read(path).training if path.is_file() else UNKNOWN_TRAINING


def describe_dataset(name: str, splits: Mapping[str, Any]) -> DatasetInfo:
    """The data set section of results.json: name, split, and the images and identities found in each split."""
    counts = {
        part: {"images": len(split), "identities": len(np.unique(np.asarray(split["pid"])))}
        for part, split in splits.items()
    }
    return DatasetInfo(name=name, split="test", data_dir_counts=counts, camera_note=camera_note(splits) or None)


def draw_plots(
    folder: Path,
    name: str,
    results: RetrievalResults,
    splits: Mapping,
    query: Embedded,
    gallery: Embedded,
    rows: int = 6,
) -> list[Path]:
    """Draw rank lists of evenly spaced queries, the CMC curve, and an embedding map of the query identities."""
    chosen = np.linspace(0, len(query.pids) - 1, min(6, len(query.pids))).astype(int)
    images = splits["query"].select(chosen)["image"]
    known = np.isin(gallery.pids, query.pids)  # distractors share a pid but are different people
    return [
        plot_rank_lists(
            folder / "rank_lists.png",
            images,
            splits["gallery"]["image"],
            query.embeddings[chosen],
            gallery.embeddings,
            query.pids[chosen],
            gallery.pids,
            query.camids[chosen],
            gallery.camids,
        ),
        plot_cmc(folder / "cmc.png", {name: results}),
        plot_embedding_map(
            folder / "embedding_map.png", gallery.embeddings[known], gallery.pids[known], gallery.camids[known]
        ),
    ]
