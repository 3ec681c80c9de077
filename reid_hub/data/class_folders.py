"""Your own images for classification: one folder per class, in train/ and test/ (or val/)."""

from pathlib import Path

from reid_hub.data.layouts import list_images, wrong_layout
from reid_hub.data.records import DatasetSpec, Record, Scan
from reid_hub.errors import ReIDError

# Accepted names of the test folder, in order of preference.
TEST_FOLDERS = ("test", "val", "valid", "validation")


def scan(data_dir: Path) -> Scan:
    """Read ROOT/train/CLASS/*.jpg and ROOT/{test,val}/CLASS/*.jpg; classes are numbered by sorted name."""
    root = Path(data_dir).expanduser().resolve()
    test = next((name for name in TEST_FOLDERS if (root / name).is_dir()), None)
    if test is None or not (root / "train").is_dir():
        raise wrong_layout(root, (), ["train", " or ".join(TEST_FOLDERS)])
    return scan_folders(root, {"train": "train", "test": test})


def scan_folders(root: Path, folders: dict[str, str]) -> Scan:
    """Read CLASS/**/*.jpg in the folder of each split.

    Raises:
        ValueError: if an image is in no class folder, or a class is missing from the training folder.
    """
    classes = sorted(path.name for path in (root / folders["train"]).iterdir() if path.is_dir() and path.name[0] != ".")
    splits = {}
    for split, folder in folders.items():
        paths = list_images(root / folder, recursive=True)
        loose = [path for path in paths if "/" not in path]
        if loose:
            raise ReIDError(f"{root / folder / loose[0]} lies in no class's folder; move it to {root / folder}/CLASS/")
        unknown = sorted({path.partition("/")[0] for path in paths} - set(classes))
        if unknown:
            raise ReIDError(f"{root / folder} has classes that {root / folders['train']} lacks: {unknown}")
        numbers = {name: number for number, name in enumerate(classes)}
        splits[split] = [Record(f"{folder}/{path}", numbers[path.partition("/")[0]]) for path in paths]
    return Scan(root, splits, classes=classes)


SPEC = DatasetSpec(
    name="class_folder",
    title="Your own images in class folders",
    homepage="",
    licence="yours to state",
    citation="",
    layout="train/CLASS/*.jpg and test/CLASS/*.jpg (or val/)",
    scan=scan,
    notes="Columns image and label; splits train and test.",
    redistributable=True,
)
