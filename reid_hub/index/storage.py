"""The folder of a saved index: immutable segments, and `manifest.json`, which lists those that are in use.

Saving writes new files under new names, then replaces the manifest atomically. A process that is killed before that
leaves the old index and unused files, which the next save removes. The manifest holds its own SHA-256 and those of the
small files; these hold the SHA-256 of every block of the large files.
"""

import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from reid_hub.errors import MissingError, ReIDError
from reid_hub.files import atomic_file, inside
from reid_hub.index.parts import Layout, Part, Segment, columns_of
from reid_hub.index.segment_file import SegmentFile, write_segment

VERSION = 2
FORMAT = "reid_hub gallery index"
MANIFEST, LOCK = "manifest.json", ".lock"
OURS = re.compile(
    r"manifest\.json|\.manifest\.json\..*|\.lock|segment-\d{6,}\.(safetensors|sha256)|removed-\d{6,}\.int64"
)
KEYS = {
    "format": str, "version": int, "dim": int, "codec": str, "metric": str, "options": dict, "count": int,
    "segments": list, "removed": dict | None, "fingerprint": str | None,
}  # fmt: skip
ENTRY = {"name": str, "rows": int, "bytes": int, "sums": str}
AGAIN = "copy the folder again or build the index again"


@dataclass
class Stored:
    """Contents of a folder when it was last read or written: the manifest, and the segments in order."""

    folder: Path
    manifest: dict[str, Any]
    segments: list[Segment] = field(default_factory=list)


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Read and check the manifest.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is no manifest, damaged, of another version, or names files outside the folder.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise MissingError(f"no index in {folder}: {MANIFEST} is missing; write one with GalleryIndex.save")
    try:
        manifest = json.loads(path.read_bytes())
    except ValueError as error:
        raise ReIDError(f"{path} is not readable as JSON ({error}): the file was cut short or changed") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ReIDError(f"{path} is not the manifest of a gallery index: 'format' must be {FORMAT!r}")
    if manifest.get("version") != VERSION:
        raise ReIDError(
            f"{path}: version must be {VERSION}, got {manifest.get('version')!r}; "
            "load it with the reid_hub that wrote it, or build the index again"
        )
    _check_types(path, manifest, KEYS)
    if manifest.pop("sha256", None) != _digest(manifest):
        raise ReIDError(
            f"{path} is damaged: it does not fit its own checksum; copy the folder or build the index again"
        )
    for entry in manifest["segments"]:
        if not isinstance(entry, dict):
            raise ReIDError(f"{path}: every segment must be an object, got {entry!r}")
        _check_types(path, entry, ENTRY)
        inside(folder, entry["name"])
    if manifest["removed"] is not None:
        _check_types(path, manifest["removed"], {"name": str, "sha256": str})
        inside(folder, manifest["removed"]["name"])
    return manifest


def open_segments(folder: str | Path, manifest: dict, layout: Layout, mmap: bool) -> Stored:
    """Open the segments of a manifest; with `mmap`, only the headers of the large files are read.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is damaged or does not fit the manifest.
    """
    folder = Path(folder)
    removed = _read_removed(folder, manifest)
    segments, offset = [], 0
    for entry in manifest["segments"]:
        gone = removed[(removed >= offset) & (removed < offset + entry["rows"])] - offset
        segments.append(_open_segment(folder, entry, layout, mmap, gone))
        offset += entry["rows"]
    if len(removed) and (removed[0] < 0 or removed[-1] >= offset or (np.diff(removed) <= 0).any()):
        raise ReIDError(f"{folder / manifest['removed']['name']} must hold ascending rows of the {offset} there are")
    if sum(map(len, segments)) != manifest["count"]:
        raise ReIDError(f"{folder / MANIFEST}: count must be {sum(map(len, segments))} as in the segments")
    return Stored(folder, manifest, segments)


