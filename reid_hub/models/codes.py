"""Codecs: how a gallery stores vectors. Each codec is one class and one entry in `CODECS`.

The model, the index and the evaluation all use this module to encode, decode and count bytes.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

LEVELS = 127  # int8 codes range from -127 to 127, so that negating a vector negates its codes
SMALLEST = float(np.finfo(np.float32).tiny)  # smallest scale, for all-zero vectors

PIECE = 1024  # rows encoded at a time, to fit in the cache


def int8_steps(vectors: Tensor, scale: Tensor | float) -> Tensor:
    """clamp(round(v / scale), -127, 127), integers in the dtype of the vectors; rounds half to even."""
    return (vectors / scale).round_().clamp_(-LEVELS, LEVELS)


def int8_codes(vectors: Tensor, scale: Tensor | float) -> Tensor:
    """`int8_steps` as stored: (N, D) -> (N, D) int8."""
    return int8_steps(vectors.float(), scale).to(torch.int8)


def vector_scale(vectors: Tensor) -> Tensor:
    """The int8 scale of each vector, max |v| / 127: (N, D) -> (N, 1)."""
    return (vectors.detach().float().abs().amax(-1, keepdim=True) / LEVELS).clamp_(min=SMALLEST)


class Codec:
    """Encode vectors of length `dim` to codes, and decode codes to approximate vectors.

    A subclass defines `encode` and `decode`, and `state` if it has parameters. The index compares float queries with
    decoded codes by its metric, unless it has a faster implementation for the codec (`reid_hub/index/columns.py`).

    Attributes:
        name: key in `CODECS`.
        dtype: dtype of the codes.
        unit: whether vectors are scaled to unit length before encoding, under cosine.
        coarse: whether the codes only find candidates; an index may store a second, finer code to re-rank them.
    """

    name: str
    dtype: np.dtype
    unit = False
    coarse = False

    def __init__(self, dim: int):
        self.dim = dim

    @property
    def width(self) -> int:
        """Number of `dtype` values in the code of one vector."""
        return self.dim

    @property
    def bytes_per_vector(self) -> int:
        return self.width * self.dtype.itemsize

    def state(self) -> dict[str, Any]:
        """Parameters such that `type(codec)(codec.dim, **codec.state())` is an equal codec. Arrays are float32.

        An index stores the parameters of its coarse and fine codec in one table, so their names must differ.
        """
        return {}

    def encode(self, vectors: Tensor | np.ndarray) -> np.ndarray:
        """Encode finite vectors (N, D), on any device, to codes (N, width)."""
        raise NotImplementedError

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Decode codes (N, width) to float32 vectors (N, D)."""
        raise NotImplementedError

    def approximate(self, vectors: Tensor | np.ndarray) -> np.ndarray:
        """Encode and decode vectors (N, D) -> float32 (N, D)."""
        return self.decode(self.encode(vectors))

    def faults(self, codes: np.ndarray, vectors: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, str]]:
        """Yield masks (N,) bool of rows that are invalid codes or lose their vector, each with a description.

        Args:
            vectors: the encoded vectors, (N, D); None if the codes were not encoded here.
        """
        yield from ()


class Float32(Codec):
    """The vector itself."""

    name, dtype, unit = "float32", np.dtype(np.float32), True

    def encode(self, vectors):
        return _float32(vectors).cpu().numpy()

    def decode(self, codes):
        return codes


class Float16(Codec):
    """Half precision, rounded to nearest even."""

    name, dtype, unit = "float16", np.dtype(np.float16), True

    def encode(self, vectors):
        return _float32(vectors).half().cpu().numpy()

    def decode(self, codes):
        return torch.from_numpy(codes).float().numpy()  # several times faster than in numpy

    def faults(self, codes, vectors=None):
        yield ~np.isfinite(codes).all(1), "have values beyond float16 (65,504): use float32"
        if vectors is not None:
            yield ~codes.any(1) & vectors.any(1), "vanish in float16: use float32"


