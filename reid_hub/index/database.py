"""`DatabaseIndex`: a gallery in a Milvus vector database, for use from several machines.

As in `search.py`, results are ranked by exact distances: the database returns a few more than `k` neighbours with their
vectors, and their distances are recomputed in float64.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from reid_hub.errors import ReIDError
from reid_hub.index.checks import METRICS, checked_array, checked_camids, checked_ids, checked_metadata, some
from reid_hub.index.columns import columns_for
from reid_hub.index.milvus import MilvusCollection
from reid_hub.index.scores import Scores
from reid_hub.models.codes import Float32
from reid_hub.registry import lookup

CODECS = {"float32": Float32}
MAX_RESULTS = 16_384  # limit of Milvus per query
EXTRA_CANDIDATES = 32  # as in search.py
SEARCH_VALUES = 1_000_000  # values in one answer: 4 MB on the wire, more as Python floats
WRITE_VALUES = 2_000_000  # values in one write: 8 MB of the 64 MB that Milvus accepts
KEYS = 1000  # ids in one filter


class DatabaseIndex:
    """A gallery of embeddings with string ids in one collection of a Milvus database.

    Results and distances are those of `GalleryIndex`, except that ties are ordered by id. Changes are visible to the
    next search of any client. An interrupted write leaves only complete entries; its error reports how many. Two
    programs must not add the same id at the same time: the later one would silently overwrite the other.

    Args:
        uri: "http://host:19530" of a server or cluster, or a path ending in ".db" for the embedded database, which only
            one process at a time can open.
        collection: letters, digits and underscores; created if it does not exist.
        dim: length of an embedding; None uses that of an existing collection.
        codec: only "float32"; use the database's own index types for compression.
        metric: "cosine" or "euclidean".
        fingerprint: identifies the model of the embeddings; None uses that of an existing collection.
        index_type: index of a new collection. "FLAT" is exact; "HNSW" and other types of Milvus are faster and may miss
            neighbours, but the distances they return are exact.
        token: "user:password" or an API key.
        timeout: seconds to wait for the answer to a request.

    Raises:
        ValueError: for an invalid address or name, or a collection with other settings.
        RuntimeError: if pymilvus or the embedded database is not installed, or the database refuses a request.
        ConnectionError: if no database answers in time.
    """

    def __init__(
        self,
        uri: str | Path,
        collection: str = "gallery",
        dim: int | None = None,
        codec: str = "float32",
        metric: str = "cosine",
        *,
        fingerprint: str | None = None,
        index_type: str = "FLAT",
        token: str = "",
        timeout: float = 30.0,
    ):
        if dim is not None and dim < 1:
            raise ReIDError(f"dim must be at least 1, got {dim}")
        lookup(METRICS, metric, "metric")
        lookup(CODECS, codec, "codec of a database")
        self._collection = MilvusCollection(str(uri), collection, token, timeout)
        wanted = {"dim": dim, "codec": codec, "metric": metric, "fingerprint": fingerprint}
        if not self._collection.ask("has_collection"):
            if dim is None:
                raise ReIDError(f"there is no collection {collection!r} in {uri}: give dim to create it")
            self._collection.create(wanted, index_type)
        settings = self._collection.settings()
        for name, value in wanted.items():
            if value is not None and value != settings[name]:
                raise ReIDError(
                    f"the collection {collection!r} in {uri} has {name}={settings[name]!r}, not {value!r}: "
                    "distances between different models mean nothing; use its own, or another collection"
                )
        self.dim, self.metric, self.fingerprint = settings["dim"], settings["metric"], settings["fingerprint"]
        self.codec = CODECS[settings["codec"]](self.dim)
        self._columns = columns_for(self.codec, self.metric)
        self._collection.ask("load_collection")  # a restarted server has not

    def __len__(self) -> int:
        return int(self._collection.ask("query", filter="", output_fields=["count(*)"])[0]["count(*)"])

    def __contains__(self, id: str) -> bool:
        return isinstance(id, str) and id in self._stored([id], ["id"])

    def add(
        self,
        embeddings,
        ids: Iterable[str],
        camids: Sequence[int] | None = None,
        metadata: Iterable[Mapping] | None = None,
    ) -> None:
        """Add embeddings (N, D) under N new ids; on an error nothing is added.

        Args:
            camids: camera of each image, -1 or None if unknown.
            metadata: one mapping per id that JSON can hold; the database can filter by it.

        Raises:
            ValueError: on a wrong shape, NaN/Inf, a vector without a direction (cosine), a repeated or known id.
            ConnectionError, RuntimeError: if the database fails; the message says how many were stored.
        """
        ids, vectors = self._checked(embeddings, ids)
        camids = checked_camids([-1] * len(ids) if camids is None else camids, len(ids), "embedding")
        metadata = _plain([{}] * len(ids) if metadata is None else metadata, ids)
        known = self._stored(ids, ["id"])
        if known:
            raise ReIDError(f"already in the index: {some(list(known))}; use update, or choose other ids")
        self._write(vectors, ids, camids, metadata)

    def update(
        self,
        embeddings,
        ids: Iterable[str],
        camids: Sequence[int] | None = None,
        metadata: Iterable[Mapping] | None = None,
    ) -> None:
        """Replace the embeddings of known ids; cameras and metadata that are not given are kept.

        Raises:
            ValueError: as `add`, and if an id is not in the index; nothing is changed.
        """
        ids, vectors = self._checked(embeddings, ids)
        stored = self._known(ids, ["camid", "metadata"], "changed")
        if camids is None:
            camids = [entry["camid"] for entry in stored]
        metadata = [entry["metadata"] for entry in stored] if metadata is None else metadata
        self._write(vectors, ids, checked_camids(camids, len(ids), "embedding"), _plain(metadata, ids))

    def remove(self, ids: Iterable[str]) -> None:
        """Remove ids.

        Raises:
            ValueError: if an id is not in the index; then nothing is removed.
        """
        ids = checked_ids(ids)
        self._known(ids, ["id"], "removed")
        for start in range(0, len(ids), KEYS):
            self._collection.ask("delete", ids=[_key(id) for id in ids[start : start + KEYS]])

    def metadata(self, ids: Iterable[str]) -> list[dict]:
        """The metadata of each id.

        Raises:
            ValueError: if an id is not in the index.
        """
        return [entry["metadata"] for entry in self._known(checked_ids(ids), ["metadata"], "looked up")]

    def search(
        self, queries, k: int, *, exclude_camids: Sequence[int] | None = None, max_distance: float | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the `k` nearest gallery entries of each query: distances (Q, K) float32 and ids (Q, K) objects.

        K is min(k, len(self)). Where fewer are left, the rest of a row is distance inf and id None.

        Args:
            queries: (Q, D) array or tensor of floats.
            exclude_camids: one camera per query whose gallery entries are left out; -1 leaves nothing out.
                Entries of unknown camera are never left out.
            max_distance: leave out what is farther than this.

        Raises:
            ValueError: on an empty index, no queries, k < 1 or beyond the database's limit, a wrong shape, NaN/Inf.
            ConnectionError, RuntimeError: if the database fails.
        """
        size = len(self)
        if not size:
            raise ReIDError("the index is empty: add embeddings before searching")
        limit = MAX_RESULTS - EXTRA_CANDIDATES
        if k < 1 or min(k, size) > limit:
            raise ReIDError(f"k must be at least 1 and at most {limit} in a database, got {k}")
        if max_distance is not None and not max_distance >= 0:
            raise ReIDError(f"max_distance must be a distance, 0 or more, got {max_distance}")
        vectors = self._vectors(queries, "queries")
        if not len(vectors):
            raise ReIDError("queries must hold at least one row, got none")
        exclude_camids = [-1] * len(vectors) if exclude_camids is None else exclude_camids
        excluded = checked_camids(exclude_camids, len(vectors), "query")
        k, scores = min(k, size), self._columns.scores(vectors, "torch")
        distances = np.full((len(vectors), k), np.inf, np.float32)
        ids = np.full((len(vectors), k), None, object)
        for camid in np.unique(excluded):
            asked = np.flatnonzero(excluded == camid)
            for row, hits in zip(asked, self._hits(vectors[asked], k + EXTRA_CANDIDATES, camid), strict=True):
                nearest = _ranked(scores.part([row]), hits, k)
                distances[row, : len(nearest)] = [distance for distance, _ in nearest]
                ids[row, : len(nearest)] = [id for _, id in nearest]
        if max_distance is not None:
            far = distances > max_distance
            distances[far], ids[far] = np.inf, None
        return distances, ids

    def close(self) -> None:
        """Close the connection; an embedded database stays open in this process until it ends."""
        self._collection.client.close()

    def _hits(self, vectors: np.ndarray, width: int, camid: int) -> Iterator[list]:
        """Yield the hits of each query, with vectors, from requests with answers of bounded size."""
        rows = max(1, SEARCH_VALUES // (width * self.dim))
        for start in range(0, len(vectors), rows):
            yield from self._collection.ask(
                "search",
                data=list(vectors[start : start + rows]),
                anns_field="embedding",
                filter="" if camid == -1 else f"camid != {camid}",
                limit=width,
                output_fields=["id", "embedding"],
            )

    def _checked(self, embeddings, ids: Iterable[str]) -> tuple[list[str], np.ndarray]:
        ids = checked_ids(ids)
        vectors = self._vectors(embeddings, "embeddings", ids)
        if len(ids) != len(vectors):
            raise ReIDError(f"each embedding needs one id: got {len(vectors)} embeddings and {len(ids)} ids")
        return ids, vectors

    def _vectors(self, values, what: str, names: Sequence[str] | None = None) -> np.ndarray:
        """float32 (N, D) as stored: at unit length for cosine."""
        vectors = checked_array(values, self.dim, None, self.dim, what, names)
        return self._columns.encode(vectors, what, names)["codes"]

    def _stored(self, ids: Sequence[str], fields: list[str]) -> dict[str, dict]:
        """Entries by id, for those of the ids that are in the collection."""
        entries = {}
        for start in range(0, len(ids), KEYS):
            keys = [_key(id) for id in ids[start : start + KEYS]]
            entries |= {
                entry["id"]: entry for entry in self._collection.ask("get", ids=keys, output_fields=["id", *fields])
            }
        return entries

    def _known(self, ids: Sequence[str], fields: list[str], done: str) -> list[dict]:
        stored = self._stored(ids, fields)
        unknown = sorted(set(ids) - stored.keys())
        if unknown:
            raise ReIDError(f"not in the index: {some(unknown)}; nothing was {done}")
        return [stored[id] for id in ids]

    def _write(self, vectors: np.ndarray, ids: list[str], camids: np.ndarray, metadata: list[dict]) -> None:
        # upsert, not insert: if the client repeats a request after a lost answer, there is still only one entry.
        names = ("key", "id", "camid", "metadata", "embedding")
        columns = ([_key(id) for id in ids], ids, camids.tolist(), metadata, vectors)
        entries = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
        rows = max(1, WRITE_VALUES // self.dim)
        for start in range(0, len(entries), rows):
            try:
                self._collection.ask("upsert", data=entries[start : start + rows])
            except (ConnectionError, RuntimeError) as error:
                raise type(error)(f"{error}; the first {start} of {len(entries)} embeddings are stored") from error


def _ranked(scores: Scores, hits: list, k: int) -> list[tuple[float, str]]:
    """(distance, id) of the `k` nearest hits of one query, by exact distances as in `GalleryIndex`."""
    if not hits:
        return []
    found = np.array([hit["entity"]["embedding"] for hit in hits], np.float32)
    keys = scores.pair_keys({"codes": found}, np.array([0, len(found)]), k)
    distances = scores.distances(keys).tolist()
    return sorted(zip(distances, [hit["entity"]["id"] for hit in hits], strict=True))[:k]


def _plain(metadata: Iterable[Mapping], ids: Sequence[str]) -> list[dict]:
    return [json.loads(text or b"{}") for text in checked_metadata(metadata, ids)]


def _key(id: str) -> str:
    return hashlib.blake2b(id.encode(), digest_size=16).hexdigest()
