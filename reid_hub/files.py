"""Atomic writing of files and folders, and paths that cannot leave their folder."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reid_hub.errors import ReIDError


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; it replaces `path` only if the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    # mkstemp creates private files; restore the permissions of an ordinary new file.
    temporary.chmod(0o666 & ~_umask())
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty temporary folder next to `path`; it replaces `path` only if the block succeeds.

    A folder cannot be replaced in one system call. The old folder is moved aside first and removed last, so that a
    complete folder exists under one of the two names at all times.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    temporary.chmod(0o777 & ~_umask())
    old = temporary.with_name(temporary.name + ".old")
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _sync(file)
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
    finally:
        if old.exists() and not path.exists():
            os.replace(old, path)
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(temporary, ignore_errors=True)


def inside(root: str | Path, member: str) -> Path:
    """Return `root / member`, and refuse a path outside `root`, such as one from an archive or index.

    Raises:
        ValueError: if the path is absolute or leaves `root` (also through a symbolic link).
    """
    root = Path(root).resolve()
    target = (root / member).resolve()
    if not target.is_relative_to(root):
        raise ReIDError(f"{member!r} is outside {root}: refused; do not trust the source of this file")
    return target


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
