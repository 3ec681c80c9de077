"""Attention maps of a distilled student and its branches."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reid_hub.data import load_reid_dataset
from reid_hub.errors import ReIDError
from reid_hub.evaluation import plot_attention
from reid_hub.methods.fd import attention_maps
from reid_hub.methods.state import read_state
from reid_hub.models import ReIDImageProcessor
from reid_hub.registry import lookup
from reid_hub.runs.models import open_model
from reid_hub.runs.options import Part, Settings, option
from reid_hub.runs.settings import DataArguments


@dataclass(frozen=True)
class AttentionArguments(Part):
    """The student, and the images to draw its attention on."""

    student: str = option(None, "Folder of a student's training run, such as runs/fd/student.", argument=True)
    part: str = option("query", "Part of the data set: query, gallery or train.")
    count: int = option(6, "Number of images, evenly spread.")
    out: str = option("attention.png", "Output file.")


@dataclass(frozen=True)
class AttentionSettings(Settings):
    """The settings of `reid-hub distill attention`."""

    drawing: AttentionArguments = AttentionArguments()
    data: DataArguments = DataArguments()


def attention(settings: AttentionSettings) -> Path:
    """Draw the attention of a student on a data set; see `draw_attention`."""
    drawing, data = settings.drawing, settings.data
    splits = load_reid_dataset(data.data, data.data_dir, **data.data_option)
    split = lookup(dict(splits), drawing.part, "part of the data set")
    return draw_attention(drawing.student, split, drawing.out, count=drawing.count)


def draw_attention(student: str | Path, split: Any, path: str | Path, *, count: int = 6) -> Path:
    """Draw the attention of a trained student on images evenly spread over a split, one row per image.

    Args:
        student: folder of an FD training run, with the branches beside the model.

    Raises:
        FileNotFoundError: if the folder has no files of the training run beside the model.
        ValueError: if it has no branches, or `count` is not positive.
    """
    if count < 1:
        raise ReIDError(f"count must be at least 1, got {count}")
    model, heads = open_model(student).eval(), read_state(student)
    rows = np.linspace(0, len(split) - 1, min(count, len(split))).astype(int)
    images = [split[int(row)]["image"].convert("RGB") for row in rows]
    processor = ReIDImageProcessor.from_config(model.config)
    with torch.inference_mode():
        maps = attention_maps(model, heads, processor(images, return_tensors="pt")["pixel_values"])
    return plot_attention(path, images, {name: values.numpy() for name, values in maps.items()})
