"""Gallery and query vectors of `index_search.py`: embeddings of a trained model, or seeded clusters instead."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from reid_hub.data import load_reid_dataset
from reid_hub.data.augmentation import Augmentation, BatchTransform
from reid_hub.data.images import ImageDataset
from reid_hub.evaluation.embedding import embed
from reid_hub.files import atomic_file
from reid_hub.models import ReIDModel

REAL = 80_000
# Crops vary as detector boxes and light do; no erasing, because galleries hold no erased images.
CROPS = Augmentation(flip=0.5, pad=0, crop_scale=1.125, brightness=0.2, contrast=0.2, erasing=0.0)


@dataclass
class Vectors:
    """Unit vectors: `gallery` (80,000, D) with `pids` and `pictures` (image index of each crop), `queries` (Q, D)."""

    gallery: np.ndarray
    pids: np.ndarray
    pictures: np.ndarray
    queries: np.ndarray
    source: str


def base_vectors(
    model_dir: str | None, data_dir: str | None, cache: Path, dim: int = 512, count: int = REAL
) -> Vectors:
    """The 80,000 vectors and the queries; the folder `cache` keeps those of a model, so that a run can resume."""
    if model_dir is None:
        return synthetic(dim, count)
    model = ReIDModel.from_pretrained(model_dir)
    name = hashlib.sha256(f"{model.fingerprint()} {count} {CROPS}".encode()).hexdigest()[:12]
    cached = cache / f"vectors-{name}.npz"
    if not cached.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        arrays = embed_crops(model, data_dir, count)
        with atomic_file(cached) as temporary:
            np.savez(temporary, **arrays)
    arrays = np.load(cached)
    crops = f"{count:,} random crops (flipped, lighter, darker) of {arrays['pictures'].max() + 1:,} training images"
    return Vectors(**arrays, source=f"{crops}; queries: the query images")


def embed_crops(model: ReIDModel, data_dir: str, count: int) -> dict[str, np.ndarray]:
    splits = load_reid_dataset("market_layout", data_dir)
    config = model.config
    images = ImageDataset(splits["train"], tuple(config.image_size), interpolation=config.interpolation)
    transform = BatchTransform(CROPS, config.image_mean, config.image_std)
    vectors, step = np.empty((count, model.embedding_dim), np.float32), 64
    model.eval()
    with torch.inference_mode():
        for start in tqdm(range(0, count, step), desc="embed crops"):
            batch = images.__getitems__(np.arange(start, min(start + step, count)) % len(images))
            pixels = transform(batch["pixel_values"], batch["indices"], seed=0, step=start)
            vectors[start : start + step] = model(pixels).embeddings
    sources = np.arange(count) % len(images)
    queries = embed(model, splits["query"], flip=False).embeddings
    return {"gallery": unit(vectors), "pids": images.pids[sources], "pictures": sources, "queries": unit(queries)}


def synthetic(dim: int, count: int) -> Vectors:
    """Vectors as in evaluation.py: a centre per person, and noise per image."""
    random = np.random.default_rng(0)
    people = max(2, count // 25)
    centres = random.standard_normal((people, dim), dtype=np.float32)
    pids = random.integers(0, people, count)
    draw = [centres[p] + 2 * random.standard_normal((len(p), dim), dtype=np.float32) for p in (pids, pids[:953])]
    return Vectors(*map(unit, draw[:1]), pids, np.arange(count), unit(draw[1]), "seeded clusters, not a trained model")


def enlarged(base: Vectors, count: int) -> np.ndarray:
    """(count, D) unit vectors: those of `base`, then mixtures of two vectors of one person, with noise.

    A mixture is convex. Its noise is half the difference of two crops of one image (of anybody), so it has the measured
    size and directions.
    """
    if count <= len(base.gallery):
        return base.gallery[:count]
    random = np.random.default_rng(1)
    out = np.empty((count, base.gallery.shape[1]), np.float32)
    out[: len(base.gallery)] = base.gallery[:count]
    by_person, by_image = np.argsort(base.pids, kind="stable"), np.argsort(base.pictures, kind="stable")

    def partner(order: np.ndarray, keys: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """A random row of the same key."""
        sorted_keys = keys[order]
        low, high = (np.searchsorted(sorted_keys, keys[rows], side) for side in ("left", "right"))
        return order[low + (random.random(len(rows)) * (high - low)).astype(np.int64)]

    for start in range(len(base.gallery), count, 50_000):
        size = min(50_000, count - start)
        one, other_image = random.integers(0, len(base.gallery), (2, size))
        share = random.random((size, 1), dtype=np.float32)
        mixed = share * base.gallery[one] + (1 - share) * base.gallery[partner(by_person, base.pids, one)]
        crop = partner(by_image, base.pictures, other_image)
        noise = base.gallery[other_image] - base.gallery[crop]
        out[start : start + size] = unit(mixed + noise / 2)
    return out


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
