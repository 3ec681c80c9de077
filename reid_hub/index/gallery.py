"""`GalleryIndex`: vectors with ids, exact search, one folder on disk."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reid_hub.errors import ReIDError
from reid_hub.index.backends import checked_backend
from reid_hub.index.checks import METRICS, checked_array, checked_camids, checked_ids, checked_metadata, some
from reid_hub.index.columns import KEPT, Codecs, Layout, columns_for, make_codecs, options_of
from reid_hub.index.search import nearest, rescored
from reid_hub.index.storage import Stored, open_segments, read_manifest, write_index
from reid_hub.index.table import NOWHERE, Table
from reid_hub.models.codes import Codec
from reid_hub.registry import lookup


class GalleryIndex:
    """A gallery of embeddings under string ids, searched exactly.

    Distances are 1 - cos (0..2) for "cosine", |q - v| for "euclidean", and the number of bits that differ for the codec
    "binary" without `rescore`. Neighbours come in order of distance, ties in order of insertion. Results do not depend
    on the backend or on how the gallery was built (see `search.py`).

    Args:
        dim: length of an embedding.
        codec: how vectors are stored: a key of `CODECS`, or a codec, such as from `ReIDModel.codec`.
        metric: "cosine" or "euclidean".
        fingerprint: identifies the source of the embeddings, such as model and revision. It is stored with the index;
            `load` rejects an index whose fingerprint differs from a given one.
        backend: "torch" or "faiss" (extra `reid-hub[faiss]`; makes "binary" fast); results are the same.
        scale: for int8: the size of one step, a float (the model's trained scale) or (D,); None: one per vector.
        center: for binary: the threshold, a float or (D,); default 0.
        rescore: for binary: a second codec, float32, float16 or int8, whose codes re-rank the candidates.
        rescore_factor: for binary: re-rank the nearest `rescore_factor` * k by Hamming distance; default 20. The
            attribute may be changed later.

    Raises:
        ValueError: if `dim` is not positive, a name is unknown, or an option does not belong to the codec.
        RuntimeError: if faiss is requested but not installed.
    """

    def __init__(
        self,
        dim: int,
        codec: str | Codec = "float32",
        metric: str = "cosine",
        *,
        fingerprint: str | None = None,
        backend: str = "torch",
        scale: float | Sequence[float] | None = None,
        center: float | Sequence[float] | None = None,
        rescore: str | Codec | None = None,
        rescore_factor: int | None = None,
    ):
        if dim < 1:
            raise ReIDError(f"dim must be at least 1, got {dim}")
        lookup(METRICS, metric, "metric")
        options = {"scale": scale, "center": center, "rescore": rescore, "rescore_factor": rescore_factor}
        self.dim = dim
        self.codec, self.rescore, self.rescore_factor = make_codecs(codec, dim, options)
        self.metric = metric
        self._columns = columns_for(self.codec, metric)
        self._kept = None if self.rescore is None else columns_for(self.rescore, metric)
        self.fingerprint = fingerprint
        self._backend = checked_backend(backend)
        self._mmap = True
        self._stored: Stored | None = None
        self._table = Table([], self._layout())

    def __len__(self) -> int:
        return len(self._table)

    def __contains__(self, id: object) -> bool:
        return isinstance(id, str) and bool(self._table.find([id])[0] >= 0)

    @property
    def ids(self) -> list[str]:
        """All ids in order of insertion."""
        return self._table.all_ids()

    @property
    def bytes_per_vector(self) -> dict[str, int]:
        """Bytes per vector: "memory" (read by every search) and "disk" (read to re-rank candidates)."""
        return {
            "memory": self.codec.bytes_per_vector,
            "disk": 0 if self.rescore is None else self.rescore.bytes_per_vector,
        }

    def add(
        self,
        embeddings,
        ids: Iterable[str],
        camids: Sequence[int] | None = None,
        metadata: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        """Add embeddings (N, D) under N new ids; on an error nothing is added.

        Args:
            embeddings: array or tensor of floats; int8 codes (N, D) for int8, packed bits uint8 for binary.
            ids: any strings. To replace a vector, `update` it.
            camids: camera of each image, -1 or None if unknown.
            metadata: one JSON-serialisable mapping per id.

        Raises:
            ValueError: on a wrong shape, NaN/Inf, a vector without a direction (cosine), a repeated or known id.
        """
        ids, columns, camids, texts = self._checked(embeddings, ids, camids, metadata)
        known = [id for id, row in zip(ids, self._table.find(ids), strict=True) if row >= 0]
        if known:
            raise ReIDError(f"already in the index: {some(known)}; update or remove them, or choose other ids")
        self._table.add(columns, camids, ids, texts)

    def update(
        self,
        embeddings,
        ids: Iterable[str],
        camids: Sequence[int] | None = None,
        metadata: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        """Replace the embeddings of known ids and move them to the end; on an error nothing is changed.

        Args:
            camids, metadata: as for `add`; None keeps the current values.

        Raises:
            ValueError: as for `add`, and if an id is not in the index.
        """
        ids, columns, camids, texts = self._checked(embeddings, ids, camids, metadata)
        rows = self._known(ids)
        if camids is None:
            camids = self._table.camids(rows)
        texts = self._table.metadata(rows) if texts is None else texts
        self._table.remove(rows)
        self._table.add(columns, camids, ids, texts)

    def remove(self, ids: Iterable[str]) -> None:
        """Remove ids; the others keep their order.

        Raises:
            ValueError: if an id is not in the index; nothing is removed.
        """
        self._table.remove(self._known(ids))

    def metadata(self, ids: Iterable[str]) -> list[dict[str, Any]]:
        """Metadata of each id, {} if it has none.

        Raises:
            ValueError: if an id is not in the index.
        """
        return [json.loads(text or b"{}") for text in self._table.metadata(self._known(ids))]

    def search(
        self,
        queries,
        k: int,
        *,
        exclude_camids: Sequence[int] | None = None,
        max_distance: float | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the `k` nearest gallery entries of each query: distances (Q, K) float32 and ids (Q, K) objects.

        K is min(k, len(self)). If fewer than K entries qualify, the rest of the row is distance inf and id None.

        Args:
            queries: (Q, D) array or tensor of floats, or codes as `add` takes them.
            exclude_camids: one camera per query whose gallery entries are skipped (the same-camera rule of
                re-identification); -1 skips none. Entries of unknown camera are never skipped.
            max_distance: skip entries farther than this.

        Raises:
            ValueError: on an empty index, no queries, k < 1, a wrong shape, NaN/Inf, a query without a direction.
        """
        if not len(self):
            raise ReIDError("the index is empty: add embeddings before searching")
        if k < 1:
            raise ReIDError(f"k must be at least 1, got {k}")
        if max_distance is not None and not max_distance >= 0:
            raise ReIDError(f"max_distance must be a number from 0 on, got {max_distance}")
        vectors = self._array(queries, "queries")
        if not len(vectors):
            raise ReIDError("queries must hold at least one row, got none")
        excluded = checked_camids(exclude_camids, len(vectors), "query")
        k = min(k, len(self))
        parts = [part for part in self._table.parts if part.size]
        scores = self._columns.scores(vectors, self._backend)
        wanted = k if self._kept is None else min(k * self.rescore_factor, len(self))
        keys, rows = nearest(scores, parts, wanted, excluded)
        if self._kept is not None:
            scores = self._kept.scores(vectors, self._backend)
            keys, rows = rescored(scores, parts, rows, k, self.dim)
        distances = scores.distances(keys).astype(np.float32)
        rows[distances > (np.inf if max_distance is None else max_distance)] = NOWHERE
        distances[rows == NOWHERE] = np.inf
        return distances, self._table.ids(rows)

    def save(self, folder: str | Path, *, compact: bool = False) -> None:
        """Save the index to a folder; an index that is already there stays intact until the new one is complete.

        Saving to the folder it was loaded from or last saved to writes only what is new. From then on vectors are read
        from that folder, so keep it as long as the index is used.

        Args:
            compact: rewrite everything, without removed entries.

        Raises:
            ValueError: if `folder` holds other files, or another process has changed the index since.
        """
        settings = {
            "dim": self.dim,
            "codec": self.codec.name,
            "metric": self.metric,
            "fingerprint": self.fingerprint,
            "options": options_of(Codecs(self.codec, self.rescore, self.rescore_factor)),
        }
        layout = self._layout()
        self._stored = write_index(
            folder, settings, self._table.parts, layout, self._stored, compact=compact, mmap=self._mmap
        )
        self._table = Table(self._stored.segments, layout)

    def compact(self) -> None:
        """Free removed entries, also on disk, if the index was saved or loaded."""
        if self._stored is not None:
            self.save(self._stored.folder, compact=True)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        fingerprint: str | None = None,
        backend: str = "torch",
        mmap: bool = True,
        verify: bool = False,
    ) -> "GalleryIndex":
        """Open an index written by `save`.

        The manifest and headers are verified at once, the rest block by block when first read: a damaged block raises
        an error, it never gives a wrong result.

        Args:
            fingerprint: required fingerprint of the index; None accepts any.
            mmap: map the files, so that an index larger than memory opens in milliseconds; False: read everything.
            verify: verify everything now.

        Raises:
            FileNotFoundError: if the folder or one of its files is missing.
            ValueError: if it is not an index, is damaged, or has another fingerprint.
        """
        manifest = read_manifest(folder)
        made_with = manifest["fingerprint"]
        if fingerprint is not None and made_with != fingerprint:
            raise ReIDError(
                f"the index in {folder} was made with {made_with!r}, not with {fingerprint!r}: "
                "distances between different models mean nothing; embed the gallery again, or load its own model"
            )
        try:
            dim, options = manifest["dim"], manifest["options"]
            codec, rescore, _ = make_codecs(manifest["codec"], dim, options)
            index = cls(
                dim, codec, manifest["metric"], fingerprint=made_with, backend=backend,
                rescore=rescore, rescore_factor=options.get("rescore_factor"),
            )  # fmt: skip
        except (TypeError, ValueError) as error:
            raise ReIDError(f"{folder}: the manifest describes no index: {error}") from error
        index._mmap = mmap
        try:
            index._stored = open_segments(folder, manifest, index._layout(), mmap)
        except FileNotFoundError:
            if read_manifest(folder) == manifest:
                raise
            # Another process has saved since the manifest was read.
            return cls.load(folder, fingerprint=fingerprint, backend=backend, mmap=mmap, verify=verify)
        if verify:
            for segment in index._stored.segments:
                segment.file.verify()
        index._table = Table(index._stored.segments, index._layout())
        return index

    def _checked(self, embeddings, ids, camids, metadata):
        ids = checked_ids(ids)
        vectors = self._array(embeddings, "embeddings", ids)
        if len(ids) != len(vectors):
            raise ReIDError(f"each embedding needs one id: got {len(vectors)} embeddings and {len(ids)} ids")
        camids, texts = checked_camids(camids, len(ids), "embedding"), checked_metadata(metadata, ids)
        columns = self._columns.encode(vectors, "embeddings", ids)
        if self._kept is not None:
            kept = self._kept.encode(vectors, "embeddings", ids)
            columns |= {KEPT + name: column for name, column in kept.items()}
        return ids, columns, camids, texts

    def _array(self, values, what: str, names: Sequence[str] | None = None) -> np.ndarray:
        code_dtype = self._columns.code_dtype if self._kept is None else None
        return checked_array(values, self.dim, code_dtype, self.codec.width, what, names)

    def _layout(self) -> Layout:
        kept = {} if self._kept is None else {KEPT + name: form for name, form in self._kept.layout().items()}
        return {**kept, **self._columns.layout()}

    def _known(self, ids: Iterable[str]) -> np.ndarray:
        ids = checked_ids(ids)
        rows = self._table.find(ids)
        unknown = [id for id, row in zip(ids, rows, strict=True) if row < 0]
        if unknown:
            raise ReIDError(f"not in the index: {some(unknown)}; nothing was changed")
        return rows
