"""PRAI-1581: people seen by two drones."""

from pathlib import Path

from reid_hub.data.layouts import find_root, path_below
from reid_hub.data.records import Counts, DatasetSpec, Record, Scan
from reid_hub.data.safe_pickle import load_plain_pickle
from reid_hub.errors import ReIDError

NESTED = ("PRAI-1581", "prai1581", "PRAI")
KEYS = ("trainval_im_names", "test_im_names", "test_marks")


def scan(data_dir: Path) -> Scan:
    root = find_root(data_dir, NESTED, ["images", "partitions.pkl"])
    partitions = load_plain_pickle(root / "partitions.pkl")
    missing = [key for key in KEYS if key not in partitions] if isinstance(partitions, dict) else list(KEYS)
    if missing:
        raise ReIDError(f"{root / 'partitions.pkl'} lacks {', '.join(missing)}; get it from the data set's authors")
    train, test, marks = (partitions[key] for key in KEYS)
    if len(test) != len(marks):
        raise ReIDError(f"{root / 'partitions.pkl'} has {len(test)} test_im_names but {len(marks)} test_marks")
    base = (root / "images").resolve()
    tests = [_record(base, name) for name in test]
    splits = {
        "train": [_record(base, name) for name in train],
        "query": [record for record, mark in zip(tests, marks, strict=True) if mark == 0],
        "gallery": [record for record, mark in zip(tests, marks, strict=True) if mark == 1],
    }
    return Scan(base, splits)


def _record(base: Path, name: str) -> Record:
    path = path_below(base, str(name))
    try:
        pid, camera = path.rsplit("/", 1)[-1].split("_")[:2]
        return Record(path, int(pid), int(camera.split(".")[0]) - 1)
    except ValueError as error:
        raise ReIDError(f"image names must be like 0001_1_01.jpg (person, camera, number), got {name!r}") from error


SPEC = DatasetSpec(
    name="prai1581",
    title="PRAI-1581",
    homepage="https://github.com/stormyoung/PRAI-1581",
    licence="research only, on request to the authors",
    citation="""@article{zhang2021person,
  title = {Person Re-Identification in Aerial Imagery},
  author = {Zhang, Shizhou and Zhang, Qi and Yang, Yifei and Wei, Xing and Wang, Peng and Jiao, Bingliang and
            Zhang, Yanning},
  journal = {IEEE Transactions on Multimedia}, year = {2021}
}""",
    layout="images/ with files like 0001_1_01.jpg, and partitions.pkl",
    scan=scan,
    # The test set has 19,938 images of 799 identities; how many of them are queries was not published.
    counts={"train": Counts(19_523, 782), "query": Counts(None, 799), "gallery": Counts(None, 799)},
    notes="Two drones as cameras. Split of partitions.pkl: trainval_im_names, and test_im_names by test_marks "
    "(0 query, 1 gallery). Counts are those commonly quoted.",
)
