"""All rows of a gallery in insertion order: segments on disk, then new rows in memory."""

from collections.abc import Iterator, Sequence

import numpy as np

from reid_hub.index.parts import Layout, MemoryPart, Part, Segment

NOWHERE = np.iinfo(np.int64).max  # marks a missing row


class Table:
    """Looks up rows by id, and their contents, across the parts.

    Args:
        segments: the parts on disk.
        layout: the codec's columns.
    """

    def __init__(self, segments: Sequence[Segment], layout: Layout):
        self._new = MemoryPart(layout)
        self.parts: list[Part] = [*segments, self._new]
        offset = 0
        for part in self.parts:
            part.offset = offset
            offset += part.size

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def all_ids(self) -> list[str]:
        return [id for part in self.parts for id in part.ids(part.alive())]

    def find(self, ids: Sequence[str]) -> np.ndarray:
        """Row of each id, -1 if unknown, (N,) int64."""
        found = np.full(len(ids), -1, np.int64)
        for part in self.parts:
            rows = part.find(ids)
            found[rows >= 0] = rows[rows >= 0] + part.offset
        return found

    def add(self, columns: dict[str, np.ndarray], camids: np.ndarray | None, ids, metadata: list[bytes] | None) -> None:
        """Append new ids with the codec's columns; cameras default to -1, metadata to b""."""
        camids = np.full(len(ids), -1, np.int64) if camids is None else camids
        self._new.add(columns, camids, ids, [b""] * len(ids) if metadata is None else metadata)

    def remove(self, rows: np.ndarray) -> None:
        for part, _, own in list(self.by_part(rows)):
            part.remove(own)

    def metadata(self, rows: np.ndarray) -> list[bytes]:
        texts = np.full(len(rows), b"", object)
        for part, places, own in self.by_part(rows):
            texts[places] = part.metadata(own)
        return texts.tolist()

    def camids(self, rows: np.ndarray) -> np.ndarray:
        camids = np.empty(len(rows), np.int64)
        for part, places, own in self.by_part(rows):
            camids[places] = part.gather(own, ["camids"])["camids"]
        return camids

    def ids(self, rows: np.ndarray) -> np.ndarray:
        """Ids (Q, K) of rows (Q, K), None for NOWHERE."""
        ids = np.full(rows.size, None, object)
        for part, places, own in self.by_part(rows.ravel()):
            ids[places] = part.ids(own)
        return ids.reshape(rows.shape)

    def by_part(self, rows: np.ndarray) -> Iterator[tuple[Part, np.ndarray, np.ndarray]]:
        """For each part that holds some of `rows` (N,): the part, positions in `rows`, and row numbers in the part."""
        for part in self.parts:
            places = np.flatnonzero((rows >= part.offset) & (rows < part.offset + part.size))
            if len(places):
                yield part, places, rows[places] - part.offset
