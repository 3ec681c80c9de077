"""Caltech-256 for transfer learning: the first 60 images of every class are for training."""

from pathlib import Path

from reid_hub.data.layouts import find_root, list_images
from reid_hub.data.records import Counts, DatasetSpec, Record, Scan
from reid_hub.errors import ReIDError


def scan(data_dir: Path, *, train_per_class: int = 60) -> Scan:
    """Read 001.ak47/001_0001.jpg: the first `train_per_class` images of each class by name train, the rest test."""
    if not isinstance(train_per_class, int) or train_per_class < 1:
        raise ReIDError(f"train_per_class must be a number, at least 1, got {train_per_class!r}")
    root = find_root(data_dir, ("256_ObjectCategories", "caltech256/256_ObjectCategories"), ["001.ak47"])
    folders = sorted(path.name for path in root.iterdir() if path.is_dir() and path.name[:3].isdigit())
    splits: dict[str, list[Record]] = {"train": [], "test": []}
    for label, folder in enumerate(folders):
        records = [Record(f"{folder}/{name}", label) for name in list_images(root / folder)]
        splits["train"] += records[:train_per_class]
        splits["test"] += records[train_per_class:]
    if not splits["test"]:
        raise ReIDError(
            f"no class in {root} has more than {train_per_class} images, so none is left to test on: give a smaller "
            "train_per_class"
        )
    return Scan(root, splits, classes=[folder.partition(".")[2] or folder for folder in folders])


SPEC = DatasetSpec(
    name="caltech256",
    title="Caltech-256",
    homepage="https://data.caltech.edu/records/nyy15-4j048",
    licence="CC BY 4.0; the images belong to those who took them",
    citation="""@techreport{griffin2007caltech,
  title = {{Caltech-256} Object Category Dataset},
  author = {Griffin, Gregory and Holub, Alex and Perona, Pietro},
  institution = {California Institute of Technology}, year = {2007}
}""",
    layout="001.ak47/001_0001.jpg, ..., 257.clutter/",
    scan=scan,
    # 257 classes, including clutter.
    counts={"train": Counts(257 * 60, 257), "test": Counts(30_607 - 257 * 60, 257)},
    notes="Columns image and label; splits train and test. train_per_class: number of training images per class.",
)
