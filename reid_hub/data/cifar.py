"""CIFAR-10 and CIFAR-100, as the original Python pickles or as folders of images."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from reid_hub.data.class_folders import scan_folders
from reid_hub.data.layouts import find_root
from reid_hub.data.records import Counts, DatasetSpec, Record, Scan
from reid_hub.data.safe_pickle import load_plain_pickle
from reid_hub.errors import ReIDError

# Per data set: folder, files of each split, and (file of class names, key of the labels, key of the class names).
FILES = {
    "cifar10": (
        "cifar-10-batches-py",
        {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]},
        ("batches.meta", "labels", "label_names"),
    ),
    "cifar100": (
        "cifar-100-python",
        {"train": ["train"], "test": ["test"]},
        ("meta", "fine_labels", "fine_label_names"),
    ),
}


def scan(data_dir: Path, name: str) -> Scan:
    """Read the pickles, or train/CLASS/*.jpg and test/CLASS/*.jpg."""
    folder, files, (meta, labels, names) = FILES[name]
    root = find_root(data_dir, (folder, name), any_of=[meta, "train"])
    if (root / "train").is_dir() and not (root / meta).is_file():
        root = find_root(data_dir, (name,), ["train", "test"])
        return scan_folders(root, {"train": "train", "test": "test"})
    root = find_root(root, (), [meta, *files["train"], *files["test"]])
    classes = _entry(root / meta, names)
    splits: dict[str, list[Record]] = {split: [] for split in files}
    for split, parts in files.items():
        for part in parts:
            numbers, pixels = _entry(root / part, labels), _entry(root / part, "data")
            if np.shape(pixels) != (len(numbers), 3072) or not set(numbers) <= set(range(len(classes))):
                raise ReIDError(f"{root / part} must hold rows of 3072 bytes with a label each; unpack again")
            splits[split] += [Record(f"{part}#{row}", int(label)) for row, label in enumerate(numbers)]
    sources = [root / part for parts in files.values() for part in parts]
    return Scan(root, splits, read=_read, sources=[root / meta, *sources], classes=[str(name) for name in classes])


def _entry(path: Path, key: str) -> Any:
    content = _load(path, path.stat().st_mtime_ns)
    if not isinstance(content, dict) or key not in content:
        raise ReIDError(f"{path} is not a CIFAR file: it has no {key!r}; unpack it again")
    return content[key]


@lru_cache(maxsize=1)  # consecutive rows come from the same file
def _load(path: Path, changed: int) -> Any:
    return load_plain_pickle(path)


def _read(root: Path, records: Sequence[Record]) -> Iterator[dict]:
    for record in records:
        part, row = record.path.split("#")
        pixels = np.asarray(_entry(root / part, "data")[int(row)], dtype=np.uint8).reshape(3, 32, 32)
        file = BytesIO()
        Image.fromarray(pixels.transpose(1, 2, 0)).save(file, "PNG")
        yield {"bytes": file.getvalue(), "path": None}


def _spec(name: str, title: str, num_classes: int) -> DatasetSpec:
    return DatasetSpec(
        name=name,
        title=title,
        homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
        licence="no licence stated by its authors; used for research",
        citation="""@techreport{krizhevsky2009learning,
  title = {Learning Multiple Layers of Features from Tiny Images},
  author = {Krizhevsky, Alex},
  institution = {University of Toronto}, year = {2009}
}""",
        layout=f"{FILES[name][0]}/ as unpacked, or train/CLASS/*.jpg and test/CLASS/*.jpg",
        scan=lambda data_dir: scan(data_dir, name),
        counts={"train": Counts(50_000, num_classes), "test": Counts(10_000, num_classes)},
        notes="Columns image and label; splits train and test.",
    )


CIFAR10 = _spec("cifar10", "CIFAR-10", 10)
CIFAR100 = _spec("cifar100", "CIFAR-100", 100)
