"""Public wrappers for every private interface of a library that is used here, with the version they were written for.

A private interface may change with any release. `tests/test_compat.py` has a test for each wrapper that fails when the
library changes, and refuses private names of libraries anywhere else. Wrappers of the Trainer are in `compat.trainer`,
to keep the import of the package fast.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedConfig

# torch 2.15


def has_int8_matmul() -> bool:
    """Whether this torch can multiply int8 matrices to int32; the processor may still refuse, or saturate."""
    return hasattr(torch, "_int_mm")


def int8_matmul(left: Tensor, right: Tensor) -> Tensor:
    """int8 (M, K) times int8 (K, N): int32 (M, N)."""
    return torch._int_mm(left, right)


class WithCompanions(nn.Module):
    """A module that moves others along to its device and precision without registering them as sub-modules.

    They are in no state_dict, add no trainable parameters, and keep their own training mode.
    """

    def companions(self) -> Iterable[nn.Module]:
        """The modules to move along."""
        return ()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "WithCompanions":
        for module in self.companions():
            module._apply(fn, recurse)
        return super()._apply(fn, recurse)


# datasets 5.2


def fingerprint(dataset: "datasets.Dataset") -> str:
    """Hexadecimal hash of a data set's content and transformations."""
    return dataset._fingerprint


def resolve_features(stream: "datasets.IterableDataset") -> "datasets.IterableDataset":
    """The same stream with known `features`, read from the first examples if necessary."""
    return stream._resolve_features()


# transformers 5.23


def register_backbone(config: "type[PreTrainedConfig]", model: type[nn.Module]) -> None:
    """Register `model` with AutoBackbone for `config`, even if the model's `config_class` is another class.

    `AutoBackbone.register` accepts only the model's own `config_class`.
    """
    from transformers import AutoBackbone

    AutoBackbone._model_mapping.register(config, model, exist_ok=True)  # type: ignore[arg-type]  # annotated as a pair
