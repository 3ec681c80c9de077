"""Validation of input: vectors, codes, ids, cameras, metadata."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch

from reid_hub.errors import ReIDError
from reid_hub.models.codes import CODECS

METRICS = dict.fromkeys(("cosine", "euclidean"))
MAX_NORM = 1e18  # (|q| + |v|)^2 must be a float32
CHUNK = 2048


def to_numpy(values) -> np.ndarray:
    """A numpy view (or a copy, if no view is possible) of an array, a tensor on any device or a list."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    return np.asarray(values)


def unit_rows(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale rows (N, D) to unit length in float64; return new float32 rows and which are all zero, (N,) bool."""
    unit, zero = np.empty(rows.shape, np.float32), np.zeros(len(rows), bool)
    for some in chunks(len(rows)):
        wide = rows[some].astype(np.float64)
        lengths = np.sqrt(np.einsum("nd,nd->n", wide, wide))
        zero[some] = lengths == 0
        unit[some] = wide / np.where(lengths == 0, 1, lengths)[:, None]
    return unit, zero


def chunks(rows: int) -> Iterator[slice]:
    """Slices that cover all rows in pieces of `CHUNK`, to bound the memory of float64 copies."""
    return (slice(start, start + CHUNK) for start in range(0, rows, CHUNK))


def checked_array(values, dim: int, code_dtype: np.dtype | None, code_width: int, what: str, names=None) -> np.ndarray:
    """Embeddings as a new contiguous float32 array (N, dim), or codes of `code_dtype` (N, code_width).

    Raises:
        ValueError: for int8 or uint8 arrays that are not codes of this index, a wrong shape, NaN or Inf.
    """
    values = to_numpy(values)
    if values.dtype in (np.int8, np.uint8):
        if values.dtype != code_dtype:
            made_for = [codec for codec in CODECS.values() if codec.dtype == values.dtype]
            names = " or ".join(repr(codec.name) for codec in made_for)
            raise ReIDError(
                f"{what} of {values.dtype} are codes, which only an index of the codec {names} takes: make them "
                f"with precision='float32', or make the index with codec={names}"
                + (" and without rescore" if any(codec.coarse for codec in made_for) else "")
            )
        if values.ndim != 2 or values.shape[1] != code_width:
            raise ReIDError(f"{what} given as codes must have the shape (N, {code_width}), got {values.shape}")
        return np.array(values, order="C")
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf and is refused below
        vectors = np.array(values, np.float32, ndmin=1, order="C")
    if vectors.ndim != 2 or vectors.shape[1] != dim:
        raise ReIDError(
            f"{what} must have the shape (N, {dim}), got {vectors.shape}: use the model that the index is made for"
        )
    refuse(~np.isfinite(vectors).all(1), what, "contain NaN or Inf", names)
    return vectors


def refuse(bad: np.ndarray, what: str, fault: str, names: Sequence[str] | None = None) -> None:
    """Raise a ValueError that names the rows where `bad` (N,) is true, if there are any."""
    rows = np.flatnonzero(bad).tolist()
    if rows:
        named = [names[row] for row in rows] if names is not None and len(names) == len(bad) else rows
        raise ReIDError(f"{len(rows)} of {len(bad)} {what} {fault}: {some(named)}")


def checked_ids(ids: Iterable[str]) -> list[str]:
    """Check that ids are distinct strings; return them as plain `str`."""
    if isinstance(ids, str):
        raise ReIDError(f"ids must be a sequence of strings, got the single string {ids!r}: pass [{ids!r}]")
    ids = list(ids)
    for row, id in enumerate(ids):
        if not isinstance(id, str):
            raise ReIDError(f"ids must be strings, got {type(id).__name__} {id!r} at position {row}: use str(id)")
    ids = [str(id) for id in ids]  # numpy strings become plain ones
    if len(set(ids)) < len(ids):
        repeated = [id for id, count in Counter(ids).items() if count > 1]
        raise ReIDError(f"ids must differ from each other: {some(repeated)} given more than once")
    return ids


def checked_camids(camids: Sequence[int] | None, size: int, what: str) -> np.ndarray | None:
    """Return camera numbers as int64 (size,); None stays None."""
    if camids is None:
        return None
    cameras = np.asarray(camids)
    if cameras.shape != (size,) or (size and not np.issubdtype(cameras.dtype, np.integer)):
        raise ReIDError(
            f"there must be one whole camera number per {what}: {size}, got {cameras.dtype} {cameras.shape}"
        )
    return cameras.astype(np.int64)


def checked_metadata(metadata: Sequence[Mapping] | None, ids: Sequence[str]) -> list[bytes] | None:
    """Encode one mapping per id as JSON; None stays None, an empty mapping becomes b""."""
    if metadata is None:
        return None
    metadata = list(metadata)
    if len(metadata) != len(ids):
        raise ReIDError(f"there must be one metadata mapping per id: {len(ids)}, got {len(metadata)}")
    texts = []
    for id, entry in zip(ids, metadata, strict=True):
        try:
            if not isinstance(entry, Mapping):
                raise TypeError(f"it is a {type(entry).__name__}")
            text = json.dumps(dict(entry), allow_nan=False)
            if json.loads(text) != entry:
                raise TypeError("it would not come back from JSON as it is; use string keys and lists")
        except (TypeError, ValueError) as error:
            raise ReIDError(f"metadata must be a mapping that JSON can hold, that of {id!r} is not: {error}") from None
        texts.append(text.encode() if entry else b"")
    return texts


def some(names: Sequence, count: int = 5) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(repr(name) for name in names[:count]) + more
