"""Evaluate a model on the splits of a data set."""

from collections.abc import Mapping
from dataclasses import replace

from reid_hub.errors import ReIDError
from reid_hub.evaluation.codes import Shortlist
from reid_hub.evaluation.embedding import Embedded, embed
from reid_hub.evaluation.metrics import UNKNOWN_CAMERA, RetrievalResults, evaluate_retrieval
from reid_hub.evaluation.rerank import Rerank
from reid_hub.models import ReIDModel


def evaluate_model(
    model: ReIDModel,
    splits: Mapping,
    *,
    flip: bool = False,
    batch_size: int = 64,
    metric: str = "cosine",
    max_rank: int = 50,
    rerank: bool | Rerank = False,
    per_query: bool = False,
    progress: bool = True,
) -> RetrievalResults:
    """Embed query and gallery and evaluate the retrieval with `evaluate_retrieval`.

    Args:
        splits: from `load_reid_dataset`, or any mapping with the splits (or `ImageDataset`s) "query" and "gallery".
        flip: average the embeddings of each image and its mirror image.
        metric, max_rank, rerank, per_query: as in `evaluate_retrieval`.

    Raises:
        ValueError: if a split is missing, the model returns NaN or Inf, or no query has a true match.
    """
    missing = {"query", "gallery"} - set(splits)
    if missing:
        raise ReIDError(f"splits must hold query and gallery, got {', '.join(splits) or 'none'}: load a test set")
    query, gallery = (
        embed(model, splits[name], batch_size=batch_size, flip=flip, progress=progress) for name in ("query", "gallery")
    )
    return evaluate_embedded(
        query,
        gallery,
        flip=flip,
        metric=metric,
        max_rank=max_rank,
        rerank=rerank,
        per_query=per_query,
        progress=progress,
    )


def evaluate_embedded(
    query: Embedded,
    gallery: Embedded,
    *,
    flip: bool,
    metric: str = "cosine",
    max_rank: int = 50,
    rerank: bool | Rerank = False,
    shortlist: Shortlist | None = None,
    per_query: bool = False,
    progress: bool = False,
) -> RetrievalResults:
    """Apply `evaluate_retrieval` to two embedded splits; takes its options.

    The protocol also records whether embeddings are averaged with those of the mirror images ("flip"), and whether the
    cameras are known ("cameras"; if not, the same-camera rule cannot be applied).
    """
    results = evaluate_retrieval(
        query.embeddings,
        gallery.embeddings,
        query.pids,
        gallery.pids,
        query.camids,
        gallery.camids,
        metric=metric,
        max_rank=max_rank,
        rerank=rerank,
        shortlist=shortlist,
        per_query=per_query,
        progress=progress,
    )
    cameras = all(bool((split.camids != UNKNOWN_CAMERA).any()) for split in (query, gallery))
    return replace(results, protocol={**results.protocol, "flip": flip, "cameras": cameras})
