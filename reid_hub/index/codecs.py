"""How a gallery vector is stored: one class and one line in `CODECS` per storage form."""

from typing import Protocol

import numpy as np


class Codec(Protocol):
    """Turns float32 vectors into the rows that are kept (and written to disk), and compares against them."""

    name: str
    dtype: np.dtype

    def width(self, dim: int) -> int:
        """Number of `dtype` values in the row of one vector."""

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """float32 (N, D) -> `dtype` (N, width)."""

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """`dtype` (N, width) -> float32 (N, D)."""

    def inner_products(self, queries: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """float32 (Q, D), `dtype` (N, width) -> float32 (Q, N), with the error of a float32 sum at most."""


class Float32:
    """The vector itself."""

    name = "float32"
    dtype = np.dtype(np.float32)

    def width(self, dim: int) -> int:
        return dim

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        return vectors

    def decode(self, codes: np.ndarray) -> np.ndarray:
        return codes

    def inner_products(self, queries: np.ndarray, codes: np.ndarray) -> np.ndarray:
        # numpy, not torch: torch's global matmul precision may lower a float32 product to bfloat16 or TF32.
        return queries @ codes.T


CODECS: dict[str, Codec] = {codec.name: codec for codec in (Float32(),)}
