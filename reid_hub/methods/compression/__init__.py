"""Embedding Compression (arXiv:2405.14730): shorter vectors, in fewer bits."""

from reid_hub.methods.compression.models import (
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
from reid_hub.methods.compression.training import CompressionMethod

__all__ = [
    "CompressionMethod",
    "compress_model",
    "fit_quantizer",
    "importance",
    "ladder",
    "most_important",
    "narrow",
    "principal_directions",
    "project_model",
    "random_directions",
]
