"""Vectors of images on the disk: safetensors shards with a checksum, made once, by any number of processes."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from reid_hub.errors import MissingError, ReIDError
from reid_hub.files import atomic_file
from reid_hub.logging import get_logger
from reid_hub.records import check_same

logger = get_logger(__name__)

SHARD_SIZE = 2048
_TENSOR, _ABOUT = "representations", "reid_hub"


def share_work(folder: Path, names: Sequence[str], make: Callable[[int], None], done: Callable[[int], None]) -> None:
    """Make numbered pieces of a work together with any number of processes; returns when the last one is made.

    The processes may be started by a launcher or by hand: each makes the pieces that no other is at, by locks in
    `folder`, and at the end waits for those of others. The first that returns may remove the folder: it is then done
    for all.

    Args:
        make: called with a piece's number; it must keep what is there already.
        done: called after it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    busy: list[int] = []
    # First what nobody is at, then, waiting, what another process may have left undone.
    for wait, todo in ((0, range(len(names))), (-1, busy)):
        for number in todo:
            lock = FileLock(folder / f"{names[number]}.lock", timeout=wait)
            try:
                lock.acquire()
            except Timeout:
                busy.append(number)
                continue
            except FileNotFoundError:  # the folder is gone: see above
                pass
            else:
                try:
                    make(number)
                finally:
                    lock.release()
            done(number)


def write_vectors(
    target: Path,
    paths: Sequence[str],
    mark: Mapping[str, Any],
    represent: Callable[[range], Tensor],
    *,
    shard_size: int = SHARD_SIZE,
    batch_size: int = 64,
    description: str = "vectors",
    progress: bool = True,
) -> None:
    """Store one vector for each image, in TARGET/NUMBER-of-COUNT.safetensors; see `share_work`.

    Shards that are there and sound are kept, so a killed run goes on; damaged ones are made anew.

    Args:
        paths: (N,) of the images.
        mark: what the vectors were made with, as plain values.
        represent: vectors (B, D) of rows.

    Raises:
        ReIDError: if shards with another mark lie there, or of other images, or of another size.
    """
    check_paths(paths)
    starts = range(0, len(paths), shard_size)
    names = [f"{number:04d}-of-{len(starts):04d}.safetensors" for number in range(len(starts))]
    if others := {path.name for path in target.glob("*.safetensors") if not path.name.startswith(".")} - set(names):
        raise ReIDError(f"{target} has shards of another size ({min(others)}): remove the folder, or give another one")

    def rows(number: int) -> range:
        return range(starts[number], min(starts[number] + shard_size, len(paths)))

    def make(number: int) -> None:
        part = paths[starts[number] : starts[number] + shard_size]
        if not _is_there(target / names[number], mark, part):
            here = rows(number)
            batches = (here[start : start + batch_size] for start in range(0, len(here), batch_size))
            vectors = torch.cat([represent(batch).float().cpu() for batch in batches])
            _write_shard(target / names[number], vectors, mark, part)

    with tqdm(total=len(paths), desc=description, unit="img", disable=not progress) as bar:
        share_work(target, names, make, lambda number: bar.update(len(rows(number))))


