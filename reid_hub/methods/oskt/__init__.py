"""One-Shot Knowledge Transfer (arXiv:2511.06016): clusters and refines weight chains, which expand by themselves."""

from reid_hub.methods.oskt.refine import RefineMethod

__all__ = ["RefineMethod"]
