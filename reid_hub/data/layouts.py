"""Reading folders of images: finding the root, listing, parsing file names, splitting by identity."""

import os
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from reid_hub.data.records import JUNK, NO_CAMERA, Record, Scan
from reid_hub.errors import MissingError, ReIDError
from reid_hub.files import inside

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
SPLIT_FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}


def find_root(
    data_dir: str | Path, nested: Sequence[str], required: Sequence[str] = (), any_of: Sequence[str] = ()
) -> Path:
    """Return `data_dir`, or the first of the `nested` folders in it, that has the layout.

    A folder has the layout if it holds all `required` entries and, if given, at least one of `any_of`.

    Raises:
        FileNotFoundError: if none does; says what was expected and what was found.
    """
    data_dir = Path(data_dir).expanduser().resolve()
    for root in (data_dir, *(data_dir / name for name in nested)):
        complete = all((root / entry).exists() for entry in required)
        if complete and (not any_of or any((root / entry).exists() for entry in any_of)):
            return root
    raise wrong_layout(data_dir, nested, [*required, *any_of])


def wrong_layout(data_dir: Path, nested: Sequence[str], expected: Sequence[str]) -> FileNotFoundError:
    """The error for a folder without the expected layout; says what was expected and what was found."""
    if not data_dir.is_dir():
        found = "which is a file" if data_dir.exists() else "which does not exist"
    else:
        entries = sorted(os.listdir(data_dir))
        shown = ", ".join(entries[:10]) + (", ..." if len(entries) > 10 else "")
        found = f"which holds {shown}" if entries else "which is empty"
    below = f" (or in a folder {' or '.join(nested)} there)" if nested else ""
    return FileNotFoundError(
        f"expected {', '.join(expected)} in {data_dir}{below}, {found}; give the folder the data set was unpacked to"
    )


def list_images(folder: Path, recursive: bool = False) -> list[str]:
    """Sorted names of the images in a folder, or their POSIX paths below it if `recursive`.

    Hidden files are skipped: macOS adds "._name.jpg" for every file it unpacks.

    Raises:
        FileNotFoundError: if there are no images.
    """
    # Plain strings: a pre-training set has millions of files.
    names = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        prefix = "" if parent == str(folder) else f"{Path(parent).relative_to(folder).as_posix()}/"
        names += [prefix + name for name in files if not name.startswith(".")]
        folders[:] = [name for name in folders if recursive and not name.startswith(".")]
    images = sorted(name for name in names if os.path.splitext(name)[1].lower() in SUFFIXES)
    if not images:
        raise MissingError(f"no images ({', '.join(sorted(SUFFIXES))}) in {folder}; was it unpacked completely?")
    return images


MARKET_NAME = re.compile(r"^(-?\d+)_c(\d+)")


def scan_market_layout(data_dir: str | Path, nested: Sequence[str]) -> Scan:
    """Read a data set in the layout of Market-1501: whichever of bounding_box_train, query, bounding_box_test exist.

    File names begin with person and camera, `0002_c1s1_000451_03.jpg`. Cameras count from 1 in file names, from 0 here.

    Raises:
        FileNotFoundError: if there is neither a training set nor a query with its gallery.
        ValueError: if a file name does not follow this rule.
    """
    root = find_root(data_dir, nested, any_of=list(SPLIT_FOLDERS.values()))
    folders = {split: folder for split, folder in SPLIT_FOLDERS.items() if (root / folder).is_dir()}
    check_pairs(folders, root, SPLIT_FOLDERS)
    splits = {}
    for split, folder in folders.items():
        splits[split] = [_market_record(root, folder, name) for name in list_images(root / folder)]
    return Scan(root, splits)


def _market_record(root: Path, folder: str, name: str) -> Record:
    match = MARKET_NAME.match(name)
    if match is None:
        raise ReIDError(
            f"{root / folder / name} does not begin with person and camera like 0002_c1s1_000451_03.jpg; "
            "for your own images use the data set 'image_folder' or 'csv'"
        )
    return Record(f"{folder}/{name}", int(match[1]), int(match[2]) - 1)


