"""One segment on disk: a memory-mapped safetensors file, and a file with the SHA-256 of each of its blocks.

The tensors are the codec's columns, `camids`, the ids in UTF-8 with offsets, their sorted 64-bit hashes with the row of
each (to find an id without reading the others), and metadata as JSON with offsets. A block is verified when it is first
read.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from reid_hub.errors import MissingError, ReIDError

BLOCK = 2**16  # bytes per checksum, and thus read per candidate of a large gallery
DIGEST = hashlib.sha256().digest_size
DTYPES = {"F32": "<f4", "F16": "<f2", "I64": "<i8", "U64": "<u8", "I32": "<i4", "I8": "|i1", "U8": "|u1"}
_NAMES = {np.dtype(code): name for name, code in DTYPES.items()}
Form = tuple[np.dtype, tuple[int, ...]]

# Tensors of every segment besides the codec's columns: dtype, and length beyond the rows (None: any).
BOOKKEEPING = {
    "camids": (np.dtype(np.int64), 0),
    "id_offsets": (np.dtype(np.int64), 1),
    "id_hashes": (np.dtype(np.uint64), 0),
    "id_rows": (np.dtype(np.int64), 0),
    "ids": (np.dtype(np.uint8), None),
    "metadata_offsets": (np.dtype(np.int64), 1),
    "metadata": (np.dtype(np.uint8), None),
}


class SegmentFile:
    """Reads a segment of `rows` rows.

    Args:
        path: the safetensors file.
        size: its size in bytes.
        digests: the SHA-256 of its blocks, concatenated.
        mmap: map the file; otherwise read and verify all of it.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if its size, header or (on reading) a block is not what was written.
    """

    def __init__(self, path: Path, size: int, digests: bytes, rows: int, layout: dict[str, Form], mmap: bool = True):
        self.path, self.rows = path, rows
        if not path.is_file():
            raise MissingError(f"{path} is missing: the index is not complete, copy the whole folder again")
        if path.stat().st_size != size or len(digests) != DIGEST * -(-size // BLOCK):
            raise ReIDError(
                f"{path} is damaged: it must have {size} bytes, got {path.stat().st_size}; "
                "copy the folder again or build the index again"
            )
        # "c" (copy on write): torch expects writable arrays. The file itself is never written to.
        self._bytes = np.memmap(path, np.uint8, "c").view(np.ndarray) if mmap else np.fromfile(path, np.uint8)
        self._digests, self._checked = digests, np.zeros(len(digests) // DIGEST, bool)
        self._complete = False  # whether all blocks are checked
        self._columns = self._open(layout)
        if not mmap:
            self.verify()

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Entries start to stop of a column, verified, as a view."""
        column, offset = self._columns[name]
        stride = column.strides[0]
        self._verify(offset + start * stride, offset + stop * stride)
        return column[start:stop]

    def take(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Entries of a column, verified, as a copy."""
        column, offset = self._columns[name]
        if not self._complete:
            stride = column.strides[0]
            first = (offset + rows * stride) // BLOCK
            last = (offset + (rows + 1) * stride - 1) // BLOCK
            for ahead in range(int((last - first).max(initial=-1)) + 1):
                for block in np.unique(np.minimum(first + ahead, last)).tolist():
                    self._verify_block(block)
        return column[rows]

    def texts(self, name: str, rows: Sequence[int]) -> list[bytes]:
        """Entries of `ids` or `metadata`."""
        offsets = {"ids": "id_offsets", "metadata": "metadata_offsets"}[name]
        if offsets not in self._columns:
            return [b""] * len(rows)
        rows = np.asarray(rows, np.int64)
        starts, stops = self.take(offsets, rows), self.take(offsets, rows + 1)
        return [self.read(name, start, stop).tobytes() for start, stop in zip(starts, stops, strict=True)]

    def verify(self) -> None:
        """Verify all blocks that were not read yet."""
        self._verify(0, len(self._bytes))

    @property
    def bytes_read(self) -> int:
        """Size of the blocks read and verified so far."""
        return min(BLOCK * int(self._checked.sum()), len(self._bytes))

    def _open(self, layout: dict[str, Form]) -> dict[str, tuple[np.ndarray, int]]:
        self._verify(0, min(8, len(self._bytes)))
        length = int.from_bytes(self._bytes[:8].tobytes(), "little")
        self._verify(0, min(8 + length, len(self._bytes)))
        try:
            header = json.loads(self._bytes[8 : 8 + length].tobytes())
            header.pop("__metadata__", None)
            columns = {}
            for name, entry in header.items():
                start, stop = (8 + length + place for place in entry["data_offsets"])
                column = self._bytes[start:stop].view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
                columns[name] = column, start
        except Exception as error:  # whatever the parsers raise; the checksums fit, so another program wrote this
            raise ReIDError(f"{self.path} is not a readable segment: {error!r}") from error
        expected = {name: (dtype, (self.rows, *shape)) for name, (dtype, shape) in layout.items()}
        for name, (dtype, more) in BOOKKEEPING.items():
            if name in columns or not name.startswith("metadata"):
                expected[name] = dtype, None if more is None else (self.rows + more,)
        for name, (dtype, shape) in expected.items():
            found = columns[name][0] if name in columns else None
            if found is None or found.dtype != dtype or shape not in (None, found.shape):
                got = "nothing" if found is None else f"{found.dtype} {found.shape}"
                raise ReIDError(f"{self.path}: {name} must be {dtype} {shape} as the manifest says, got {got}")
        return columns

    def _verify(self, start: int, stop: int) -> None:
        if self._complete:
            return
        first, last = start // BLOCK, -(-stop // BLOCK)
        if stop > start and not self._checked[first:last].all():
            for block in range(first, last):
                self._verify_block(block)

    def _verify_block(self, block: int) -> None:
        if self._checked[block]:
            return
        start, stop = block * BLOCK, min((block + 1) * BLOCK, len(self._bytes))
        right = self._digests[block * DIGEST : (block + 1) * DIGEST]
        if hashlib.sha256(self._bytes[start:stop]).digest() != right:
            raise ReIDError(
                f"{self.path} is damaged: its bytes {start:,} to {stop:,} do not fit their checksum; "
                "copy the folder again or build the index again"
            )
        self._checked[block] = True
        self._complete = bool(self._checked.all())


def write_segment(path: Path, columns: Iterable[tuple[str, np.dtype, tuple[int, ...], Iterator[np.ndarray]]]) -> bytes:
    """Write columns (name, dtype, shape, pieces); return the SHA-256 of the blocks, concatenated."""
    columns = sorted(columns, key=lambda column: -column[1].itemsize)  # keeps each column aligned
    header, place = {}, 0
    for name, dtype, shape, _ in columns:
        size = dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    digests, open_block, left = [], hashlib.sha256(), BLOCK
    with path.open("xb") as file:
        pieces = (piece for _, _, _, pieces in columns for piece in pieces)
        for piece in ([len(text).to_bytes(8, "little"), text], pieces):
            for data in piece:
                data = memoryview(data if isinstance(data, bytes) else np.ascontiguousarray(data)).cast("B")
                file.write(data)
                while len(data):
                    step = data[:left]
                    open_block.update(step)
                    data, left = data[len(step) :], left - len(step)
                    if not left:
                        digests.append(open_block.digest())
                        open_block, left = hashlib.sha256(), BLOCK
        if left < BLOCK:
            digests.append(open_block.digest())
        file.flush()
        os.fsync(file.fileno())
        if file.tell() != 8 + len(text) + place:
            raise AssertionError(f"{path}: the columns are not as long as their shapes say")
    return b"".join(digests)
