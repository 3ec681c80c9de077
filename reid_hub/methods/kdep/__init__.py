"""KDEP (arXiv:2203.05180): compact backbones pre-trained from a teacher's features, without labels."""

from reid_hub.methods.kdep.alignment import (
    ALIGNMENTS,
    WITHOUT_BASIS,
    check_widths,
    make_alignment,
    power_temperature_scale,
)
from reid_hub.methods.kdep.basis import Basis, Moments, fit_basis
from reid_hub.methods.kdep.tap import Tap
from reid_hub.methods.kdep.teacher import TAPS, CachedFeatures, Crops, TappedTeacher, write_features
from reid_hub.methods.kdep.training import PAIR_WEIGHTS, KDEPMethod, check_weight, new_pair

__all__ = [
    "ALIGNMENTS",
    "PAIR_WEIGHTS",
    "TAPS",
    "WITHOUT_BASIS",
    "Basis",
    "CachedFeatures",
    "Crops",
    "KDEPMethod",
    "Moments",
    "Tap",
    "TappedTeacher",
    "check_weight",
    "check_widths",
    "fit_basis",
    "make_alignment",
    "new_pair",
    "power_temperature_scale",
    "write_features",
]
