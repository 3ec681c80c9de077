"""Metrics, plots and results of embeddings; each name is imported on first use."""

from importlib import import_module

_PLACES = {
    "ClassificationEvaluation": "results",
    "ClassificationMetrics": "sections",
    "ClassificationProtocol": "sections",
    "Cost": "sections",
    "DatasetInfo": "sections",
    "Decision": "calibration",
    "Embedded": "embedding",
    "Pretraining": "results",
    "Rerank": "rerank",
    "Results": "results",
    "RetrievalEvaluation": "results",
    "RetrievalMetrics": "sections",
    "RetrievalProtocol": "sections",
    "RetrievalResults": "metrics",
    "Shortlist": "codes",
    "TrainingInfo": "sections",
    "UNKNOWN_TRAINING": "sections",
    "average_precision": "metrics",
    "calibrate": "calibration",
    "count_macs": "cost",
    "embed": "embedding",
    "evaluate_embedded": "protocol",
    "evaluate_model": "protocol",
    "evaluate_retrieval": "metrics",
    "filter_normalised_direction": "surface",
    "loss_surface": "surface",
    "measure_cost": "cost",
    "classify": "classification",
    "plot_answers": "plots",
    "plot_attention": "plots",
    "plot_cmc": "plots",
    "plot_embedding_map": "plots",
    "plot_loss_surfaces": "surface",
    "plot_rank_lists": "plots",
    "public_command": "results",
    "rerank_distances": "rerank",
    "stored": "codes",
    "topk_accuracy": "classification",
}

__all__ = list(_PLACES)


def __getattr__(name: str):
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
