"""Progressive Transfer Learning (arXiv:1908.02492): training with a memory of earlier batches, and doing without it."""

from reid_hub.methods.ptl.distillation import STDMethod
from reid_hub.methods.ptl.training import PTLMethod

__all__ = ["PTLMethod", "STDMethod"]
