"""Your own images: one folder per person."""

import re
from collections.abc import Sequence
from pathlib import Path

from reid_hub.data.layouts import (
    check_pairs,
    list_images,
    number_pids,
    number_values,
    split_by_identity,
    wrong_layout,
)
from reid_hub.data.records import NO_CAMERA, DatasetSpec, Record, Scan
from reid_hub.errors import ReIDError

SPLITS = {"train": "train", "query": "query", "gallery": "gallery"}


def scan(data_dir: Path, *, camera: str | None = None, seed: int = 0) -> Scan:
    """Read ROOT/PERSON/*.jpg or ROOT/{train,query,gallery}/PERSON/*.jpg.

    Args:
        camera: a regular expression whose single group matches the camera in an image's path below the person's
            folder, e.g. r"c(\\d+)"; the matched values are sorted and numbered from 0.
        seed: seed of the random split, if there are no split folders.
    """
    root = Path(data_dir).expanduser().resolve()
    if not root.is_dir():
        raise wrong_layout(root, (), ["one folder per person"])
    found = [split for split in SPLITS if (root / split).is_dir()]
    check_pairs(found, root, SPLITS)
    rows = [row for split in found or [""] for row in _rows(root, split)]
    pids = number_pids([person for _, person, _ in rows])
    camids = _cameras([rest for _, _, rest in rows], camera)
    records = [Record(path, pids[person], camid) for (path, person, _), camid in zip(rows, camids, strict=True)]
    if not found:
        return Scan(root, split_by_identity(records, seed))
    return Scan(root, {split: [r for r in records if r.path.startswith(f"{split}/")] for split in found})


def _rows(root: Path, split: str) -> list[tuple[str, str, str]]:
    """(path below the root, person, path below the person's folder) of every image of a split."""
    rows = []
    for path in list_images(root / split, recursive=True):
        person, _, rest = path.partition("/")
        if not rest:
            raise ReIDError(f"{root / split / path} lies in no person's folder; move it to {root / split}/PERSON/")
        rows.append((f"{split}/{path}" if split else path, person, rest))
    return rows


def _cameras(names: Sequence[str], camera: str | None) -> list[int]:
    if camera is None:
        return [NO_CAMERA] * len(names)
    try:
        pattern = re.compile(camera)
    except re.error as error:
        raise ReIDError(f"camera must be a regular expression, got {camera!r}: {error}") from error
    if pattern.groups != 1:
        raise ReIDError(f"camera must have exactly one group in parentheses, like 'c(\\d+)', got {camera!r}")
    values = []
    for name in names:
        match = pattern.search(name)
        if match is None or match[1] is None:
            raise ReIDError(f"camera={camera!r} finds no camera in {name!r}; change the expression or leave it out")
        values.append(match[1])
    numbers = number_values(values)
    return [numbers[value] for value in values]


SPEC = DatasetSpec(
    name="image_folder",
    title="Your own images in folders",
    homepage="",
    licence="yours to state",
    citation="",
    layout="PERSON/*.jpg, or train/PERSON/*.jpg, query/PERSON/*.jpg and gallery/PERSON/*.jpg",
    scan=scan,
    notes="Without split folders, half of the people, drawn with seed, are for training and the others for testing. "
    "Folder names are the pids if all are whole numbers; otherwise they are numbered from 1. "
    "camera=r'c(\\d+)' reads cameras from file names.",
    redistributable=True,
)
