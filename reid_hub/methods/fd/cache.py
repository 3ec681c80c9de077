"""Supervisory representations on the disk: safetensors shards of each view, made once, by any number of processes."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from reid_hub.data.describe import digest_pictures
from reid_hub.data.views import View
from reid_hub.files import atomic_file
from reid_hub.methods.fd.representations import Teacher

SHARD_SIZE = 2048
_TENSOR, _ABOUT = "representations", "reid_hub"


def write_representations(
    folder: str | Path,
    teacher: Teacher,
    *,
    shard_size: int = SHARD_SIZE,
    batch_size: int = 64,
    progress: bool = True,
) -> None:
    """Store what a teacher says of all pictures, in FOLDER/VIEW/NUMBER-of-COUNT.safetensors.

    Any number of processes may call this at once, under `accelerate launch` or by themselves: each makes the shards
    that no other is at, and all return when the last is there. Shards that are there and sound are kept, so a killed
    run goes on; damaged ones are made anew.

    Raises:
        ValueError: if shards of another teacher, view or data set lie there, or of another size.
    """
    target, mark = Path(folder) / teacher.view.name, teacher.fingerprint()
    paths = teacher.split["path"][:]
    _check_paths(paths)
    starts = range(0, len(paths), shard_size)
    names = [f"{number:04d}-of-{len(starts):04d}.safetensors" for number in range(len(starts))]
    if others := {path.name for path in target.glob("*.safetensors") if not path.name.startswith(".")} - set(names):
        raise ValueError(f"{target} has shards of another size ({min(others)}): remove the folder, or give another one")
    target.mkdir(parents=True, exist_ok=True)
    busy = []
    with tqdm(total=len(paths), desc=f"view {teacher.view.name}", unit="img", disable=not progress) as bar:
        # First what nobody is at, then, waiting, what another process may have left undone.
        for wait, todo in ((0, list(zip(starts, names, strict=True))), (-1, busy)):
            for start, name in todo:
                part = paths[start : start + shard_size]
                try:
                    with FileLock(target / f"{name}.lock", timeout=wait):
                        if not _is_there(target / name, mark, part):
                            vectors = _represent(teacher, range(start, start + len(part)), batch_size)
                            _write_shard(target / name, vectors, mark, part)
                except Timeout:
                    busy.append((start, name))
                else:
                    bar.update(len(part))


class CachedRepresentations:
    """Representations that `write_representations` stored, read through memory maps. See `Representations`.

    All is verified when it is opened: that no shard is missing or damaged, and that views, pictures and, where they are
    given, teachers are those that the representations were made with.

    Args:
        views: what to read; the cache may have more.
        split: the training pictures, whole and in any order.
        teachers: fingerprints of teachers by view.

    Attributes:
        identities: the pids that the teachers were trained on, where they are known.

    Raises:
        FileNotFoundError: if a view or a shard is missing.
        ValueError: if a shard is damaged, or something does not belong together; the message says what.
    """

    def __init__(self, folder: str | Path, views: Sequence[View], split, *, teachers: Mapping[str, str] | None = None):
        self.views, self.paths = tuple(views), split["path"][:]
        _check_paths(self.paths)
        pictures, self._shards, dims, self.identities = digest_pictures(split), [], [], None
        for view in self.views:
            target = Path(folder) / view.name
            shards = [_read_shard(path) for path in _shard_files(target)]
            marks = [mark for _, mark, _ in shards]
            expected = {"view": view.describe(self.paths if view.region else ())}
            if teachers and view.name in teachers:
                expected["teacher"] = teachers[view.name]
            for mark in marks:
                _check_mark(target, mark, {**marks[0], **expected})
            stored = [path for _, _, part in shards for path in part]
            self._check_pictures(target, stored, marks[0]["pictures"], pictures)
            self._check_identities(view, marks[0]["identities"])
            row = {path: number for number, path in enumerate(stored)}
            rows = torch.tensor([row[path] for path in self.paths])
            self._shards.append(([vectors for vectors, _, _ in shards], rows, len(shards[0][0])))
            dims.append(shards[0][0].shape[1])
        self.dims = tuple(dims)

    def __getitem__(self, indices: Tensor) -> list[Tensor]:
        return [_gather(shards, rows[indices.cpu()], size) for shards, rows, size in self._shards]

    def _check_pictures(self, target: Path, stored: Sequence[str], made_of: str, pictures: str) -> None:
        if missing := sorted(set(self.paths) - set(stored)):
            named = ", ".join(missing[:3]) + (" and others" if len(missing) > 3 else "")
            raise ValueError(
                f"{target} has nothing on {len(missing)} of {len(self.paths)} images ({named}): it was made of another "
                "data set; make one of this data set in another folder"
            )
        if made_of != pictures:
            raise ValueError(
                f"{target} was made of {len(stored)} other pictures (digest {made_of}) than these {len(self.paths)} "
                f"({pictures}): make one of this data set in another folder"
            )

    def _check_identities(self, view: View, identities: list[int] | None) -> None:
        if identities is None:
            return
        if self.identities not in (None, identities):
            raise ValueError(
                f"the teacher of view {view.name!r} was trained on {len(identities)} identities, another one on "
                f"{len(self.identities)} or others: train all of them on the same"
            )
        self.identities = identities


def _represent(teacher: Teacher, rows: range, batch_size: int) -> Tensor:
    batches = (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))
    return torch.cat([teacher.represent(batch).float().cpu() for batch in batches])


def _gather(shards: Sequence[Tensor], rows: Tensor, size: int) -> Tensor:
    """Rows of shards that follow one another, all of `size` rows but the last."""
    if len(shards) == 1:
        return shards[0][rows]
    out, number = shards[0].new_empty(len(rows), shards[0].shape[1]), rows // size
    for shard in number.unique().tolist():
        here = number == shard
        out[here] = shards[shard][rows[here] - shard * size]
    return out


def _write_shard(path: Path, vectors: Tensor, mark: Mapping[str, Any], paths: Sequence[str]) -> None:
    for leftover in path.parent.glob(f".{path.name}.*"):  # of a process that was killed
        leftover.unlink()
    about = {"mark": mark, "paths": list(paths)}
    about["sha256"] = _digest(vectors, about)
    with atomic_file(path) as temporary:
        # One entry: several are written in any order, and equal shards would be different files.
        save_file({_TENSOR: vectors.contiguous()}, temporary, metadata={_ABOUT: json.dumps(about)})


def _read_shard(path: Path) -> tuple[Tensor, dict[str, Any], list[str]]:
    """Vectors (n, D) as a memory map, what they were made with, and the paths of the pictures.

    Raises:
        ValueError: if the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about, vectors = json.loads(file.metadata()[_ABOUT]), file.get_tensor(_TENSOR)
        digest = about.pop("sha256")
        damage = None if digest == _digest(vectors, about) else "it does not fit its own checksum"
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        damage = str(error)
    if damage is not None:
        raise ValueError(f"{path} is damaged ({damage}): remove it and make the cache again, which keeps the others")
    return vectors, about["mark"], about["paths"]


