"""Images per second and core: this package's input pipeline and torchvision's transforms on Pillow images, in one run.

    python benchmarks/input_pipeline.py --dataset market1501 --data-dir DIR

Every pipeline makes float32 training images of 256x128 (resize, flip, pad and random crop, normalise, random erasing)
on one thread; the rounds of the pipelines alternate and the median over the rounds is taken, in seconds of CPU time, so
that other work on the machine disturbs all alike. Collating the images of the Pillow pipelines into batches is not
counted, which is in their favour; reading a batch from the memory map is counted for ours, and decoding once is given
apart.
The identity sampler is timed on 2 million images of 86,000 identities.
"""

import argparse
import io
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from datasets import Image as ImageFeature
from PIL import Image
from torchvision import transforms

from reid_hub.data import load_reid_dataset
from reid_hub.data.augmentation import Augmentation, BatchTransform
from reid_hub.data.images import ImageDataset
from reid_hub.data.samplers import IdentitySampler, ShuffleSampler
from reid_hub.evaluation.results import public_command, versions
from reid_hub.files import atomic_file

SIZE, BATCH = (256, 128), 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FILL = (0.4914, 0.4822, 0.4465)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="synthetic")
    parser.add_argument("--data-dir")
    parser.add_argument("--images", type=int, default=1024, help="of the training split")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix("") / "results.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)

    rows = load_reid_dataset(arguments.dataset, arguments.data_dir)["train"]
    rows = rows.select(range(min(arguments.images, len(rows))))
    with tempfile.TemporaryDirectory() as cache:
        start = time.process_time()
        images = ImageDataset(rows, SIZE, cache_dir=cache)
        decoding = len(rows) / (time.process_time() - start)
        speeds = measure(pipelines(rows, images), len(rows), arguments.rounds)
    figures = {
        "images_per_cpu_second": {name: round(median(rounds)) for name, rounds in speeds.items()},
        "speed_up": {
            name: round(median(a / b for a, b in zip(speeds["reid_hub"], speeds[name], strict=True)), 1)
            for name in speeds
            if name.startswith("pillow")
        },
        "decode_once_images_per_cpu_second": round(decoding),
        "identity_sampler": time_sampler(),
    }
    report(figures)
    results = {
        "figures": figures,
        "setting": {"dataset": arguments.dataset, "images": len(rows), "size": SIZE, "batch": BATCH, "threads": 1},
        "machine": {"processor": processor(), "cores": os.cpu_count(), "system": platform.system()},
        "command": public_command(sys.argv),
        "versions": versions(),
    }
    with atomic_file(arguments.out) as temporary:
        temporary.write_text(json.dumps(results, indent=2) + "\n")
    print(f"written to {arguments.out}")


def pipelines(rows, images: ImageDataset) -> dict[str, Callable[[], None]]:
    """Each goes once over all images."""
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


def measure(runs: dict[str, Callable[[], None]], count: int, rounds: int) -> dict[str, list[float]]:
    """Images per CPU second of each pipeline in each round, after one round to warm up."""
    speeds = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            start = time.process_time()
            run()
            if number:
                speeds[name].append(count / (time.process_time() - start))
        print(f"round {number} of {rounds}", end="\r", flush=True)
    return speeds


def time_sampler(num_images: int = 2_000_000, num_ids: int = 86_000) -> dict[str, float]:
    """CPU seconds to build the sampler and to draw one whole epoch of 16 x 4 batches; a long-tailed histogram."""
    random = np.random.default_rng(0)
    weights = random.lognormal(0, 1, num_ids)
    tail = random.choice(num_ids, num_images - 2 * num_ids, p=weights / weights.sum())
    pids = np.concatenate([np.arange(num_ids), np.arange(num_ids), tail])
    start = time.process_time()
    sampler = IdentitySampler(pids, 16, 4, seed=0)
    built = time.process_time()
    drawn = sum(1 for _ in sampler)
    return {
        "images": num_images,
        "identities": num_ids,
        "indices_drawn": drawn,
        "build_cpu_seconds": round(built - start, 2),
        "epoch_cpu_seconds": round(time.process_time() - built, 2),
    }


def report(figures: dict) -> None:
    print(f"{'pipeline, one thread':28}{'images / CPU s':>16}{'reid_hub is faster by':>24}")
    for name, speed in figures["images_per_cpu_second"].items():
        factor = figures["speed_up"].get(name)
        print(f"{name:28}{speed:16,}{f'{factor} x' if factor else '':>24}")
    print(f"{'decoding once':28}{figures['decode_once_images_per_cpu_second']:16,}")
    sampler = figures["identity_sampler"]
    print(
        f"identity sampler: {sampler['images']:,} images of {sampler['identities']:,} identities, "
        f"built in {sampler['build_cpu_seconds']} s, an epoch drawn in {sampler['epoch_cpu_seconds']} s"
    )


def encoded_bytes(image: dict) -> bytes:
    return image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
