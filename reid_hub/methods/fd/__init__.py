"""Factorized Distillation (arXiv:1811.08073): one student of the whole image from teachers of its parts."""

from reid_hub.methods.fd.attention import attention_maps
from reid_hub.methods.fd.branches import FeatureMapBranch, RepresentationBranch
from reid_hub.methods.fd.cache import CachedRepresentations, write_representations
from reid_hub.methods.fd.representations import OnlineRepresentations, Representations, ViewTeacher
from reid_hub.methods.fd.training import CompressedFDMethod, FDMethod, check_sees_all, fd_method, map_channels

__all__ = [
    "CachedRepresentations",
    "CompressedFDMethod",
    "FDMethod",
    "FeatureMapBranch",
    "OnlineRepresentations",
    "RepresentationBranch",
    "Representations",
    "ViewTeacher",
    "attention_maps",
    "check_sees_all",
    "fd_method",
    "map_channels",
    "write_representations",
]
