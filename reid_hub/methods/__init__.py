"""Training methods: a model together with what only its training needs."""

from reid_hub.methods.base import Method, RunContext
from reid_hub.methods.baselines import KDPPMethod
from reid_hub.methods.classification import ClassificationMethod
from reid_hub.methods.compression import CompressionMethod
from reid_hub.methods.fd import FDMethod
from reid_hub.methods.kdep import KDEPMethod
from reid_hub.methods.oskt import RefineMethod
from reid_hub.methods.ptl import PTLMethod, STDMethod
from reid_hub.methods.supervised import SupervisedMethod

__all__ = [
    "METHODS", "ClassificationMethod", "CompressionMethod", "FDMethod", "KDEPMethod", "KDPPMethod", "Method",
    "PTLMethod", "RefineMethod", "RunContext", "STDMethod", "SupervisedMethod",
]  # fmt: skip

# Each is built by `from_run`; a recipe's options are checked against the constructor's signature.
METHODS: dict[str, type[Method]] = {
    "classification": ClassificationMethod,
    "compression": CompressionMethod,
    "fd": FDMethod,
    "kdep": KDEPMethod,
    "kdpp": KDPPMethod,
    "oskt": RefineMethod,
    "ptl": PTLMethod,
    "std": STDMethod,
    "supervised": SupervisedMethod,
}
