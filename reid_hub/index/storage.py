"""The folder of a saved index: `manifest.json`, `vectors.safetensors`, `ids.json`.

The manifest says what the index is and holds the size and SHA-256 of the two other files and the SHA-256 of itself,
so that a folder that was cut short, damaged or mixed from two indexes is refused instead of answering wrongly.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from reid_hub.files import atomic_folder, inside
from reid_hub.index.codecs import CODECS
from reid_hub.registry import lookup

VERSION = 1
FORMAT = "reid_hub gallery index"
MANIFEST, VECTORS, IDS = "manifest.json", "vectors.safetensors", "ids.json"
KEYS = {"format": str, "version": int, "dim": int, "codec": str, "metric": str, "count": int, "files": dict}


def write_index(folder: str | Path, settings: dict, codes: np.ndarray, camids: np.ndarray, ids: list[str]) -> None:
    """Write the folder atomically.

    Raises:
        ValueError: if `folder` holds something that is not part of an index.
    """
    folder = Path(folder)
    if folder.exists() and not (
        folder.is_dir() and {file.name for file in folder.iterdir()} <= {MANIFEST, VECTORS, IDS}
    ):
        raise ValueError(f"{folder} holds other things than an index: refused to replace it; choose another folder")
    with atomic_folder(folder) as temporary:
        save_file({"codes": codes, "camids": camids}, temporary / VECTORS)
        (temporary / IDS).write_text(json.dumps(ids))
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            **settings,
            "count": len(ids),
            "files": {name: _stamp(temporary / name) for name in (VECTORS, IDS)},
        }
        (temporary / MANIFEST).write_text(json.dumps({**manifest, "sha256": _digest(manifest)}, indent=2) + "\n")


def read_index(folder: str | Path) -> tuple[dict, np.ndarray, np.ndarray, list[str]]:
    """Return manifest, codes (N, width), camids (N,) and ids of a folder, verified.

    Raises:
        FileNotFoundError: if the folder or a file is missing.
        ValueError: if the folder is not an index, of another version, cut short or changed.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder)
    members = {name: _verified(folder, name, stamp) for name, stamp in manifest["files"].items()}
    try:
        tensors = load_file(members[VECTORS])
        codes, camids, ids = tensors["codes"], tensors["camids"], json.loads(members[IDS].read_text())
    except Exception as error:  # whatever the parsers raise: the checksums were those of another program
        raise ValueError(f"{folder} is not a readable index: {error!r}") from error
    codec = lookup(CODECS, manifest["codec"], "index codec")
    count = manifest["count"]
    expected = {
        "codes": (codes.shape, codes.dtype, (count, codec.width(manifest["dim"])), codec.dtype),
        "camids": (camids.shape, camids.dtype, (count,), np.dtype(np.int64)),
    }
    for name, (shape, dtype, right_shape, right_dtype) in expected.items():
        if (shape, dtype) != (right_shape, right_dtype):
            raise ValueError(
                f"{folder / VECTORS}: {name} must be {right_dtype} {right_shape} as the manifest says, "
                f"got {dtype} {shape}"
            )
    if not (isinstance(ids, list) and len(ids) == len(set(ids)) == count and all(isinstance(id, str) for id in ids)):
        raise ValueError(f"{folder / IDS} must hold {count} different strings as the manifest says")
    return manifest, codes, camids, ids


def _read_manifest(folder: Path) -> dict:
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"no index in {folder}: {MANIFEST} is missing; write one with GalleryIndex.save")
    try:
        manifest = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not readable as JSON ({error}): the file was cut short or changed") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{path} is not the manifest of a gallery index: 'format' must be {FORMAT!r}")
    if manifest.get("version") != VERSION:
        raise ValueError(
            f"{path}: version must be {VERSION}, got {manifest.get('version')!r}; "
            "load it with the reid_hub that wrote it, or build the index again"
        )
    for key, kind in KEYS.items():
        if not isinstance(manifest.get(key), kind):
            raise ValueError(f"{path}: {key!r} must be of type {kind.__name__}, got {manifest.get(key)!r}")
    if not isinstance(manifest.get("fingerprint"), str | None):
        raise ValueError(f"{path}: 'fingerprint' must be a string or null, got {manifest['fingerprint']!r}")
    if manifest.pop("sha256", None) != _digest(manifest):
        raise ValueError(
            f"{path} is damaged: it does not fit its own checksum; copy the folder or build the index again"
        )
    for name in manifest["files"]:
        inside(folder, name)
    if set(manifest["files"]) != {VECTORS, IDS}:
        raise ValueError(f"{path}: 'files' must name {VECTORS} and {IDS}, got {sorted(manifest['files'])}")
    return manifest


def _verified(folder: Path, name: str, stamp: dict) -> Path:
    path = inside(folder, name)
    if not path.is_file():
        raise FileNotFoundError(f"{folder / name} is missing: the index is not complete, copy the whole folder again")
    found = _stamp(path)
    if found != stamp:
        raise ValueError(
            f"{folder / name} is damaged: its size and checksum must be {stamp}, got {found}; "
            "copy the folder again or build the index again"
        )
    return path


def _digest(manifest: dict) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _stamp(path: Path) -> dict:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
