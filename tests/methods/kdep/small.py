"""A small teacher, pictures and crops, for the tests beside this file; as a script for processes that are killed."""

import argparse
import os
import signal
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image

from reid_hub import ReIDConfig, ReIDModel
from reid_hub.data.augmentation import Augmentation
from reid_hub.data.images import ImageDataset
from reid_hub.methods.kdep import Crops, TappedTeacher, fit_basis

SIZE, COUNT = (32, 16), 50
AUGMENTATION = Augmentation(pad=2, erasing=0.0)


def model(*channels: int, seed: int = 0, **config) -> ReIDModel:
    """A ResNet of basic blocks, its running statistics away from where they start."""
    torch.manual_seed(seed)
    backbone = {"model_type": "resnet", "embedding_size": 4, "hidden_sizes": list(channels), "layer_type": "basic"}
    made = ReIDModel(
        ReIDConfig(backbone_config={**backbone, "depths": [1] * len(channels)}, **{"image_size": SIZE, **config})
    )
    for name, buffer in made.named_buffers():
        if "running_var" in name:
            torch.nn.init.uniform_(buffer, 0.5, 1.5)
        elif "running_mean" in name:
            torch.nn.init.uniform_(buffer, -0.1, 0.1)
    return made


def pictures(folder: Path, count: int = COUNT) -> datasets.Dataset:
    folder.mkdir(parents=True, exist_ok=True)
    rng, rows = np.random.default_rng(0), []
    for number in range(count):
        path = folder / f"{number:02d}.png"
        if not path.exists():
            Image.fromarray(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(path)
        rows.append({"image": str(path), "pid": -1, "camid": -1, "path": path.name})
    return datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())


def crops(folder: Path, teacher: ReIDModel | None = None, count: int = COUNT, **options) -> Crops:
    teacher = model(6, 8) if teacher is None else teacher
    images = ImageDataset(pictures(folder / "pictures", count), SIZE, cache_dir=folder / "decoded", progress=False)
    return Crops(TappedTeacher(teacher, **options), images, AUGMENTATION, teacher.config, seed=3)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kill-at", type=int, help="rows after which this process is killed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    source, done = crops(options.folder), 0
    represent = source.represent

    def counted(rows, round=0):
        nonlocal done
        if options.kill_at is not None and done >= options.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        done += len(rows)
        return represent(rows, round)

    source.represent = counted
    fit_basis(options.folder / "basis.safetensors", source, block_size=10, batch_size=5, progress=False)
    print(done)


if __name__ == "__main__":
    main()