class Int8(Codec):
    """Symmetric int8: q = clamp(round_half_even(v / scale), -127, 127), v = q * scale (arXiv:2405.14730).

    Args:
        scale: shared by all vectors, a number or (D,); None gives each vector its own, max |v| / 127, which is not
            stored, so codes decode only to the vector's direction.

    Raises:
        ValueError: if the scale is not positive or has another shape.
    """

    name, dtype = "int8", np.dtype(np.int8)

    def __init__(self, dim: int, scale: float | np.ndarray | None = None):
        super().__init__(dim)
        self.scale = None if scale is None else np.array(scale, np.float32)
        if self.scale is not None and (
            self.scale.shape not in ((), (1,), (dim,)) or not (np.isfinite(self.scale) & (self.scale > 0)).all()
        ):
            raise ValueError(f"scale must be a positive number or {dim} of them, got {scale!r}")
        if self.scale is not None and self.scale.shape == (1,):
            self.scale = self.scale.reshape(())

    def state(self):
        return {} if self.scale is None else {"scale": self.scale}

    def encode(self, vectors):
        pieces = _float32(vectors).split(PIECE)
        return np.concatenate([int8_codes(rows, self._scale_of(rows)).cpu().numpy() for rows in pieces])

    def decode(self, codes):
        return codes.astype(np.float32) if self.scale is None else codes.astype(np.float32) * self.scale

    def approximate(self, vectors):
        decoded = super().approximate(vectors)
        return decoded if self.scale is not None else decoded * vector_scale(_float32(vectors)).cpu().numpy()

    def faults(self, codes, vectors=None):
        if vectors is None:
            yield (codes == -128).any(1), "hold -128, which no symmetric code is (-127..127)"

    def _scale_of(self, vectors: Tensor) -> Tensor:
        return vector_scale(vectors) if self.scale is None else torch.as_tensor(self.scale, device=vectors.device)


class Binary(Codec):
    """One bit per dimension, v > center, packed eight to a byte, most significant first; decodes to 1 and -1.

    Args:
        center: threshold of the bits, a number or (D,).

    Raises:
        ValueError: if the center is not finite or has another shape.
    """

    name, dtype, coarse = "binary", np.dtype(np.uint8), True

    def __init__(self, dim: int, center: float | np.ndarray = 0.0):
        super().__init__(dim)
        self.center = np.array(center, np.float32)
        if self.center.shape not in ((), (dim,)) or not np.isfinite(self.center).all():
            raise ValueError(f"center must be a number or {dim} of them, got {center!r}")

    @property
    def width(self):
        return -(-self.dim // 8)

    def state(self):
        return {"center": self.center}

    def encode(self, vectors):
        return np.packbits(_float32(vectors).cpu().numpy() > self.center, axis=1)

    def decode(self, codes):
        return np.unpackbits(codes, axis=1, count=self.dim).astype(np.float32) * 2 - 1

    def faults(self, codes, vectors=None):
        if vectors is None and self.dim % 8:
            yield (codes[:, -1] & (0xFF >> self.dim % 8)) > 0, f"have bits beyond dim {self.dim} set"


CODECS: dict[str, type[Codec]] = {codec.name: codec for codec in (Float32, Float16, Int8, Binary)}
# Storage formats of a gallery: one codec, or a coarse one and a finer one that re-ranks its candidates ("binary+int8").
STORED_AS = [
    *CODECS,
    *(f"{coarse}+{fine}" for coarse in CODECS for fine in CODECS if CODECS[coarse].coarse and not CODECS[fine].coarse),
]


def bytes_per_vector(dim: int, stored_as: str) -> int:
    """Bytes per stored vector for an entry of `STORED_AS`."""
    return sum(CODECS[name](dim).bytes_per_vector for name in stored_as.split("+"))


def _float32(vectors: Tensor | np.ndarray) -> Tensor:
    """A float32 tensor on the vectors' device, without a copy if possible."""
    return torch.as_tensor(vectors).detach().float()
