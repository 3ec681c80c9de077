"""`GalleryIndex`: named vectors, exact search, one folder on disk."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from reid_hub.index.backends import find_backend
from reid_hub.index.checks import METRICS, checked_camids, checked_ids, checked_vectors, refuse_repeated, some
from reid_hub.index.codecs import CODECS
from reid_hub.index.search import nearest
from reid_hub.index.storage import read_index, write_index
from reid_hub.registry import lookup


class GalleryIndex:
    """A gallery of embeddings under string ids, searched exactly.

    "cosine" stores and compares L2-normalised vectors and answers 1 - cos (0..2); "euclidean" answers |q - v|.
    Neighbours come in ascending distance; equal distances come in the order in which the vectors were added.
    The answer does not depend on the backend or on how the gallery was built up (see `search.py`).

    Args:
        dim: length of an embedding.
        codec: how vectors are stored, a key of `CODECS`.
        metric: "cosine" or "euclidean".
        fingerprint: names what made the embeddings (model and revision, say). It is stored with the index, and
            `load` refuses an index whose fingerprint is not the one it is asked for.
        backend: "torch" or "faiss" (needs the extra `reid-hub[faiss]`); both give the same answer.

    Raises:
        ValueError: if `dim` is not positive or a name is unknown.
        RuntimeError: if faiss is asked for and not installed.
    """

    def __init__(
        self,
        dim: int,
        codec: str = "float32",
        metric: str = "cosine",
        *,
        fingerprint: str | None = None,
        backend: str = "torch",
    ):
        if dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}")
        self.dim = dim
        self.codec = lookup(CODECS, codec, "index codec")
        lookup(METRICS, metric, "metric")
        self.metric = metric
        self.fingerprint = fingerprint
        self._backend = find_backend(backend)
        self._ids: list[str] = []
        self._rows: dict[str, int] = {}
        self._codes = np.empty((0, self.codec.width(dim)), self.codec.dtype)  # has room: len(self) rows are in use
        self._camids = np.empty(0, np.int64)

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, id: str) -> bool:
        return id in self._rows

    @property
    def ids(self) -> list[str]:
        """All ids in the order in which they were added."""
        return list(self._ids)

    def add(self, embeddings, ids: Iterable[str], camids: Sequence[int] | None = None) -> None:
        """Add embeddings (N, D) under N new ids; nothing is added if anything is wrong.

        Args:
            embeddings: array or tensor of floats.
            ids: any strings. To replace a vector, `remove` it first.
            camids: camera of each image, -1 or None where it is not known.

        Raises:
            ValueError: on a wrong shape, NaN/Inf, a vector without a direction (cosine), a repeated or known id.
        """
        ids = checked_ids(ids)
        vectors = checked_vectors(embeddings, self.dim, self.metric, "embeddings", ids)
        if len(ids) != len(vectors):
            raise ValueError(f"each embedding needs one id: got {len(vectors)} embeddings and {len(ids)} ids")
        camids = checked_camids(camids, len(ids), "embedding")
        refuse_repeated(ids)
        known = [id for id in ids if id in self._rows]
        if known:
            raise ValueError(f"already in the index: {some(known)}; remove them first, or choose other ids")
        size = len(self)
        self._reserve(size + len(ids))
        self._codes[size : size + len(ids)] = self.codec.encode(vectors)
        self._camids[size : size + len(ids)] = camids
        self._rows.update(zip(ids, range(size, size + len(ids)), strict=True))
        self._ids.extend(ids)

    def remove(self, ids: Iterable[str]) -> None:
        """Remove ids; the order of the others stays. One call passes over the whole gallery, so remove many at once.

        Raises:
            ValueError: if an id is not in the index; then nothing is removed.
        """
        gone = set(checked_ids(ids))
        unknown = sorted(gone - self._rows.keys())
        if unknown:
            raise ValueError(f"not in the index: {some(unknown)}; nothing was removed")
        keep = np.array([id not in gone for id in self._ids], dtype=bool)
        size = len(self)
        self._codes = self._codes[:size][keep]
        self._camids = self._camids[:size][keep]
        self._ids = [id for id in self._ids if id not in gone]
        self._rows = {id: row for row, id in enumerate(self._ids)}

    def search(self, queries, k: int, *, exclude_camids: Sequence[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return the `k` nearest gallery entries of each query: distances (Q, K) float32 and ids (Q, K) objects.

        K is min(k, len(self)). Where `exclude_camids` leaves a query fewer than K entries, the rest of its row is
        filled with distance inf and id None.

        Args:
            queries: (Q, D) array or tensor of floats.
            exclude_camids: one camera per query whose gallery entries are left out (the same-camera rule of
                re-identification); -1 leaves nothing out. Entries of unknown camera are never left out.

        Raises:
            ValueError: on an empty index, no queries, k < 1, a wrong shape, NaN/Inf, a query without a direction.
        """
        if not len(self):
            raise ValueError("the index is empty: add embeddings before searching")
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        vectors = checked_vectors(queries, self.dim, self.metric, "queries")
        if not len(vectors):
            raise ValueError("queries must hold at least one row, got none")
        excluded = checked_camids(exclude_camids, len(vectors), "query")
        k = min(k, len(self))
        squared = np.full((len(vectors), k), np.inf)
        ids = np.full((len(vectors), k), None, object)
        for camid in np.unique(excluded):
            asked = np.flatnonzero(excluded == camid)
            keep = None if camid == -1 else self._camids[: len(self)] != camid
            found = k if keep is None else min(k, int(keep.sum()))
            if found:
                near, rows = nearest(vectors[asked], self._codes[: len(self)], self.codec, self._backend, found, keep)
                squared[asked, :found] = near
                ids[asked, :found] = np.reshape([self._ids[row] for row in rows.ravel()], rows.shape)
        # For unit vectors |q - v|^2 = 2 - 2 cos; unlike 1 - cos it is exactly 0 for equal vectors and never negative.
        distances = squared / 2 if self.metric == "cosine" else np.sqrt(squared)
        return distances.astype(np.float32), ids

    def save(self, folder: str | Path) -> None:
        """Write the index as a folder; an index that is already there is replaced only once this one is complete.

        Raises:
            ValueError: if `folder` holds something that is not part of an index.
        """
        write_index(
            folder,
            {
                "dim": self.dim,
                "codec": self.codec.name,
                "metric": self.metric,
                "fingerprint": self.fingerprint,
            },
            self._codes[: len(self)],
            self._camids[: len(self)],
            self._ids,
        )

    @classmethod
    def load(cls, folder: str | Path, *, fingerprint: str | None = None, backend: str = "torch") -> "GalleryIndex":
        """Read an index written by `save`, verifying it first.

        Args:
            fingerprint: what the index must have been made with; None accepts any.

        Raises:
            FileNotFoundError: if the folder or one of its files is missing.
            ValueError: if it is not an index, was cut short or changed, or has another fingerprint.
        """
        manifest, codes, camids, ids = read_index(folder)
        made_with = manifest.get("fingerprint")
        if fingerprint is not None and made_with != fingerprint:
            raise ValueError(
                f"the index in {folder} was made with {made_with!r}, not with {fingerprint!r}: "
                "distances between different models mean nothing; embed the gallery again, or load its own model"
            )
        index = cls(
            manifest["dim"],
            manifest["codec"],
            manifest["metric"],
            fingerprint=made_with,
            backend=backend,
        )
        index._codes, index._camids, index._ids = codes, camids, ids
        index._rows = {id: row for row, id in enumerate(ids)}
        return index

    def _reserve(self, size: int) -> None:
        """Make room for `size` rows, at least doubling, so that many small additions cost linear time."""
        if size <= len(self._codes):
            return
        capacity = max(size, 2 * len(self._codes))
        codes = np.empty((capacity, self._codes.shape[1]), self._codes.dtype)
        camids = np.empty(capacity, np.int64)
        codes[: len(self)], camids[: len(self)] = self._codes[: len(self)], self._camids[: len(self)]
        self._codes, self._camids = codes, camids
