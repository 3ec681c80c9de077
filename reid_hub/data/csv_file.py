"""Your own images, listed in a csv file."""

import csv
from pathlib import Path

from reid_hub.data.layouts import check_pairs, number_pids, number_values, path_below, split_by_identity
from reid_hub.data.records import NO_CAMERA, DatasetSpec, Record, Scan
from reid_hub.errors import MissingError, ReIDError

SPLITS = ("train", "query", "gallery")
COLUMNS = ("path", "pid", "camid", "split")


def scan(data_dir: Path, *, root: str | Path | None = None, seed: int = 0) -> Scan:
    """Read a csv file with the columns path and pid, and optionally camid and split.

    Args:
        root: folder that the paths are relative to and must stay in (default: the folder of the csv file).
        seed: seed of the random split, if there is no column split.
    """
    file = Path(data_dir).expanduser().resolve()
    if not file.is_file():
        raise MissingError(f"the data set 'csv' needs the path of a csv file as data_dir, got {file}")
    base = Path(root).expanduser().resolve() if root else file.parent
    rows = _rows(file)
    pids = number_pids([row["pid"] for row in rows])
    camids = _camids([row.get("camid") or "" for row in rows])
    records = [Record(path_below(base, row["path"]), pids[row["pid"]], camids[row.get("camid") or ""]) for row in rows]
    if "split" not in rows[0]:
        return Scan(base, split_by_identity(records, seed))
    splits: dict[str, list[Record]] = {}
    for split in SPLITS:
        members = [record for record, row in zip(records, rows, strict=True) if row["split"] == split]
        if members:
            splits[split] = members
    check_pairs(splits, file, {split: f"rows with split {split}" for split in SPLITS})
    return Scan(base, splits)


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream, skipinitialspace=True)
        header = [name.strip() for name in reader.fieldnames or []]
        reader.fieldnames = header
        if not {"path", "pid"} <= set(header) or not set(header) <= set(COLUMNS):
            raise ReIDError(f"{file} must have the columns path, pid and may have camid, split; got {header}")
        rows = [{key: (value or "").strip() for key, value in row.items() if key} for row in reader]
    if not rows:
        raise ReIDError(f"{file} lists no images; add a row per image below the header")
    for number, row in enumerate(rows, start=2):
        if not row["path"] or not row["pid"]:
            raise ReIDError(f"{file}, line {number}: path and pid must not be empty, got {row}")
        if "split" in row and row["split"] not in SPLITS:
            raise ReIDError(f"{file}, line {number}: split must be train, query or gallery, got {row['split']!r}")
    return rows


def _camids(values: list[str]) -> dict[str, int]:
    """Keep camera ids if all are whole numbers, else number them from 0; an empty cell is an unknown camera."""
    known = [value for value in values if value]
    if all(value.lstrip("-").isdigit() for value in known):
        return {"": NO_CAMERA, **{value: int(value) for value in known}}
    return {"": NO_CAMERA, **number_values(known)}


SPEC = DatasetSpec(
    name="csv",
    title="Your own images listed in a csv file",
    homepage="",
    licence="yours to state",
    citation="",
    layout="a csv file with the columns path, pid and, if known, camid and split (train, query or gallery)",
    scan=scan,
    notes="Without a column split, half of the people, drawn with seed, are for training and the others for testing. "
    "Paths are relative to the folder of the csv file, or to root=. pids and camids that are whole numbers are kept, "
    "names are numbered.",
    redistributable=True,
)
