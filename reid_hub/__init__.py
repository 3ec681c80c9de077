"""Compact person re-identification on the Hugging Face Hub.

Importing this package registers its models with the Auto classes of transformers. Everything else is imported on first
use, so importing reid_hub costs no more than importing transformers.
"""

import importlib
import os

# Must be set before torch is imported. Spinning OpenMP threads slow down a step of a small network on two cores by up
# to fifteen times when other processes are running; sleeping threads cost nothing.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from reid_hub.models import (
    ReIDBackbone,
    ReIDBackboneConfig,
    ReIDConfig,
    ReIDForImageClassification,
    ReIDImageProcessor,
    ReIDModel,
    ReIDOutput,
    WeightChain,
    list_variants,
    register,
)
from reid_hub.version import __version__

_LAZY = {
    "GalleryIndex": "reid_hub.index",
    "evaluate_model": "reid_hub.evaluation",
    "evaluate_retrieval": "reid_hub.evaluation",
    "load_reid_dataset": "reid_hub.data",
}

__all__ = [
    "ReIDBackbone", "ReIDBackboneConfig", "ReIDConfig", "ReIDForImageClassification", "ReIDImageProcessor", "ReIDModel",
    "ReIDOutput", "WeightChain", "__version__", "list_variants", *_LAZY,
]  # fmt: skip


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


def _write_card(folder):
    from reid_hub.hub.card import write_card

    return write_card(folder)


def _publish(folder, repo_id, **options):
    from reid_hub.hub.push import push_folder

    return push_folder(folder, repo_id, **options)


def _cluster(teacher, sizes, **options):
    from reid_hub.methods.oskt.cluster import cluster

    return cluster(teacher, sizes, **options)


register()
for _model in (ReIDModel, ReIDForImageClassification, WeightChain):
    _model.card_writer, _model.publisher = staticmethod(_write_card), staticmethod(_publish)
WeightChain.clusterer = staticmethod(_cluster)