def write_index(
    folder: str | Path,
    settings: dict,
    parts: list[Part],
    layout: Layout,
    known: Stored | None,
    *,
    compact: bool = False,
    mmap: bool = True,
) -> Stored:
    """Save `parts` to a folder.

    Segments that are already there are kept, and new rows become one more segment. It absorbs preceding segments that
    are no larger, so their number stays small.

    Args:
        known: contents of `folder` as the index knows them, if it was loaded from or saved there.
        compact: rewrite all rows as one segment, without those removed.

    Raises:
        ValueError: if `folder` holds something that is not part of an index, or was changed since it was loaded.
    """
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and all(OURS.fullmatch(file.name) for file in folder.iterdir())):
        raise ReIDError(f"{folder} holds other things than an index: refused to replace it; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / LOCK):
        kept: list[Segment] = []
        if known is not None and known.folder.resolve() == folder.resolve() and (folder / MANIFEST).exists():
            if read_manifest(folder) != known.manifest:
                raise ReIDError(
                    f"the index in {folder} was changed since this one was loaded or saved: nothing was written; "
                    "load it again, or save to another folder"
                )
            kept = [part for part in parts if part in known.segments and len(part)]
        new = [part for part in parts if part not in kept and len(part)]
        while kept and new and (compact or len(kept[-1]) <= sum(map(len, new))):
            new.insert(0, kept.pop())
        if compact and kept and (len(kept) > 1 or len(kept[0]) < kept[0].size):
            new, kept = kept + new, []
        return _write(folder, settings, kept, new, known, layout, mmap)


def _write(folder, settings, kept, new, known, layout, mmap) -> Stored:
    number = 1 + max((int(n) for file in folder.iterdir() for n in re.findall(r"-(\d{6,})\.", file.name)), default=0)
    entries = []
    if kept:
        by_segment = dict(zip(map(id, known.segments), known.manifest["segments"], strict=True))
        entries = [by_segment[id(segment)] for segment in kept]
    segments = list(kept)
    if new:
        name = f"segment-{number:06d}.safetensors"
        digests = write_segment(folder / name, columns_of(new, layout))
        _write_file(folder / _sums(name), digests)
        entry = {"name": name, "rows": sum(map(len, new)), "bytes": (folder / name).stat().st_size}
        entries.append({**entry, "sums": hashlib.sha256(digests).hexdigest()})
        segments.append(_open_segment(folder, entries[-1], layout, mmap, np.empty(0, np.int64)))
    offsets = np.cumsum([0, *(segment.size for segment in segments)])
    rows = [segment.removed() + offset for segment, offset in zip(segments, offsets, strict=False)]
    removed = np.concatenate([np.empty(0, np.int64), *rows]).astype("<i8").tobytes()
    gone = None
    if removed:
        gone = {"name": f"removed-{number:06d}.int64", "sha256": hashlib.sha256(removed).hexdigest()}
        _write_file(folder / gone["name"], removed)
    manifest = {"format": FORMAT, "version": VERSION, **settings, "count": sum(map(len, segments))}
    manifest |= {"segments": entries, "removed": gone}
    _sync_folder(folder)  # new files are durable before the manifest names them
    with atomic_file(folder / MANIFEST) as temporary:
        temporary.write_text(json.dumps({**manifest, "sha256": _digest(manifest)}, indent=2) + "\n")
    _sync_folder(folder)
    named = {MANIFEST, LOCK, gone and gone["name"]} | {n for e in entries for n in (e["name"], _sums(e["name"]))}
    for file in folder.iterdir():
        if file.name not in named and OURS.fullmatch(file.name):
            file.unlink(missing_ok=True)
    return Stored(folder, json.loads(json.dumps(manifest)), segments)


def _open_segment(folder: Path, entry: dict, layout: Layout, mmap: bool, removed: np.ndarray) -> Segment:
    path = folder / entry["name"]
    digests = _read_verified(folder / _sums(entry["name"]), entry["sums"])
    inside(folder, entry["name"])
    return Segment(SegmentFile(path, entry["bytes"], digests, entry["rows"], layout, mmap), layout, removed)


def _read_removed(folder: Path, manifest: dict) -> np.ndarray:
    if manifest["removed"] is None:
        return np.empty(0, np.int64)
    content = _read_verified(folder / manifest["removed"]["name"], manifest["removed"]["sha256"])
    return np.frombuffer(content, "<i8").astype(np.int64)


def _read_verified(path: Path, sha256: str) -> bytes:
    inside(path.parent, path.name)
    if not path.is_file():
        raise MissingError(f"{path} is missing: the index is not complete, copy the whole folder again")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ReIDError(f"{path} is damaged: it does not fit its checksum in {MANIFEST}; {AGAIN}")
    return content


def _check_types(path: Path, found: dict, kinds: dict) -> None:
    for key, kind in kinds.items():
        if not isinstance(found.get(key), kind):
            name = getattr(kind, "__name__", None) or str(kind)
            raise ReIDError(f"{path}: {key!r} must be of type {name}, got {found.get(key)!r}")


def _sums(name: str) -> str:
    return Path(name).with_suffix(".sha256").name


def _write_file(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    if hasattr(os, "O_DIRECTORY"):  # Windows lacks this flag and does not need it
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _digest(manifest: dict) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
