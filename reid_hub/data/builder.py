"""The `datasets` builder of every data set: Arrow cache, streaming, metadata for the Hub."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets

from reid_hub.data.records import JUNK, DatasetSpec, Record, Scan
from reid_hub.errors import MissingError, ReIDError

REID_FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "pid": datasets.Value("int64"),
        "camid": datasets.Value("int64"),
        "path": datasets.Value("string"),
    }
)

# Part of every fingerprint: increase it when the same files give different rows.
_LAYOUT_VERSION = 1
# Records per shard, the unit that streaming shuffles and assigns to workers.
_SHARD = 256


class ReIDBuilder(datasets.GeneratorBasedBuilder):
    """Builds the rows of a `Scan`. The cache is keyed by `fingerprint(...)`, never by a folder name."""

    VERSION = datasets.Version("1.0.0")

    def __init__(self, spec: DatasetSpec, scan: Scan, options: Mapping[str, Any], cache_dir: str | None = None):
        self._scan = scan
        info = datasets.DatasetInfo(
            description=f"{spec.title}. {spec.notes}".strip(),
            citation=spec.citation,
            homepage=spec.homepage,
            license=spec.licence,
            features=features(scan.classes),
        )
        digest = fingerprint(spec, scan, options)
        super().__init__(cache_dir=cache_dir, dataset_name=spec.name, hash=digest, info=info)

    def __getstate__(self) -> dict[str, Any]:
        # Streaming workers receive their shards of records and do not need all of them.
        return {**super().__getstate__(), "_scan": replace(self._scan, splits={})}

    def _split_generators(self, dl_manager) -> list[datasets.SplitGenerator]:
        splits = self._scan.draw() if self._scan.draw else self._scan.splits
        return [
            # The library splits lists into shards.
            datasets.SplitGenerator(split, {"shards": [rows[i : i + _SHARD] for i in range(0, len(rows), _SHARD)]})
            for split, rows in splits.items()
        ]

    def _generate_examples(self, shards: list[Sequence]):
        scan = self._scan
        for shard in shards:
            if scan.draw:
                for row in shard:
                    # Given a path, the library would prefer a file of that name in the working directory to the bytes.
                    yield row["path"], {**row, "image": {"bytes": row["image"]["bytes"], "path": None}}
                continue
            for record, image in zip(shard, scan.read(scan.root, shard), strict=True):
                yield record.key, _row(record, image, scan.classes)


def features(classes: Sequence[str] | None) -> datasets.Features:
    """Columns of a re-identification data set, or of a classification data set if there are classes."""
    if classes is None:
        return REID_FEATURES
    return datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(classes))})


def _row(record: Record, image: Any, classes: Sequence[str] | None) -> dict[str, Any]:
    if classes is not None:
        return {"image": image, "label": record.pid}
    return {"image": image, "pid": record.pid, "camid": record.camid, "path": record.key}


def usable(scan: Scan) -> Scan:
    """Remove junk from all splits and number the training identities 0..C-1 in sorted order.

    Distractors stay in the gallery. A training split without labels (all -1) is not changed.
    """
    if scan.classes is not None or scan.draw:
        return scan
    splits = {split: list(records) for split, records in scan.splits.items()}
    for split, records in splits.items():
        labelled = [record for record in records if record.pid != JUNK]
        if split != "train" or labelled:
            splits[split] = labelled
    pids = {record.pid for record in splits.get("train", [])} - {JUNK}
    numbers = {pid: number for number, pid in enumerate(sorted(pids))}
    if numbers:
        splits["train"] = [record._replace(pid=numbers[record.pid]) for record in splits["train"]]
    return replace(scan, splits=splits)


def fingerprint(spec: DatasetSpec, scan: Scan, options: Mapping[str, Any]) -> str:
    """Digest of everything the rows depend on: records, options, and size and modification time of the image files.

    Raises:
        FileNotFoundError: if a listed file is missing.
        ValueError: if files are empty.
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr((_LAYOUT_VERSION, spec.name, str(scan.root), sorted(options.items()), scan.classes)).encode())
    for split, records in scan.splits.items():
        digest.update(split.encode())
        for record in records:
            digest.update(repr(tuple(record)).encode())
    for path, stat in _stats(scan).items():
        digest.update(f"{path} {stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()


def _stats(scan: Scan) -> dict[str, os.stat_result]:
    if scan.sources is not None:
        return {str(path): path.stat() for path in scan.sources}
    paths = dict.fromkeys(record.path for records in scan.splits.values() for record in records)
    stats, missing = {}, []
    for path in paths:
        try:
            stats[path] = os.stat(os.path.join(scan.root, path))
        except FileNotFoundError:
            missing.append(path)
    if missing:
        raise MissingError(
            f"{len(missing)} listed images are not in {scan.root}: {_some(missing)}; correct the list or unpack again"
        )
    empty = [path for path, stat in stats.items() if stat.st_size == 0]
    if empty and not scan.tolerant:
        raise ReIDError(
            f"{len(empty)} images in {scan.root} are empty (0 bytes): {_some(empty)}; copy them again or remove them"
        )
    return stats


def _some(paths: Sequence[str]) -> str:
    return ", ".join(paths[:5]) + (", ..." if len(paths) > 5 else "")


def build(spec: DatasetSpec, scan: Scan, options: Mapping[str, Any], cache_dir: str | Path | None, streaming: bool):
    """Build the splits as a `DatasetDict` in the Arrow cache, or stream them from the files."""
    builder = ReIDBuilder(spec, usable(scan), options, cache_dir=None if cache_dir is None else str(cache_dir))
    if streaming:
        return builder.as_streaming_dataset()
    try:
        builder.download_and_prepare()
    except datasets.exceptions.DatasetGenerationError as error:
        raise (error.__cause__ or error) from None  # our own error says what to do; the library's hides it
    return builder.as_dataset()
