"""Evaluate vectors as a gallery stores them: as codes."""

from typing import NamedTuple

import numpy as np

from reid_hub.models import ReIDModel
from reid_hub.models.codes import CODECS
from reid_hub.registry import lookup


class Shortlist(NamedTuple):
    """A first ranking by other vectors, such as bits, (Q, E) and (G, E) float32, of which the top `size` are re-ranked.

    All other images follow in the order of the first ranking. Ties rank by gallery position.
    """

    query: np.ndarray
    gallery: np.ndarray
    size: int

    def rescored(self, start: int, stop: int, scores: np.ndarray) -> np.ndarray:
        """`scores` (rows, G) of queries start..stop-1 for images on their shortlist, lower scores for all others."""
        first = self.query[start:stop] @ self.gallery.T
        size = min(self.size, first.shape[1])
        # Products of bits are integers, so ties are exact; of images tied at the cut, those first in the gallery count.
        worst = -np.partition(-first, size - 1, axis=1)[:, size - 1 : size]
        tied = first == worst
        room = size - (first > worst).sum(1, keepdims=True)
        listed = (first > worst) | (tied & (np.cumsum(tied, axis=1) <= room))
        behind = first - first.max() - 1 + scores.min()
        return np.where(listed, scores, behind.astype(np.float32))


def stored(model: ReIDModel, vectors: np.ndarray, codec: str) -> np.ndarray:
    """Vectors (N, D) after encoding and decoding with a codec, float32 (N, D).

    The vectors are those before the model's quantiser. int8 uses the model's scale, or one per vector. Bits decode to 1
    and -1, so cosine similarity decreases with the Hamming distance.

    Raises:
        ReIDError: for an unknown codec.
    """
    lookup(CODECS, codec, "codec")
    return model.codec(codec).approximate(vectors)
