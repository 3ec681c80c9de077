"""Columns: how the index stores the codes of a codec and compares queries with them.

The codecs themselves are in `reid_hub/models/codes.py`. `Columns` works with all of them; a subclass with an entry in
`COLUMNS` implements a faster comparison than decoding.
"""

from collections.abc import Mapping
from inspect import signature
from typing import Any, NamedTuple

import numpy as np

from reid_hub.errors import ReIDError
from reid_hub.index.checks import MAX_NORM, refuse, unit_rows
from reid_hub.index.parts import Layout
from reid_hub.index.scores import FloatScores, HammingScores, IntegerScores, Scores
from reid_hub.models.codes import CODECS, Binary, Codec, Float32, Int8
from reid_hub.registry import lookup

KEPT = "rescore_"  # prefix of the columns of finer codes, stored next to coarse ones


class Columns:
    """The codes of a codec; float queries are compared with decoded codes.

    Args:
        metric: "cosine" or "euclidean".
    """

    def __init__(self, codec: Codec, metric: str):
        self.codec, self.metric = codec, metric

    @property
    def code_dtype(self) -> np.dtype | None:
        """dtype of input arrays that are codes; None if codes are floats, since float input is taken as vectors."""
        return None if self.codec.dtype.kind == "f" else self.codec.dtype

    def layout(self) -> Layout:
        """Columns by name: dtype, and shape per vector."""
        return {"codes": (self.codec.dtype, (self.codec.width,))}

    def encode(self, vectors: np.ndarray, what: str = "embeddings", names=None) -> dict[str, np.ndarray]:
        """Encode finite float32 vectors (N, D), or codes of `code_dtype` (N, width), to the columns of the layout.

        Args:
            what: name of the input, for messages.
            names: names of the rows, for messages.

        Raises:
            ReIDError: if the codec cannot represent a vector or the metric cannot compare it.
        """
        return {"codes": self._codes(vectors, what, names)}

    def scores(self, queries: np.ndarray, backend: str) -> Scores:
        """Prepare queries, float32 (Q, D) or codes, for comparison with the columns of a block."""
        if queries.dtype == self.code_dtype:
            queries = self.codec.decode(self._codes(queries, "queries"))
        decode = None if isinstance(self.codec, Float32) else self.codec.decode
        return FloatScores(self._comparable(queries, "queries"), decode, self.metric, backend)

    def _codes(self, vectors: np.ndarray, what: str, names=None) -> np.ndarray:
        if vectors.dtype == self.code_dtype:
            codes, vectors = vectors, None
        else:
            vectors = self._comparable(vectors, what, names) if self.codec.unit else vectors
            codes = self.codec.encode(vectors)
        for rows, fault in self.codec.faults(codes, vectors):
            refuse(rows, what, fault, names)
        return codes

    def _comparable(self, vectors: np.ndarray, what: str, names=None) -> np.ndarray:
        """Scale to unit length for cosine; reject zero vectors (cosine) and vectors too long for float32 distances."""
        if self.metric == "cosine":
            vectors, zero = unit_rows(vectors)
            refuse(zero, what, "are all zero, so they have no direction for cosine", names)
        else:
            squares = np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64)
            refuse(squares > MAX_NORM**2, what, f"are too long for float32 distances (over {MAX_NORM:.0e})", names)
        return vectors