def _is_there(path: Path, mark: Mapping[str, Any], paths: Sequence[str]) -> bool:
    """Whether a sound shard lies there.

    Raises:
        ValueError: if it is of something else.
    """
    if not path.is_file():
        return False
    try:
        _, found, stored = _read_shard(path)
    except ValueError as error:
        print(f"made anew: {error}")
        return False
    _check_mark(path, found, mark)
    if stored != list(paths):
        raise ValueError(f"{path} is of other pictures, or of another order of them: give another folder")
    return True


def _check_mark(path: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    other = [name for name in expected if found.get(name) != expected[name]]
    if other:
        first = other[0]
        raise ValueError(
            f"{path} was made with other {' and '.join(other)} ({found.get(first)} instead of {expected[first]}): give "
            "the cache that belongs to it, or make one in another folder"
        )


def _shard_files(target: Path) -> list[Path]:
    files = sorted(path for path in target.glob("*-of-*.safetensors") if not path.name.startswith("."))
    if not files:
        raise FileNotFoundError(f"{target} has no representations: make them with examples/fd_cache.py")
    count = int(files[0].stem.rsplit("-", 1)[1])
    names = [f"{number:04d}-of-{count:04d}.safetensors" for number in range(count)]
    if missing := sorted(set(names) - {path.name for path in files}):
        raise FileNotFoundError(f"{target} is not complete, {missing[0]} is missing: run what makes the cache again")
    return [target / name for name in names]


def _digest(vectors: Tensor, about: Mapping[str, Any]) -> str:
    shape = str(vectors.dtype), list(vectors.shape)
    digest = hashlib.sha256(json.dumps([about, shape], sort_keys=True).encode())
    digest.update(vectors.numpy())
    return digest.hexdigest()


def _check_paths(paths: Sequence[str]) -> None:
    if len(set(paths)) < len(paths):
        raise ValueError("representations are found by the pictures' paths, and this data set has one of them twice")
