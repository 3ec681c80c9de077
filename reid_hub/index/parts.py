"""A gallery is a sequence of parts: immutable segments on disk, and one part in memory for new rows.

Both have the same interface. Removed rows are only marked, and keep their number until the index is compacted.
"""

from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b

import numpy as np

from reid_hub.index.segment_file import SegmentFile

Layout = dict[str, tuple[np.dtype, tuple[int, ...]]]
PIECE = 16_384  # rows copied at a time


class Part:
    """Rows with codes, camera, id and metadata; `offset` is the first row's number in the gallery."""

    offset: int = 0
    size: int = 0

    def __init__(self):
        self._dead: np.ndarray | None = None  # bool (size,); None if nothing was removed

    def block(self, start: int, stop: int, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Columns of a range of rows, as views."""
        return {name: self._column(name, start, stop) for name in names}

    def gather(self, rows: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Columns of the rows (H,), as copies."""
        raise NotImplementedError

    def camids(self, start: int, stop: int) -> np.ndarray:
        return self._column("camids", start, stop)

    def ids(self, rows: Sequence[int]) -> list[str]:
        raise NotImplementedError

    def metadata(self, rows: Sequence[int]) -> list[bytes]:
        """JSON of each row, b"" if it has none."""
        raise NotImplementedError

    def find(self, ids: Sequence[str]) -> np.ndarray:
        """Row of each id, -1 if it is unknown or removed, (N,) int64."""
        raise NotImplementedError

    def dead(self, start: int, stop: int) -> np.ndarray | None:
        """Mask of removed rows in a range, bool; None if there are none."""
        if self._dead is None or not self._dead[start:stop].any():
            return None
        return self._dead[start:stop]

    def alive(self) -> np.ndarray:
        """Rows that are not removed, ascending."""
        return np.arange(self.size) if self._dead is None else np.flatnonzero(~self._dead[: self.size])

    def removed(self) -> np.ndarray:
        return np.empty(0, np.int64) if self._dead is None else np.flatnonzero(self._dead[: self.size])

    def remove(self, rows: np.ndarray) -> None:
        if len(rows):
            if self._dead is None:
                self._dead = np.zeros(self.size, bool)
            self._dead[rows] = True

    def __len__(self) -> int:
        """Number of rows that are not removed."""
        return self.size if self._dead is None else self.size - int(self._dead[: self.size].sum())

    def _column(self, name: str, start: int, stop: int) -> np.ndarray:
        raise NotImplementedError


class MemoryPart(Part):
    """The part that grows. Arrays are over-allocated, so many small additions take linear time."""

    def __init__(self, layout: Layout):
        super().__init__()
        self.layout = layout
        self._arrays = {name: np.empty((0, *shape), dtype) for name, (dtype, shape) in layout.items()}
        self._arrays["camids"] = np.empty(0, np.int64)
        self._ids: list[str] = []
        self._metadata: list[bytes] = []
        self._rows: dict[str, int] = {}

    def add(
        self, columns: dict[str, np.ndarray], camids: np.ndarray, ids: Sequence[str], metadata: Sequence[bytes]
    ) -> None:
        start, stop = self.size, self.size + len(ids)
        if stop > len(self._arrays["camids"]):
            self._grow(max(stop, 2 * len(self._arrays["camids"])))
        for name, values in {**columns, "camids": camids}.items():
            self._arrays[name][start:stop] = values
        if self._dead is not None:
            self._dead = np.concatenate([self._dead[:start], np.zeros(len(ids), bool)])
        self._ids.extend(ids)
        self._metadata.extend(metadata)
        self._rows.update(zip(ids, range(start, stop), strict=True))
        self.size = stop

    def remove(self, rows):
        for row in rows.tolist():
            del self._rows[self._ids[row]]
        super().remove(rows)
        if 2 * len(self) < self.size:
            self._shrink()

    def gather(self, rows, names):
        return {name: self._arrays[name][rows] for name in names}

    def ids(self, rows):
        return [self._ids[row] for row in rows]

    def metadata(self, rows):
        return [self._metadata[row] for row in rows]

    def find(self, ids):
        return np.fromiter((self._rows.get(id, -1) for id in ids), np.int64, len(ids))

    def _column(self, name, start, stop):
        return self._arrays[name][start:stop]

    def _grow(self, capacity: int) -> None:
        for name, old in self._arrays.items():
            new = np.empty((capacity, *old.shape[1:]), old.dtype)
            new[: self.size] = old[: self.size]
            self._arrays[name] = new

    def _shrink(self) -> None:
        """Drop removed rows, so that an index under constant updates does not grow without bound."""
        keep = self.alive()
        self._arrays = {name: array[keep] for name, array in self._arrays.items()}
        self._ids, self._metadata = self.ids(keep), self.metadata(keep)
        self._rows = {id: row for row, id in enumerate(self._ids)}
        self.size, self._dead = len(keep), None


class Segment(Part):
    """A part on disk. Data is read on demand, and ids are not all turned into Python objects."""

    def __init__(self, file: SegmentFile, layout: Layout, removed: np.ndarray | None = None):
        super().__init__()
        self.file, self.layout, self.size = file, layout, file.rows
        if removed is not None:
            super().remove(removed)

    def gather(self, rows, names):
        return {name: self.file.take(name, rows) for name in names}

    def ids(self, rows):
        return [text.decode("utf-8", "surrogatepass") for text in self.file.texts("ids", rows)]

    def metadata(self, rows):
        return self.file.texts("metadata", rows)

    def find(self, ids):
        found = np.full(len(ids), -1, np.int64)
        hashes = self.file.read("id_hashes", 0, self.size)
        wanted = np.fromiter((hash_of(id) for id in ids), np.uint64, len(ids))
        first, last = (np.searchsorted(hashes, wanted, side) for side in ("left", "right"))
        for place in np.flatnonzero(first < last):
            rows = self.file.read("id_rows", int(first[place]), int(last[place]))
            for row, id in zip(rows.tolist(), self.ids(rows), strict=True):
                if id == ids[place] and (self._dead is None or not self._dead[row]):
                    found[place] = row
        return found

    def _column(self, name, start, stop):
        return self.file.read(name, start, stop)


def columns_of(parts: Sequence[Part], layout: Layout) -> Iterator[tuple]:
    """The columns that `write_segment` writes: rows of the parts that are not removed, in order, in pieces."""
    chosen = [(part, part.alive()) for part in parts]
    count = sum(len(rows) for _, rows in chosen)

    def pieces(name: str) -> Iterator[np.ndarray]:
        for part, rows in chosen:
            for start in range(0, len(rows), PIECE):
                yield part.gather(rows[start : start + PIECE], [name])[name]

    for name, (dtype, shape) in {**layout, "camids": (np.dtype(np.int64), ())}.items():
        yield name, dtype, (count, *shape), pieces(name)

    def texts(kind: str) -> Iterator[list]:
        for part, rows in chosen:
            for start in range(0, len(rows), PIECE):
                yield getattr(part, kind)(rows[start : start + PIECE])

    def ragged(kind: str, offsets_name: str, encode: Callable) -> Iterator[tuple]:
        lengths = np.fromiter((len(encode(text)) for piece in texts(kind) for text in piece), np.int64, count)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        yield offsets_name, offsets.dtype, offsets.shape, iter([offsets])
        joined = (b"".join(map(encode, piece)) for piece in texts(kind))
        yield kind, np.dtype(np.uint8), (int(offsets[-1]),), joined

    yield from ragged("ids", "id_offsets", utf8)
    if any(text for piece in texts("metadata") for text in piece):
        yield from ragged("metadata", "metadata_offsets", bytes)
    hashes = np.fromiter((hash_of(id) for piece in texts("ids") for id in piece), np.uint64, count)
    order = np.argsort(hashes, kind="stable")
    yield "id_hashes", hashes.dtype, hashes.shape, iter([hashes[order]])
    yield "id_rows", order.dtype, order.shape, iter([order])


def utf8(id: str) -> bytes:
    return id.encode("utf-8", "surrogatepass")  # file names may not be valid text


def hash_of(id: str) -> int:
    return int.from_bytes(blake2b(utf8(id), digest_size=8).digest(), "little")