def path_below(base: Path, path: str) -> str:
    """Return a listed path relative to the resolved folder `base`.

    Raises:
        ValueError: if the path is outside `base`.
    """
    # Resolving every path of a long list takes seconds; only such a path can leave the folder.
    if ".." in path or os.path.isabs(path):
        return inside(base, path).relative_to(base).as_posix()
    return path


def check_pairs(found: Collection[str], root: Path, names: Mapping[str, str]) -> None:
    """Check that query and gallery are both there, or both missing; `names` gives the folder or list of each split.

    Raises:
        FileNotFoundError: if only one of them is there; names the missing one.
    """
    if ("query" in found) != ("gallery" in found):
        missing = names["gallery" if "query" in found else "query"]
        raise MissingError(f"{root} lacks {missing}: query and gallery are only useful together; add the missing one")


def number_values(values: Sequence[str]) -> dict[str, int]:
    """Number distinct values from 0, in numeric order if all are whole numbers, in text order otherwise."""
    distinct = set(values)
    whole = all(re.fullmatch(r"-?\d+", v) for v in distinct)
    return {value: number for number, value in enumerate(sorted(distinct, key=int if whole else str))}


def number_pids(names: Sequence[str]) -> dict[str, int]:
    """Map identity names to pids: kept if all are whole numbers (-1 junk, 0 distractor), else numbered from 1."""
    distinct = sorted(set(names))
    if all(re.fullmatch(r"-?\d+", name) for name in distinct):
        return {name: int(name) for name in distinct}
    return {name: number for number, name in enumerate(distinct, start=1)}


def split_by_identity(records: Sequence[Record], seed: int) -> dict[str, list[Record]]:
    """Split images that have no official split, so that no person is in both training and test.

    Half of the identities, drawn with `seed`, are used for training. For each of the others one image per camera
    becomes a query, as long as every query keeps a true match (from another camera, where cameras are known); the
    remaining images form the gallery. Identities with a single image or a single known camera are in the gallery only.
    Junk does not count as an identity.

    Raises:
        ValueError: if there are fewer than four identities (two to train, two to test), or no query with a true match.
    """
    by_pid = defaultdict(list)
    for record in records:
        by_pid[record.pid].append(record)
    junk = by_pid.pop(JUNK, [])
    if len(by_pid) < 4:
        raise ReIDError(
            f"a split by identity needs at least 4 identities (2 to train, 2 to test), got {len(by_pid)}; "
            "add people, or make the split yourself with folders (or a csv column) train, query and gallery"
        )
    rng = np.random.default_rng(seed)
    order = rng.permutation(sorted(by_pid))
    train_pids = set(order[: (len(order) + 1) // 2].tolist())
    splits = {"train": [], "query": [], "gallery": list(junk)}
    for pid in sorted(by_pid):
        images = by_pid[pid]
        if pid in train_pids:
            splits["train"] += images
            continue
        queries = _draw_queries(images, rng)
        splits["query"] += [images[i] for i in sorted(queries)]
        splits["gallery"] += [image for i, image in enumerate(images) if i not in queries]
    if not splits["query"]:
        raise ReIDError("no test identity has images to match: each has a single image or a single camera; add images")
    return splits


def _draw_queries(images: Sequence[Record], rng: np.random.Generator) -> set[int]:
    by_camera = defaultdict(list)
    for index, record in enumerate(images):
        by_camera[record.camid].append(index)
    queries: set[int] = set()
    for indices in by_camera.values():
        drawn = queries | {int(rng.choice(indices))}
        left = {record.camid for i, record in enumerate(images) if i not in drawn}
        # A query's match must be in the gallery, and from another camera where its own camera is known.
        if all(left - {images[i].camid} or (left and images[i].camid == NO_CAMERA) for i in drawn):
            queries = drawn
    return queries
