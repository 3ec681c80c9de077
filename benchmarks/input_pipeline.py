"""Images per second and core of this package's input pipeline and of torchvision's transforms on Pillow images.

    python benchmarks/run.py input_pipeline --data market1501 --data-dir DIR

Every pipeline makes float32 training images of 256x128 (resize, flip, pad and random crop, normalise, random erasing)
on one thread. The pipelines take turns and the median of the rounds counts, in CPU seconds, so that other work on the
machine affects all of them equally. The Pillow pipelines do not collate batches, which favours them; ours includes
reading each batch from the memory map. Decoding, which happens once, is reported separately. The identity sampler is
timed on 2 million images of 86,000 identities.
"""

import argparse
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from datasets import Image as ImageFeature
from PIL import Image
from render import Block, Table
from speed import Speed, take_turns, written_by
from torchvision import transforms

from reid_hub.data import load_reid_dataset
from reid_hub.data.augmentation import Augmentation, BatchTransform
from reid_hub.data.images import ImageDataset
from reid_hub.data.samplers import IdentitySampler, ShuffleSampler

SIZE, BATCH = (256, 128), 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FILL = (0.4914, 0.4822, 0.4465)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Images per CPU second of each pipeline, and the speed-up of ours."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = load_reid_dataset(options.data, options.data_dir)["train"]
    rows = rows.select(range(min(options.images, len(rows))))
    with tempfile.TemporaryDirectory() as cache:
        start = time.process_time()
        images = ImageDataset(rows, SIZE, cache_dir=cache)
        decoding = len(rows) / (time.process_time() - start)
        seconds = take_turns(pipelines(rows, images), options.rounds, time.process_time)
    ours = seconds["reid_hub"]
    return {
        "images_per_cpu_second": {name: round(median(len(rows) / s for s in took)) for name, took in seconds.items()},
        "speed_up": {
            name: round(median(theirs / mine for mine, theirs in zip(ours, took, strict=True)), 1)
            for name, took in seconds.items()
            if name.startswith("pillow")
        },
        "decode_once_images_per_cpu_second": round(decoding),
        "images": len(rows),
    }


def pipelines(rows, images: ImageDataset) -> dict[str, Callable[[], None]]:
    """Functions that process all images once."""
    encoded = [encoded_bytes(row["image"]) for row in rows.cast_column("image", ImageFeature(decode=False))]
    decoded = [Image.open(io.BytesIO(data)).convert("RGB") for data in encoded]
    resized = [image.resize(SIZE[::-1], Image.Resampling.BILINEAR) for image in decoded]
    augment = [
        transforms.RandomHorizontalFlip(0.5),
        transforms.Pad(10),
        transforms.RandomCrop(SIZE),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
        transforms.RandomErasing(0.5, (0.02, 0.4), (0.3, 1 / 0.3), FILL),
    ]
    without_resize, with_resize = transforms.Compose(augment), transforms.Compose([transforms.Resize(SIZE), *augment])
    sampler = ShuffleSampler(len(images), min(BATCH, len(images)), seed=0)
    batches = np.reshape(list(sampler), (-1, sampler.batch_size)).tolist()

    def batched(augmentation: Augmentation) -> Callable[[], None]:
        transform = BatchTransform(augmentation, MEAN, STD)

        def run() -> None:
            for step, indices in enumerate(batches):
                batch = images.__getitems__(indices)
                transform(batch["pixel_values"], batch["indices"], seed=0, step=step)

        return run

    def one_by_one(transform: Callable, sources: list) -> Callable[[], None]:
        def run() -> None:
            for source in sources:
                transform(source)

        return run

    return {
        "reid_hub": batched(Augmentation(erasing_fill=FILL)),
        "reid_hub, noise": batched(Augmentation(erasing_fill="noise")),
        "pillow, decode": one_by_one(lambda data: with_resize(Image.open(io.BytesIO(data)).convert("RGB")), encoded),
        "pillow, decoded before": one_by_one(with_resize, decoded),
        "pillow, resized before": one_by_one(without_resize, resized),
    }


def time_sampler(options: argparse.Namespace, num_images: int = 2_000_000, num_ids: int = 86_000) -> dict[str, Any]:
    """CPU seconds to build the sampler and to draw one epoch of 16 x 4 batches; identities are long-tailed."""
    random = np.random.default_rng(0)
    weights = random.lognormal(0, 1, num_ids)
    tail = random.choice(num_ids, num_images - 2 * num_ids, p=weights / weights.sum())
    pids = np.concatenate([np.arange(num_ids), np.arange(num_ids), tail])
    start = time.process_time()
    sampler = IdentitySampler(pids, 16, 4, seed=0)
    built = time.process_time()
    drawn = sum(1 for _ in sampler)
    figures = {
        "images": num_images,
        "identities": num_ids,
        "indices_drawn": drawn,
        "build_cpu_seconds": round(built - start, 2),
        "epoch_cpu_seconds": round(time.process_time() - built, 2),
    }
    return {"identity_sampler": figures}


def encoded_bytes(image: dict) -> bytes:
    return image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that results.json keeps."""
    return {"dataset": options.data, "size": SIZE, "batch": BATCH, "threads": 1}


def page(results: dict[str, Any]) -> Iterator[Block]:
    """Answer, pipelines, decoding, and the sampler."""
    f, setting = results["figures"], results["setting"]
    images = f.get("images", setting.get("images"))
    speeds, sampler = f["images_per_cpu_second"], f["identity_sampler"]

    def cell(name: str, column: str) -> str:
        if column == "speed":
            return f"{speeds[name]:,}"
        return f"{f['speed_up'][name]} x" if name in f["speed_up"] else "-"

    yield "# Speed of the input pipeline"
    factors = [f"{value} x ({name.removeprefix('pillow, ')})" for name, value in f["speed_up"].items()]
    yield (
        f"**The input pipeline makes {speeds['reid_hub']:,} training images per CPU second.** It is faster than "
        f"torchvision's transforms on Pillow images by {', '.join(factors)}."
    )
    yield (
        f"Setup: {images:,} images as float32 tensors of {'x'.join(map(str, setting['size']))}, batches of "
        f"{setting['batch']}, one thread of {results['machine']['processor']}."
    )
    columns = {"speed": "images per CPU second", "factor": "speed-up of reid_hub"}
    yield Table(columns, {name: name for name in speeds}, cell, "pipeline")
    yield f"Decoding, once: {f['decode_once_images_per_cpu_second']:,} images per CPU second."
    yield (
        f"For {sampler['images']:,} images of {sampler['identities']:,} identities, the identity sampler is built in "
        f"{sampler['build_cpu_seconds']} CPU seconds and draws an epoch in {sampler['epoch_cpu_seconds']}."
    )
    yield written_by(results)


OPTIONS = {
    "--data --dataset": {"default": "synthetic", "help": "data set, see `reid-hub list datasets`"},
    "--data-dir": {"help": "folder of the data set"},
    "--images": {"type": int, "default": 1024, "help": "number of training images, at most"},
    "--rounds": {"type": int, "default": 9},
}
PARTS = {"pipelines": measure, "identity sampler": time_sampler}
BENCHMARK = Speed("input_pipeline", __doc__, lambda options: PARTS, page, OPTIONS, settings)