class StoredVectors:
    """Vectors that `write_vectors` stored, read through memory maps.

    All is verified when it is opened: that no shard is missing or damaged, and that all have one mark.

    Attributes:
        paths: (N,) of the images.
        mark: what the vectors were made with.
        dim: their length.

    Raises:
        MissingError: if there is nothing, or a shard is missing; `maker` is named as what makes them.
        ReIDError: if a shard is damaged or has another mark, or differs from `expected` in it.
    """

    def __init__(self, target: Path, expected: Mapping[str, Any], *, maker: str):
        shards = [_read_shard(path) for path in _shard_files(target, maker)]
        self.mark = shards[0][1]
        for _, mark, _ in shards:
            _check_mark(target, mark, {**self.mark, **expected})
        self.paths = [path for _, _, part in shards for path in part]
        self._shards = [vectors for vectors, _, _ in shards]
        self.dim = self._shards[0].shape[1]

    def rows_of(self, paths: Sequence[str]) -> Tensor:
        """Rows of images, by their paths: (N,).

        Raises:
            ReIDError: if there is nothing on some of them.
        """
        row = {path: number for number, path in enumerate(self.paths)}
        if missing := sorted(set(paths) - row.keys()):
            named = ", ".join(missing[:3]) + (" and others" if len(missing) > 3 else "")
            raise ReIDError(f"nothing on {len(missing)} of {len(paths)} images ({named})")
        return torch.tensor([row[path] for path in paths])

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Vectors of rows, (B,) -> (B, D)."""
        size = len(self._shards[0])  # of all but the last
        if len(self._shards) == 1:
            return self._shards[0][rows]
        out, number = self._shards[0].new_empty(len(rows), self.dim), rows // size
        for shard in number.unique().tolist():
            here = number == shard
            out[here] = self._shards[shard][rows[here] - shard * size]
        return out


def check_paths(paths: Sequence[str]) -> None:
    """Refuse images that could not be told apart.

    Raises:
        ReIDError: if a path is there twice.
    """
    if len(set(paths)) < len(paths):
        raise ReIDError("representations are found by the images' paths, and this data set has one of them twice")


def _write_shard(path: Path, vectors: Tensor, mark: Mapping[str, Any], paths: Sequence[str]) -> None:
    for leftover in path.parent.glob(f".{path.name}.*"):  # of a process that was killed
        leftover.unlink()
    about = {"mark": mark, "paths": list(paths)}
    about["sha256"] = _digest(vectors, about)
    with atomic_file(path) as temporary:
        # One entry: several are written in any order, and equal shards would be different files.
        save_file({_TENSOR: vectors.contiguous()}, temporary, metadata={_ABOUT: json.dumps(about)})


def _read_shard(path: Path) -> tuple[Tensor, dict[str, Any], list[str]]:
    """Vectors (n, D) as a memory map, what they were made with, and the paths of the images.

    Raises:
        ReIDError: if the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about, vectors = json.loads(file.metadata()[_ABOUT]), file.get_tensor(_TENSOR)
        digest = about.pop("sha256")
        damage = None if digest == _digest(vectors, about) else "it does not fit its own checksum"
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        damage = str(error)
    if damage is not None:
        raise ReIDError(f"{path} is damaged ({damage}): remove it and make the cache again, which keeps the others")
    return vectors, about["mark"], about["paths"]


def _is_there(path: Path, mark: Mapping[str, Any], paths: Sequence[str]) -> bool:
    """Whether a sound shard lies there.

    Raises:
        ReIDError: if it is of something else.
    """
    if not path.is_file():
        return False
    try:
        _, found, stored = _read_shard(path)
    except ValueError as error:
        logger.warning("made anew: %s", error)
        return False
    _check_mark(path, found, mark)
    if stored != list(paths):
        raise ReIDError(f"{path} is of other images, or of another order of them: give another folder")
    return True


def _check_mark(path: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    advice = "give the cache that belongs to it, or make one in another folder"
    check_same(path, {name: found.get(name) for name in expected}, expected, advice=advice)


def _shard_files(target: Path, maker: str) -> list[Path]:
    files = sorted(path for path in target.glob("*-of-*.safetensors") if not path.name.startswith("."))
    if not files:
        raise MissingError(f"{target} has no representations: make them with {maker}")
    count = int(files[0].stem.rsplit("-", 1)[1])
    names = [f"{number:04d}-of-{count:04d}.safetensors" for number in range(count)]
    if missing := sorted(set(names) - {path.name for path in files}):
        raise MissingError(f"{target} is not complete, {missing[0]} is missing: run what makes the cache again")
    return [target / name for name in names]


def _digest(vectors: Tensor, about: Mapping[str, Any]) -> str:
    shape = str(vectors.dtype), list(vectors.shape)
    digest = hashlib.sha256(json.dumps([about, shape], sort_keys=True).encode())
    digest.update(vectors.numpy())
    return digest.hexdigest()
