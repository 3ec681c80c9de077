"""CIFAR-10 and CIFAR-100 as folders of pictures, for the general-classification experiments."""

from pathlib import Path

from reid_hub.data.layouts import find_root, list_images
from reid_hub.data.records import Counts, DatasetSpec, Record, Scan


def scan(data_dir: Path, name: str) -> Scan:
    root = find_root(data_dir, (name,), ["train", "test"])
    classes = sorted(folder.name for folder in (root / "train").iterdir() if folder.is_dir())
    splits = {}
    for split in ("train", "test"):
        unknown = {folder.name for folder in (root / split).iterdir() if folder.is_dir()} - set(classes)
        if unknown:
            raise ValueError(f"{root / split} has classes that {root / 'train'} lacks: {sorted(unknown)}; unpack again")
        paths = list_images(root / split, recursive=True)
        splits[split] = [Record(f"{split}/{path}", classes.index(path.split("/")[0])) for path in paths]
    return Scan(root, splits, classes=classes)


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
        layout="train/CLASS/*.jpg and test/CLASS/*.jpg",
        scan=lambda data_dir: scan(data_dir, name),
        counts={"train": Counts(50_000, num_classes), "test": Counts(10_000, num_classes)},
        notes="Columns image and label; splits train and test.",
    )


CIFAR10 = _spec("cifar10", "CIFAR-10", 10)
CIFAR100 = _spec("cifar100", "CIFAR-100", 100)
