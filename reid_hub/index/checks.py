"""What every gallery asks of vectors, ids and cameras before it keeps or compares them."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

METRICS = dict.fromkeys(("cosine", "euclidean"))
MAX_NORM = 1e18  # (|q| + |v|)^2 must be a float32


def checked_vectors(values, dim: int, metric: str, what: str, names: Sequence[str] | None = None) -> np.ndarray:
    """Check and copy to contiguous float32 (N, dim), L2-normalised for cosine.

    Args:
        what: what the values are called in an error.
        names: one per row, to name the rows that are refused; None numbers them.

    Raises:
        ValueError: on a wrong shape, NaN/Inf, a vector without a direction (cosine) or too long for float32.
    """
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().float().numpy()
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf and is refused below
        vectors = np.array(values, np.float32, ndmin=1)
    if vectors.ndim != 2 or vectors.shape[1] != dim:
        raise ValueError(f"{what} must have the shape (N, {dim}), got {vectors.shape}")
    _refuse(~np.isfinite(vectors).all(1), what, "contain NaN or Inf", names)
    norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
    if metric == "cosine":
        _refuse(norms == 0, what, "are all zero, so they have no direction for cosine", names)
        vectors /= norms[:, None]
    else:
        _refuse(norms > MAX_NORM, what, f"are too long for float32 distances (over {MAX_NORM:.0e})", names)
    return vectors


def checked_ids(ids: Iterable[str]) -> list[str]:
    """Plain strings.

    Raises:
        ValueError: on one string in place of several, and on an id that is not a string.
    """
    if isinstance(ids, str):
        raise ValueError(f"ids must be a sequence of strings, got the single string {ids!r}: pass [{ids!r}]")
    ids = list(ids)
    for row, id in enumerate(ids):
        if not isinstance(id, str):
            raise ValueError(f"ids must be strings, got {type(id).__name__} {id!r} at position {row}: use str(id)")
    return [str(id) for id in ids]  # numpy strings become plain ones


def refuse_repeated(ids: Sequence[str]) -> None:
    """Raise a ValueError that names the ids given more than once."""
    repeated = [id for id, count in Counter(ids).items() if count > 1]
    if repeated:
        raise ValueError(f"ids must differ from each other: {some(repeated)} given more than once")


def checked_camids(camids: Sequence[int] | None, size: int, what: str) -> np.ndarray:
    """int64 (size,), -1 where `camids` is None.

    Raises:
        ValueError: if it is not one whole number per `what`.
    """
    if camids is None:
        return np.full(size, -1, np.int64)
    camids = np.asarray(camids)
    if camids.shape != (size,) or (size and not np.issubdtype(camids.dtype, np.integer)):
        raise ValueError(f"there must be one whole camera number per {what}: {size}, got {camids.dtype} {camids.shape}")
    return camids.astype(np.int64)


def some(names: Sequence, count: int = 5) -> str:
    """The first names and how many more there are, for an error."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(repr(name) for name in names[:count]) + more


def checked_metadata(metadata: Iterable[Mapping] | None, size: int) -> list[dict]:
    """Plain JSON objects, as they will be read back; empty ones where `metadata` is None.

    Raises:
        ValueError: if it is not one mapping per embedding, or one of them cannot be written as JSON.
    """
    if metadata is None:
        return [{} for _ in range(size)]
    metadata = list(metadata)
    if len(metadata) != size:
        raise ValueError(f"there must be one mapping of metadata per embedding: {size}, got {len(metadata)}")
    for row, entry in enumerate(metadata):
        if not isinstance(entry, Mapping):
            raise ValueError(f"metadata must be mappings, got {type(entry).__name__} at position {row}")
    try:
        return [json.loads(json.dumps(dict(entry), allow_nan=False)) for entry in metadata]
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata must be what JSON can hold: {error}") from error


def _refuse(bad: np.ndarray, what: str, fault: str, names: Sequence[str] | None) -> None:
    rows = np.flatnonzero(bad).tolist()
    if rows:
        named = [names[row] for row in rows] if names is not None and len(names) == len(bad) else rows
        raise ValueError(f"{len(rows)} of {len(bad)} {what} {fault}: {some(named)}")
