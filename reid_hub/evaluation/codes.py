"""Vectors as a gallery stores them: what is left of the metrics when they are codes."""

from typing import NamedTuple

import numpy as np

from reid_hub.models import ReIDModel
from reid_hub.models.codes import CODECS
from reid_hub.registry import lookup


class Shortlist(NamedTuple):
    """A first ranking by other vectors, the bits: (Q, E) and (G, E) float32; its nearest `size` are ranked again.

    What is not among them keeps its place behind, in the order of the first ranking. Ties rank by gallery position.
    """

    query: np.ndarray
    gallery: np.ndarray
    size: int

    def rescored(self, start: int, stop: int, scores: np.ndarray) -> np.ndarray:
        """`scores` (rows, G) of the queries start..stop-1 where these list an image, below all of them elsewhere."""
        first = self.query[start:stop] @ self.gallery.T
        size = min(self.size, first.shape[1])
        # The products of bits are integers, so equals are exactly equal; of those at the edge, the first fill the room.
        worst = -np.partition(-first, size - 1, axis=1)[:, size - 1 : size]
        tied = first == worst
        room = size - (first > worst).sum(1, keepdims=True)
        listed = (first > worst) | (tied & (np.cumsum(tied, axis=1) <= room))
        behind = first - first.max() - 1 + scores.min()
        return np.where(listed, scores, behind.astype(np.float32))


def stored(model: ReIDModel, vectors: np.ndarray, codec: str) -> np.ndarray:
    """What is compared when vectors in front of the model's quantiser, (N, D), are stored by a codec: (N, D) float32.

    int8 has the model's scale, or each vector's own, which cancels under cosine. Bits count as 1 and -1, so that their
    cosine falls with the Hamming distance.

    Raises:
        ReIDError: for an unknown codec.
    """
    lookup(CODECS, codec, "codec")
    return model.codec(codec).approximate(vectors)
