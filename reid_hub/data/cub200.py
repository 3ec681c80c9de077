"""Caltech-UCSD Birds 200-2011, by its official lists."""

from pathlib import Path

from reid_hub.data.layouts import find_root, path_below
from reid_hub.data.records import Counts, DatasetSpec, Record, Scan
from reid_hub.errors import ReIDError

LISTS = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")


def scan(data_dir: Path) -> Scan:
    """Read images/ by images.txt, image_class_labels.txt and train_test_split.txt, with lines "number value"."""
    root = find_root(data_dir, ("CUB_200_2011",), ["images", *LISTS])
    paths, labels, trains, names = (_read(root / name) for name in LISTS)
    if not paths.keys() == labels.keys() == trains.keys():
        raise ReIDError(f"{', '.join(LISTS[:3])} in {root} do not number the same images; unpack again")
    if not set(labels.values()) <= names.keys() or not set(trains.values()) <= {"0", "1"}:
        raise ReIDError(
            f"in {root} the labels of {LISTS[1]} must be numbers of {LISTS[3]}, and {LISTS[2]} 0 or 1; unpack again"
        )
    # "001.Black_footed_Albatross"; classes count from 1 in the lists, from 0 here.
    numbers = {number: row for row, number in enumerate(sorted(names, key=int))}
    classes = [names[number].partition(".")[2] or names[number] for number in numbers]
    splits: dict[str, list[Record]] = {"train": [], "test": []}
    for number, path in paths.items():
        record = Record(f"images/{path_below(root / 'images', path)}", numbers[labels[number]])
        splits["train" if trains[number] == "1" else "test"].append(record)
    return Scan(root, splits, classes=classes)


def _read(path: Path) -> dict[str, str]:
    lines = [line.split(maxsplit=1) for line in path.read_text().splitlines() if line.strip()]
    if any(len(line) != 2 or not line[0].isdigit() for line in lines):
        raise ReIDError(f"{path} must hold lines like '1 value': it is not a list of CUB-200-2011; unpack it again")
    return {number: value.strip() for number, value in lines}


SPEC = DatasetSpec(
    name="cub200",
    title="Caltech-UCSD Birds-200-2011",
    homepage="https://www.vision.caltech.edu/datasets/cub_200_2011/",
    licence="for non-commercial research and education",
    citation="""@techreport{wah2011caltech,
  title = {The {Caltech-UCSD} Birds-200-2011 Dataset},
  author = {Wah, Catherine and Branson, Steve and Welinder, Peter and Perona, Pietro and Belongie, Serge},
  institution = {California Institute of Technology}, number = {CNS-TR-2011-001}, year = {2011}
}""",
    layout="images/CLASS/*.jpg, images.txt, image_class_labels.txt, train_test_split.txt, classes.txt",
    scan=scan,
    counts={"train": Counts(5994, 200), "test": Counts(5794, 200)},
    notes="Columns image and label; splits train and test.",
)
