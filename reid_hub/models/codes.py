"""Codes: what a gallery stores of a vector. One class and one entry in `CODECS` per codec.

The model, the index and the evaluation all encode, decode and count bytes here.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

LEVELS = 127  # int8 codes run from -127 to 127, so that the negative of a vector has the negative codes
SMALLEST = float(np.finfo(np.float32).tiny)  # a scale above zero, for vectors of zeros

PIECE = 1024  # rows encoded at a time, which caches hold


def int8_steps(vectors: Tensor, scale: Tensor | float) -> Tensor:
    """clamp(round(v / scale), -127, 127), whole numbers in the dtype of the vectors; halves round to the even one."""
    return (vectors / scale).round_().clamp_(-LEVELS, LEVELS)


def int8_codes(vectors: Tensor, scale: Tensor | float) -> Tensor:
    """`int8_steps` as they are stored: (N, D) -> (N, D) int8."""
    return int8_steps(vectors.float(), scale).to(torch.int8)


def vector_scale(vectors: Tensor) -> Tensor:
    """The int8 scale that suits each vector, max |v| / 127: (N, D) -> (N, 1)."""
    return (vectors.detach().float().abs().amax(-1, keepdim=True) / LEVELS).clamp_(min=SMALLEST)


class Codec:
    """Turns vectors of `dim` numbers into codes, and codes into what is left of the vectors.

    A subclass defines `encode` and `decode`, and `state` where it has parameters. The index compares float queries with
    decoded codes, by the metric, unless it has a faster way for the codec (`reid_hub/index/columns.py`).

    Attributes:
        name: its key in `CODECS`.
        dtype: of the codes.
        unit: under cosine, vectors are scaled to unit length before they are encoded.
        coarse: codes only find candidates; an index may keep a second, finer code to rank these again.
    """

    name: str
    dtype: np.dtype
    unit = False
    coarse = False

    def __init__(self, dim: int):
        self.dim = dim

    @property
    def width(self) -> int:
        """Values of `dtype` in the code of one vector."""
        return self.dim

    @property
    def bytes_per_vector(self) -> int:
        return self.width * self.dtype.itemsize

    def state(self) -> dict[str, Any]:
        """The parameters: `type(codec)(codec.dim, **codec.state())` is the same codec. Arrays are float32.

        An index keeps those of a coarse and a fine codec in one table, so their names must differ.
        """
        return {}

    def encode(self, vectors: Tensor | np.ndarray) -> np.ndarray:
        """Finite vectors (N, D), on any device, -> codes (N, width)."""
        raise NotImplementedError

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Codes (N, width) -> float32 (N, D)."""
        raise NotImplementedError

    def approximate(self, vectors: Tensor | np.ndarray) -> np.ndarray:
        """What is left of vectors (N, D) when they are stored: float32 (N, D)."""
        return self.decode(self.encode(vectors))

    def faults(self, codes: np.ndarray, vectors: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, str]]:
        """Rows (N,) bool that are no codes of this codec, or lose their vector, each with what is wrong with them.

        Args:
            vectors: what was encoded, (N, D); None where the codes come from elsewhere.
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
        return torch.from_numpy(codes).float().numpy()  # several times faster than numpy

    def faults(self, codes, vectors=None):
        yield ~np.isfinite(codes).all(1), "have values beyond float16 (65,504): use float32"
        if vectors is not None:
            yield ~codes.any(1) & vectors.any(1), "vanish in float16: use float32"


class Int8(Codec):
    """Symmetric int8: q = clamp(round_half_even(v / scale), -127, 127), v = q * scale (arXiv:2405.14730).

    Args:
        scale: of all vectors, a number or (D,); None gives each vector its own, max |v| / 127, which is not stored:
            codes then decode to the vector's direction.

    Raises:
        ValueError: for a scale that is not positive, or of another shape.
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
    """One bit per dimension, v > center, eight to a byte, the first the highest (`np.packbits`); decodes to 1 and -1.

    Args:
        center: what values are compared with, a number or (D,).

    Raises:
        ValueError: for a center that is not finite, or of another shape.
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
# What a gallery can hold: one codec, or a coarse one and another that ranks its candidates again, as "binary+int8".
STORED_AS = [
    *CODECS,
    *(f"{coarse}+{fine}" for coarse in CODECS for fine in CODECS if CODECS[coarse].coarse and not CODECS[fine].coarse),
]


def bytes_per_vector(dim: int, stored_as: str) -> int:
    """Bytes of one stored vector, by an entry of `STORED_AS`."""
    return sum(CODECS[name](dim).bytes_per_vector for name in stored_as.split("+"))


def _float32(vectors: Tensor | np.ndarray) -> Tensor:
    """A float32 tensor on the vectors' device, without a copy where it can be."""
    return torch.as_tensor(vectors).detach().float()
