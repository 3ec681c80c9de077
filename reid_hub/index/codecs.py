"""How a gallery vector is stored: one class and one line in `CODECS` per form.

A codec says which columns are kept for each vector and how a query is compared with them (`scores.py`).
"""

from collections.abc import Mapping
from inspect import signature
from typing import Any

import numpy as np
import torch

from reid_hub.index.checks import MAX_NORM, refuse
from reid_hub.index.scores import FloatScores, HammingScores, IntegerScores, Scores
from reid_hub.registry import lookup

Columns = dict[str, np.ndarray]
Layout = dict[str, tuple[np.dtype, tuple[int, ...]]]
KEPT = "rescore_"  # columns of the vectors that are kept beside the bits


class Codec:
    """A form of storage. `codes` is the column that holds the vector; `layout` tells all columns.

    Attributes:
        code_dtype: dtype of embeddings that are taken as codes, None where there is no such thing.
    """

    name: str
    dtype: np.dtype
    code_dtype: np.dtype | None = None
    rescore: "Codec | None" = None

    def __init__(self, dim: int, metric: str):
        self.dim, self.metric = dim, metric

    @property
    def width(self) -> int:
        """Number of `dtype` values in the codes of one vector."""
        return self.dim

    def layout(self) -> Layout:
        """Columns by name: dtype, and shape of what each vector has."""
        return {"codes": (self.dtype, (self.width,))}

    def options(self) -> dict[str, Any]:
        """What besides name, dim and metric makes this codec anew, as JSON holds it."""
        return {}

    def encode(self, vectors: np.ndarray, what: str = "embeddings", names=None) -> Columns:
        """Finite float32 (N, D), or codes of `code_dtype` (N, width), -> the columns of the layout.

        Raises:
            ValueError: for vectors that the metric cannot compare.
        """
        return {"codes": self._codes(vectors, what, names)}

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Codes (N, width) -> float32 (N, D)."""
        raise NotImplementedError

    def scores(self, queries: np.ndarray, backend: str) -> Scores:
        """Compares queries, float32 (Q, D) or codes, with the columns of a block."""
        raise NotImplementedError

    def _codes(self, vectors: np.ndarray, what: str, names) -> np.ndarray:
        raise NotImplementedError

    def _comparable(self, vectors: np.ndarray, what: str, names=None) -> np.ndarray:
        """Unit length for cosine; refused where there is no direction, or float32 distances would overflow."""
        norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
        if self.metric == "euclidean":
            refuse(norms > MAX_NORM, what, f"are too long for float32 distances (over {MAX_NORM:.0e})", names)
            return vectors
        refuse(norms == 0, what, "are all zero, so they have no direction for cosine", names)
        return (vectors / norms[:, None]).astype(np.float32)


class Float32(Codec):
    """The vector itself, of unit length for cosine."""

    name, dtype = "float32", np.dtype(np.float32)

    def _codes(self, vectors, what, names):
        return self._comparable(vectors, what, names)

    def decode(self, codes):
        return codes

    def scores(self, queries, backend):
        return FloatScores(self._comparable(queries, "queries"), None, self.metric, backend)


class Float16(Codec):
    """Half precision, of unit length before rounding for cosine; compared after decoding to float32."""

    name, dtype = "float16", np.dtype(np.float16)

    def _codes(self, vectors, what, names):
        with np.errstate(over="ignore"):
            codes = self._comparable(vectors, what, names).astype(np.float16)
        refuse(~np.isfinite(codes).all(1), what, "have values beyond float16 (65,504): use float32", names)
        refuse(~codes.any(1) & vectors.any(1), what, "vanish in float16: use float32", names)
        return codes

    def decode(self, codes):
        return torch.from_numpy(codes).float().numpy()  # several times faster than numpy

    def scores(self, queries, backend):
        return FloatScores(self._comparable(queries, "queries"), self.decode, self.metric, backend)


class Int8(Codec):
    """Symmetric int8: q = clamp(round_half_even(v / scale), -127, 127), v = q * scale, the same for queries.

    Before any normalisation, as quantisation-aware training does it (arXiv:2405.14730). With one scale for all, or
    one for each vector (which cancels under cosine), distances come from whole numbers: `squares`, the squared
    length of the codes, is kept beside them to save time. A scale for each dimension is decided in float64.

    Args:
        scale: float (the model's trained scale), array (D,), or None for max|v| / 127 of each vector (cosine only).
    """

    name, dtype, code_dtype = "int8", np.dtype(np.int8), np.dtype(np.int8)

    def __init__(self, dim: int, metric: str, scale: float | np.ndarray | None = None):
        super().__init__(dim, metric)
        if scale is None and metric == "euclidean":
            raise ValueError(
                "int8 under the euclidean metric needs a scale for all vectors: give scale, the model's trained one or "
                "max|v| / 127 over a training set; or use metric='cosine', where each vector's own scale cancels"
            )
        self.scale = None if scale is None else np.array(scale, np.float32)
        if scale is not None and (
            self.scale.shape not in ((), (1,), (dim,)) or not (np.isfinite(self.scale) & (self.scale > 0)).all()
        ):
            raise ValueError(f"scale must be a positive number or {dim} of them, got {scale!r}")
        if scale is not None and self.scale.shape == (1,):
            self.scale = self.scale[0]

    @property
    def whole(self) -> bool:
        """Whether distances are functions of whole numbers."""
        return self.scale is None or self.scale.ndim == 0

    def layout(self):
        return {"squares": (np.dtype(np.int32), ()), **super().layout()} if self.whole else super().layout()

    def options(self):
        return {} if self.scale is None else {"scale": self.scale.tolist()}

    def encode(self, vectors, what="embeddings", names=None):
        codes = self._codes(vectors, what, names)
        if not self.whole:
            return {"codes": codes}
        squares = np.empty(len(codes), np.int32)
        for start in range(0, len(codes), 4096):
            block = codes[start : start + 4096].astype(np.int32)
            squares[start : start + 4096] = np.einsum("nd,nd->n", block, block)
        return {"squares": squares, "codes": codes}

    def _codes(self, vectors, what, names):
        if vectors.dtype == np.int8:
            refuse((vectors == -128).any(1), what, "hold -128, which no symmetric code is (-127..127)", names)
            codes = vectors
        else:
            if self.scale is None:
                refuse(~vectors.any(1), what, "are all zero, so they have no direction for cosine", names)
            scale = np.abs(vectors).max(1, keepdims=True) / np.float32(127) if self.scale is None else self.scale
            with np.errstate(over="ignore"):
                codes = np.clip(np.rint(vectors / np.maximum(scale, np.finfo(np.float32).tiny)), -127, 127)
            codes = codes.astype(np.int8)
        if self.metric == "cosine":
            refuse(~codes.any(1), what, "are all zero in int8, so they have no direction: is the scale right?", names)
        return codes

    def decode(self, codes):
        return codes.astype(np.float32) if self.scale is None else codes.astype(np.float32) * self.scale

    def scores(self, queries, backend):
        codes = self._codes(queries, "queries", None)
        if self.whole:
            return IntegerScores(codes, 1.0 if self.scale is None else float(self.scale), self.metric)
        return FloatScores(self.decode(codes), self.decode, self.metric, backend)


class Binary(Codec):
    """One bit for each dimension, v > center, eight to a byte in the order of `np.packbits`; Hamming distance.

    Args:
        center: float or array (D,) that values are compared with.
        rescore: codec in which the vectors themselves are kept beside the bits, or None. Then the `rescore_factor`
            * k nearest by Hamming distance (the first added among equals) are ranked again by the metric's distance.
        scale: of the rescoring codec, where that is int8.
    """

    name, dtype = "binary", np.dtype(np.uint8)

    def __init__(
        self, dim: int, metric: str, center=None, rescore: str | None = None, rescore_factor: int = 20, scale=None
    ):
        super().__init__(dim, metric)
        self.center = np.array(0 if center is None else center, np.float32)
        if self.center.shape not in ((), (dim,)) or not np.isfinite(self.center).all():
            raise ValueError(f"center must be a number or {dim} of them, got {center!r}")
        if rescore_factor < 1:
            raise ValueError(f"rescore_factor must be at least 1, got {rescore_factor}")
        if scale is not None and rescore != "int8":
            raise ValueError(f"scale is for rescore='int8', got rescore={rescore!r}: leave it out")
        self.rescore_factor = rescore_factor
        self.rescore = None if rescore is None else make_codec(rescore, dim, metric, RESCORE_CODECS, scale=scale)
        self.code_dtype = np.dtype(np.uint8) if rescore is None else None

    @property
    def width(self):
        return -(-self.dim // 8)

    def layout(self):
        kept = {} if self.rescore is None else {KEPT + name: form for name, form in self.rescore.layout().items()}
        return {**kept, **super().layout()}

    def options(self):
        options = {"center": self.center.tolist()}
        if self.rescore is not None:
            options |= {"rescore": self.rescore.name, "rescore_factor": self.rescore_factor, **self.rescore.options()}
        return options

    def encode(self, vectors, what="embeddings", names=None):
        columns = {"codes": self._codes(vectors, what, names)}
        if self.rescore is not None:
            kept = self.rescore.encode(vectors, what, names)
            columns |= {KEPT + name: column for name, column in kept.items()}
        return columns

    def _codes(self, vectors, what, names):
        if vectors.dtype != np.uint8:
            return np.packbits(vectors > self.center, axis=1)
        if self.dim % 8:
            refuse((vectors[:, -1] & (0xFF >> self.dim % 8)) > 0, what, f"have bits beyond dim {self.dim} set", names)
        return vectors

    def decode(self, codes):
        return np.unpackbits(codes, axis=1, count=self.dim).astype(np.float32) * 2 - 1

    def scores(self, queries, backend):
        return HammingScores(self._codes(queries, "queries", None), backend)


CODECS: dict[str, type[Codec]] = {codec.name: codec for codec in (Float32, Float16, Int8, Binary)}
RESCORE_CODECS = {name: CODECS[name] for name in ("float32", "float16", "int8")}


def make_codec(name: str, dim: int, metric: str, table: Mapping[str, type[Codec]] = CODECS, **options) -> Codec:
    """The codec `name` with those `options` that are not None.

    Raises:
        ValueError: for an unknown name, or an option that the codec does not have.
    """
    codec = lookup(table, name, "index codec" if table is CODECS else "rescore codec")
    given = {key: value for key, value in options.items() if value is not None}
    known = [option for option in signature(codec).parameters if option not in ("dim", "metric")]
    unknown = sorted(given.keys() - set(known))
    if unknown:
        raise ValueError(
            f"the codec {name!r} has no {', '.join(unknown)}: "
            + (f"it takes {', '.join(known)}" if known else "leave it out")
        )
    return codec(dim, metric, **given)
