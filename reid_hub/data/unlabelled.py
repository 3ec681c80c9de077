"""Images to train on without labels: from our data sets, any folder, any data set on the Hub, or a stream."""

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
    """Load one split with the columns image, path, pid and camid; pid and camid are -1 where there are no labels.

    Args:
        name: a name of `load_reid_dataset` ("luperson" reads any folder of images), or "namespace/name" of a data set
            on the Hub with an image column. Classes of a Hub data set become pids. Without classes its integer columns
            pid and camid are kept; columns of other types are dropped. Labels are used only to sample per class.
        data_dir: folder of an unpacked data set (not for the Hub).
        share: share of the images to sample with `seed`; stratified by class where there are classes.
        per_class: number of images per class, instead of a share. 128 is the paper's tenth of ImageNet (KDEP,
            arXiv:2203.05180).
        limit: use only the first `limit` images; applied before sampling.
        streaming: read from a stream and keep the first `limit` images on disk, since training visits each many times.
        options: options of the data set; on the Hub those of `datasets.load_dataset`, such as `name`, its
            configuration.

    Raises:
        ValueError: for an unknown name, a `data_dir` with a Hub data set, a share outside (0, 1], a `limit` or
            `per_class` below 1, `per_class` without classes, or an empty split.
        FileNotFoundError: see `load_reid_dataset`.
    """
    if not 0 < share <= 1:
        raise ReIDError(f"the share of the images must be in (0, 1], got {share}")
    for what, number in (("limit", limit), ("per_class", per_class)):
        if number is not None and number < 1:
            raise ReIDError(f"{what} must be at least 1 image, got {number}")
    if streaming and limit is None:
        raise ReIDError("the length of a stream is unknown: give a limit, the number of images to keep")
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
    """Sample row numbers at random with `seed`; returns them sorted, (n,).

    Args:
        count: number of images to sample from.
        labels: classes (count,) to stratify by; at least one image per class is taken.
        per_class: number of images per class instead of a share; all images of classes that have fewer.

    Raises:
        ValueError: if `per_class` is given without labels.
    """
    if per_class is not None and labels is None:
        raise ReIDError("these images have no classes, which per_class needs: set share instead")
    rng, rows = np.random.default_rng([seed, count]), np.arange(count)
    groups = [rows] if labels is None else [np.flatnonzero(labels == label) for label in np.unique(labels)]
    drawn = [rng.permutation(group)[: per_class or max(1, round(share * len(group)))] for group in groups]
    return np.sort(np.concatenate(drawn))


def _split(splits: Any, split: str, name: str) -> Any:
    if split not in splits:
        raise ReIDError(f"{name} has no split {split!r}, only {', '.join(splits)}")
    return splits[split]


def _columns(dataset: Any, name: str) -> tuple[Any, str | None]:
    """Select the useful columns, rename the image column to "image"; also returns the name of the class column."""
    from datasets import ClassLabel, Image

    if dataset.features is None:
        dataset = resolve_features(dataset)  # some streams know their features only after reading an example
    features = dataset.features
    images = [column for column, feature in features.items() if isinstance(feature, Image)]
    if not images:
        raise ReIDError(f"{name} has no image column, only {', '.join(features)}")
    classes = (column for column, feature in features.items() if isinstance(feature, ClassLabel) and column != "camid")
    label = next(classes, None)
    kinds = {"camid": "int", "path": "string"} if label else {"pid": "int", "camid": "int", "path": "string"}
    same = [column for column, kind in kinds.items() if _holds(features.get(column), kind)]
    dataset = dataset.select_columns([images[0], *([label] if label else []), *same])
    return (dataset if images[0] == "image" else dataset.rename_column(images[0], "image")), label


def _holds(feature: Any, kind: str) -> bool:
    return kind in str(getattr(feature, "dtype", ""))  # matches uint8 and int64, string and large_string


def _finished(dataset: "datasets.Dataset", label: str | None) -> "datasets.Dataset":
    """Add the missing columns of a re-identification data set."""
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
    """Digest of the first images of a local stream: their bytes, or path, size and modification time of their files."""
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
    """Store the first images of a stream, still encoded, in the cache of `datasets`."""
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
