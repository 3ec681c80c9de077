"""Pictures of what a distilled student and its branches look at."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from reid_hub.evaluation import plot_attention
from reid_hub.methods.fd import attention_maps
from reid_hub.models import ReIDImageProcessor
from reid_hub.runs.models import open_model
from reid_hub.training import read_heads


def draw_attention(student: str | Path, split: Any, path: str | Path, *, count: int = 6) -> Path:
    """Draw the attention of a training's student on pictures evenly spread over a split, one row for each.

    Args:
        student: folder of an FD training, with its branches beside the model.

    Raises:
        FileNotFoundError: if nothing of the training lies beside the model.
        ValueError: if it has no branches, or `count` is not positive.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    model, heads = open_model(student).eval(), read_heads(student)
    rows = np.linspace(0, len(split) - 1, min(count, len(split))).astype(int)
    pictures = [split[int(row)]["image"].convert("RGB") for row in rows]
    processor = ReIDImageProcessor.from_config(model.config)
    with torch.inference_mode():
        maps = attention_maps(model, heads, processor(pictures, return_tensors="pt")["pixel_values"])
    return plot_attention(path, pictures, {name: values.numpy() for name, values in maps.items()})
