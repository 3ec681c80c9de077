"""Quantisation-aware training: embeddings are decoded int8 codes, with a scale tracked in training.

Embedding Compression (arXiv:2405.14730): uniform quantisation, quantised forward, full-precision backward.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import initialization as init

from .codes import LEVELS, SMALLEST, int8_steps, vector_scale


class _StraightThrough(torch.autograd.Function):
    """codes * scale, bit-identical to a decoded stored code; gradients pass unchanged, also for clipped values."""

    @staticmethod
    def forward(ctx, vectors: Tensor, scale: Tensor) -> Tensor:
        return int8_steps(vectors, scale) * scale

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return gradient, None


class Quantizer(nn.Module):
    """The last layer of a compressed embedding, (B, D) -> (B, D): quantise and decode.

    In training, the statistics are updated with the batch before they are used; in evaluation they are only read.

    Args:
        dim: length of the vectors.
        kind: "int8", or None to pass vectors through and only track their mean.
        granularity: one scale for the "tensor", per "dimension" or per "vector"; the last is not stored, because it
            cancels under cosine.
        momentum: momentum of the running maximum of |v| and the running mean, which start with the first batch.

    Attributes:
        peak: running maximum of |v|, () or (D,); the scale is peak / 127.
        center: (D,) running mean, the threshold of binary codes.
    """

    def __init__(self, dim: int, kind: str | None = None, granularity: str = "tensor", momentum: float = 0.99):
        super().__init__()
        self.kind, self.granularity, self.momentum = kind, granularity, momentum
        self.register_buffer("center", torch.zeros(dim))
        self.register_buffer("num_batches_tracked", torch.tensor(0))
        if kind == "int8" and granularity != "vector":
            self.register_buffer("peak", torch.zeros(dim if granularity == "dimension" else ()))

    def initialise(self) -> None:
        """Reset the statistics."""
        for buffer in self.buffers():
            init.zeros_(buffer)

    def forward(self, vectors: Tensor) -> Tensor:
        with torch.autocast(vectors.device.type, enabled=False):
            vectors = vectors.float() if vectors.dtype in (torch.float16, torch.bfloat16) else vectors
            if self.training:
                self._observe(vectors.detach())
            return vectors if self.kind is None else _StraightThrough.apply(vectors, self.scale(vectors))

    def scale(self, vectors: Tensor) -> Tensor:
        """Value of one int8 step: (), (D,), or (N, 1) for "vector".

        Raises:
            ValueError: if `kind` is None.
        """
        if self.kind is None:
            raise ValueError("this model has no int8 scale: it was not trained or calibrated for int8")
        if self.granularity == "vector":
            return vector_scale(vectors)
        return (self.peak.float() / LEVELS).clamp(min=SMALLEST)

    @torch.no_grad()
    def fit(self, vectors: Tensor) -> None:
        """Set the statistics to those of the vectors (N, D), for post-training quantisation."""
        self.num_batches_tracked.zero_()
        self._observe(vectors)

    @torch.no_grad()
    def _observe(self, vectors: Tensor) -> None:
        # Every process tracks the statistics of the global batch.
        several = self.training and dist.is_initialized() and dist.get_world_size() > 1
        keep = self.momentum * self.num_batches_tracked.clamp(max=1)
        mean = vectors.mean(0)
        if several:
            dist.all_reduce(mean)
            mean /= dist.get_world_size()
        self.center.mul_(keep).add_(mean * (1 - keep))
        if hasattr(self, "peak"):
            peak = vectors.abs().amax() if self.granularity == "tensor" else vectors.abs().amax(0)
            if several:
                dist.all_reduce(peak, op=dist.ReduceOp.MAX)
            self.peak.mul_(keep).add_(peak * (1 - keep))
        self.num_batches_tracked.add_(1)