class Int8Columns(Columns):
    """int8 codes; queries are encoded too.

    With a single scale, or one per vector (which cancels under cosine), distances are computed from integers:
    `squares`, the squared length of the codes, is stored with them to save time. With one scale per dimension, exact
    distances are computed in float64.

    Raises:
        ReIDError: for one scale per vector under the euclidean metric.
    """

    codec: Int8

    def __init__(self, codec: Int8, metric: str):
        super().__init__(codec, metric)
        if codec.scale is None and metric == "euclidean":
            raise ReIDError(
                "int8 under the euclidean metric needs a scale for all vectors: give scale, the model's trained one or "
                "max|v| / 127 over a training set; or use metric='cosine', where each vector's own scale cancels"
            )

    @property
    def whole(self) -> bool:
        """Whether distances are functions of integers."""
        return self.codec.scale is None or self.codec.scale.ndim == 0

    def layout(self):
        return {"squares": (np.dtype(np.int32), ()), **super().layout()} if self.whole else super().layout()

    def encode(self, vectors, what="embeddings", names=None):
        codes = self._codes(vectors, what, names)
        if not self.whole:
            return {"codes": codes}
        squares = np.empty(len(codes), np.int32)
        for start in range(0, len(codes), 4096):
            block = codes[start : start + 4096].astype(np.int32)
            squares[start : start + 4096] = np.einsum("nd,nd->n", block, block)
        return {"squares": squares, "codes": codes}

    def scores(self, queries, backend):
        codes = self._codes(queries, "queries")
        if self.whole:
            return IntegerScores(codes, 1.0 if self.codec.scale is None else float(self.codec.scale), self.metric)
        return FloatScores(self.codec.decode(codes), self.codec.decode, self.metric, backend)

    def _codes(self, vectors, what, names=None):
        if self.codec.scale is None and vectors.dtype != self.code_dtype:
            refuse(~vectors.any(1), what, "are all zero, so they have no direction for cosine", names)
        codes = super()._codes(vectors, what, names)
        if self.metric == "cosine":
            refuse(~codes.any(1), what, "are all zero in int8, so they have no direction: is the scale right?", names)
        return codes


class BinaryColumns(Columns):
    """Bits, compared by Hamming distance; queries are encoded too."""

    def scores(self, queries, backend):
        return HammingScores(self._codes(queries, "queries"), backend)


COLUMNS: dict[type[Codec], type[Columns]] = {Int8: Int8Columns, Binary: BinaryColumns}


def columns_for(codec: Codec, metric: str) -> Columns:
    return COLUMNS.get(type(codec), Columns)(codec, metric)


class Codecs(NamedTuple):
    """The codec of an index; if it is coarse, also the codec that re-ranks `rescore_factor` * k candidates, or None."""

    codec: Codec
    rescore: Codec | None
    rescore_factor: int


def make_codecs(codec: str | Codec, dim: int, options: Mapping[str, Any]) -> Codecs:
    """Build the codecs of an index.

    Args:
        codec: a codec, or a key of `CODECS`.
        options: "rescore" (a codec or a key), "rescore_factor" (20), and parameters of codecs given by key; None means
            not given.

    Raises:
        ReIDError: for an unknown name, a codec of another dimension, or an option that neither codec has.
        ValueError: if a codec rejects a parameter.
    """
    left = {name: value for name, value in options.items() if value is not None}
    first = _made(codec, CODECS, "index codec", dim, left)
    second, factor = None, 20
    if first.coarse:
        second, factor = left.pop("rescore", None), left.pop("rescore_factor", factor)
        if factor < 1:
            raise ReIDError(f"rescore_factor must be at least 1, got {factor}")
    fine = {name: kind for name, kind in CODECS.items() if not kind.coarse}
    if second is not None:
        second = _made(second, fine, "rescore codec", dim, left)
    if left:
        takers = [name for name, kind in fine.items() if left.keys() <= set(_parameters(kind))]
        known, names = _parameters(type(first)), ", ".join(left)
        advice = f"it takes {', '.join(known)}" if known else "leave it out"
        if first.coarse and takers:
            advice = f"{names} is for rescore={' or '.join(map(repr, takers))}"
        raise ReIDError(f"the codec {first.name!r} has no {names}: {advice}")
    return Codecs(first, second, factor)


def options_of(codecs: Codecs) -> dict[str, Any]:
    """The `options` of `make_codecs` that rebuild these codecs, as JSON types."""
    options = codecs.codec.state()
    if codecs.rescore is not None:
        options |= {"rescore": codecs.rescore.name, "rescore_factor": codecs.rescore_factor, **codecs.rescore.state()}
    return {name: np.asarray(value).tolist() for name, value in options.items()}


def _made(codec: str | Codec, table: Mapping[str, type[Codec]], kind: str, dim: int, options: dict[str, Any]) -> Codec:
    """Return or build the codec; removes the parameters it uses from `options`."""
    made = lookup(table, codec.name if isinstance(codec, Codec) else codec, kind)
    if not isinstance(codec, Codec):
        return made(dim, **{name: options.pop(name) for name in _parameters(made) if name in options})
    if codec.dim != dim:
        raise ReIDError(f"the codec must be of {dim} dimensions like the index, got {codec.dim}")
    return codec


def _parameters(codec: type[Codec]) -> list[str]:
    return [name for name in signature(codec).parameters if name != "dim"]
