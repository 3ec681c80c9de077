"""Images to train on without labels, from anywhere: our data sets, any folder, any data set of the Hub, streams."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reid_hub.compat import resolve_features
from reid_hub.data.loading import load_reid_dataset
from reid_hub.errors import ReIDError

if TYPE_CHECKING:
    import datasets

UNLABELLED = -1


def load_images(
    name: str,
    /,
    data_dir: str | Path | None = None,
    *,
    split: str = "train",
    share: float = 1.0,
    per_class: int | None = None,
    limit: int | None = None,
    streaming: bool = False,
    seed: int = 0,
    **options: Any,
) -> "datasets.Dataset":
    """One split of a data set as images: the columns image, path, and pid and camid, which are -1 without labels.

    Args:
        name: see `load_reid_dataset`; "luperson" reads any folder of images. Or "namespace/name" of any data set of
            the Hub that has a column of images; its classes, where it has some, become the pids. Otherwise its column
            pid is kept, as camid always, where it holds whole numbers, and left out where not: labels are needed only
            to draw images of each class.
        data_dir: where a data set that is not on the Hub was unpacked.
        share: of the images, drawn by the seed; where there are classes, of each class.
        per_class: images of each class in place of a share: 128 are the paper's tenth of ImageNet (KDEP,
            arXiv:2203.05180).
        limit: the first so many images only, before a share is drawn.
        streaming: read as a stream, of which `limit` images are kept on the disk, since a training visits each of
            them many times.
        options: of the data set, or for one of the Hub those of `datasets.load_dataset`, as its configuration, `name`.

    Raises:
        ValueError: for an unknown name, a folder given for the Hub, a share outside of (0, 1], a limit or number below
            1, classes asked of images without, or no images.
        FileNotFoundError: see `load_reid_dataset`.
    """
    if not 0 < share <= 1:
        raise ReIDError(f"the share of the images must be in (0, 1], got {share}")
    for what, number in (("limit", limit), ("per_class", per_class)):
        if number is not None and number < 1:
            raise ReIDError(f"{what} must be at least 1 image, got {number}")
    if streaming and limit is None:
        raise ReIDError("a stream has no end that is known: give a limit of images to keep")
    if "/" in name:
        from datasets import load_dataset

        if data_dir is not None:
            raise ReIDError(f"{name!r} is a data set on the Hub, which takes no data_dir; got {str(data_dir)!r}")
        dataset = load_dataset(name, split=split, streaming=streaming, **options)
    else:
        dataset = _split(load_reid_dataset(name, data_dir, streaming=streaming, **options), split, name)
    dataset, label = _columns(dataset, name)
    if limit is not None and streaming:
        source = [name, split, limit, options] + ([] if "/" in name else [_state(dataset, limit)])
        dataset = _stored(dataset, limit, source)
    elif limit is not None:
        dataset = dataset.select(range(min(limit, len(dataset))))
    if not len(dataset):
        raise ReIDError(f"{name} has no images in its split {split!r}: check where it was loaded from")
    labels = None if label is None else np.asarray(dataset.with_format("numpy")[label])
    rows = draw_rows(len(dataset), labels, share=share, per_class=per_class, seed=seed)
    return _finished(dataset if len(rows) == len(dataset) else dataset.select(rows), label)


def draw_rows(
    count: int, labels: np.ndarray | None, *, share: float = 1.0, per_class: int | None = None, seed: int = 0
) -> np.ndarray:
    """Rows of a part of the images, drawn at random by the seed, sorted.

    Args:
        labels: classes (count,), of each of which as large a share is taken, at least one image.
        per_class: images of each class in place of a share, or all where it has fewer.

    Raises:
        ValueError: if images per class are asked for and there are no classes.
    """
    if per_class is not None and labels is None:
        raise ReIDError("these images have no classes to take so many of each: give a share instead")
    rng, rows = np.random.default_rng([seed, count]), np.arange(count)
    groups = [rows] if labels is None else [np.flatnonzero(labels == label) for label in np.unique(labels)]
    drawn = [rng.permutation(group)[: per_class or max(1, round(share * len(group)))] for group in groups]
    return np.sort(np.concatenate(drawn))


def _split(splits: Any, split: str, name: str) -> Any:
    if split not in splits:
        raise ReIDError(f"{name} has no split {split!r}, only {', '.join(splits)}")
    return splits[split]


def _columns(dataset: Any, name: str) -> tuple[Any, str | None]:
    """The data set with the columns that are of use, the images' called "image"; and the column of classes."""
    from datasets import ClassLabel, Image

    if dataset.features is None:
        dataset = resolve_features(dataset)  # of a stream that says what it holds only when it is read
    features = dataset.features
    images = [column for column, feature in features.items() if isinstance(feature, Image)]
    if not images:
        raise ReIDError(f"{name} has no column of images, only {', '.join(features)}")
    classes = (column for column, feature in features.items() if isinstance(feature, ClassLabel) and column != "camid")
    label = next(classes, None)
    kinds = {"camid": "int", "path": "string"} if label else {"pid": "int", "camid": "int", "path": "string"}
    same = [column for column, kind in kinds.items() if _holds(features.get(column), kind)]
    dataset = dataset.select_columns([images[0], *([label] if label else []), *same])
    return (dataset if images[0] == "image" else dataset.rename_column(images[0], "image")), label


def _holds(feature: Any, kind: str) -> bool:
    return kind in str(getattr(feature, "dtype", ""))  # of uint8 or int64, of string or large_string


def _finished(dataset: "datasets.Dataset", label: str | None) -> "datasets.Dataset":
    """The columns of a re-identification set, made up where they are missing."""
    if label not in (None, "pid"):
        dataset = dataset.add_column("pid", np.asarray(dataset.with_format("numpy")[label], np.int64))
        dataset = dataset.remove_columns(label)
    for column in ("pid", "camid"):
        if column not in dataset.column_names:
            dataset = dataset.add_column(column, np.full(len(dataset), UNLABELLED))
    if "path" not in dataset.column_names:
        dataset = dataset.add_column("path", [f"{number:09d}" for number in range(len(dataset))])
    return dataset


def _state(stream: Any, limit: int) -> str:
    """Digest of a local stream's first images: of their bytes, or of place, size and time of their files."""
    from datasets import Image

    digest = hashlib.blake2b(digest_size=16)
    for row in stream.cast_column("image", Image(decode=False)).take(limit):
        image = row.pop("image")
        digest.update(repr(sorted(row.items())).encode())
        if image["bytes"] is None:
            stat = os.stat(image["path"])
            digest.update(f"{os.path.abspath(image['path'])} {stat.st_size} {stat.st_mtime_ns}".encode())
        else:
            digest.update(image["bytes"])
    return digest.hexdigest()


def _stored(stream: Any, limit: int, key: list) -> "datasets.Dataset":
    """The first images of a stream, encoded as they came, in the cache of `datasets`."""
    import fsspec
    from datasets import Dataset, Image
    from datasets.fingerprint import Hasher

    features = stream.features

    def rows() -> Iterator[dict[str, Any]]:
        for row in stream.cast_column("image", Image(decode=False)).take(limit):
            image = row["image"] or {"bytes": None, "path": None}  # a row without an image
            if image["bytes"] is None and "://" in (image["path"] or ""):
                with fsspec.open(image["path"], "rb") as file:
                    image = {"bytes": file.read(), "path": None}
            yield {**row, "image": image if any(image.values()) else None}

    return Dataset.from_generator(rows, features=features, fingerprint=Hasher.hash(key))
