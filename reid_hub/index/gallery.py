"""`GalleryIndex`: named vectors, exact search, one folder on disk."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from reid_hub.index.backends import find_backend
from reid_hub.index.codecs import CODECS
from reid_hub.index.search import nearest
from reid_hub.index.storage import read_index, write_index
from reid_hub.registry import lookup

METRICS = dict.fromkeys(("cosine", "euclidean"))
MAX_NORM = 1e18  # (|q| + |v|)^2 must be a float32


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
        ids = _checked_ids(ids)
        vectors = self._vectors(embeddings, "embeddings", ids)
        if len(ids) != len(vectors):
            raise ValueError(f"each embedding needs one id: got {len(vectors)} embeddings and {len(ids)} ids")
        camids = _checked_camids(camids, len(ids), "embedding")
        repeated = [id for id, count in Counter(ids).items() if count > 1]
        if repeated:
            raise ValueError(f"ids must differ from each other: {_some(repeated)} given more than once")
        known = [id for id in ids if id in self._rows]
        if known:
            raise ValueError(f"already in the index: {_some(known)}; remove them first, or choose other ids")
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
        gone = set(_checked_ids(ids))
        unknown = sorted(gone - self._rows.keys())
        if unknown:
            raise ValueError(f"not in the index: {_some(unknown)}; nothing was removed")
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
        vectors = self._vectors(queries, "queries")
        if not len(vectors):
            raise ValueError("queries must hold at least one row, got none")
        excluded = _checked_camids(exclude_camids, len(vectors), "query")
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

    def _vectors(self, values, what: str, names: Sequence[str] | None = None) -> np.ndarray:
        """Check and copy to contiguous float32 (N, D), L2-normalised for cosine."""
        if isinstance(values, torch.Tensor):
            values = values.detach().cpu().float().numpy()
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf and is refused below
            vectors = np.array(values, np.float32, ndmin=1)
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise ValueError(f"{what} must have the shape (N, {self.dim}), got {vectors.shape}")
        self._refuse(~np.isfinite(vectors).all(1), what, "contain NaN or Inf", names)
        norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
        if self.metric == "cosine":
            self._refuse(norms == 0, what, "are all zero, so they have no direction for cosine", names)
            vectors /= norms[:, None]
        else:
            self._refuse(norms > MAX_NORM, what, f"are too long for float32 distances (over {MAX_NORM:.0e})", names)
        return vectors

    @staticmethod
    def _refuse(bad: np.ndarray, what: str, fault: str, names: Sequence[str] | None) -> None:
        rows = np.flatnonzero(bad).tolist()
        if rows:
            named = [names[row] for row in rows] if names is not None and len(names) == len(bad) else rows
            raise ValueError(f"{len(rows)} of {len(bad)} {what} {fault}: {_some(named)}")


def _checked_ids(ids: Iterable[str]) -> list[str]:
    if isinstance(ids, str):
        raise ValueError(f"ids must be a sequence of strings, got the single string {ids!r}: pass [{ids!r}]")
    ids = list(ids)
    for row, id in enumerate(ids):
        if not isinstance(id, str):
            raise ValueError(f"ids must be strings, got {type(id).__name__} {id!r} at position {row}: use str(id)")
    return [str(id) for id in ids]  # numpy strings become plain ones


def _checked_camids(camids: Sequence[int] | None, size: int, what: str) -> np.ndarray:
    if camids is None:
        return np.full(size, -1, np.int64)
    camids = np.asarray(camids)
    if camids.shape != (size,) or (size and not np.issubdtype(camids.dtype, np.integer)):
        raise ValueError(f"there must be one whole camera number per {what}: {size}, got {camids.dtype} {camids.shape}")
    return camids.astype(np.int64)


def _some(names: Sequence, count: int = 5) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(repr(name) for name in names[:count]) + more
