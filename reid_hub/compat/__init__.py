"""Every use of a library's private interface, under a public name, with the version it was seen in.

A private interface may change with any release: `tests/test_compat.py` has a test for each entry, which fails when the
library changes it, and refuses private names of libraries anywhere else. Those of the Trainer are in `compat.trainer`,
so that importing the package stays light.
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
    """Whether this torch multiplies int8 matrices into int32; the processor may still refuse, or saturate."""
    return hasattr(torch, "_int_mm")


def int8_matmul(left: Tensor, right: Tensor) -> Tensor:
    """int8 (M, K) times int8 (K, N): int32 (M, N)."""
    return torch._int_mm(left, right)


class WithCompanions(nn.Module):
    """A module that takes others along when it moves to a device or another precision, though they are no parts of it.

    So they are in no state_dict, have no parameters to train, and keep their own training mode.
    """

    def companions(self) -> Iterable[nn.Module]:
        """The modules to take along."""
        return ()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "WithCompanions":
        for module in self.companions():
            module._apply(fn, recurse)
        return super()._apply(fn, recurse)


# datasets 5.2


def fingerprint(dataset: "datasets.Dataset") -> str:
    """A hash of a data set's content and of all that was done to it: hexadecimal digits."""
    return dataset._fingerprint


def resolve_features(stream: "datasets.IterableDataset") -> "datasets.IterableDataset":
    """The same stream with `features`, which it reads from its first examples where it does not know them."""
    return stream._resolve_features()


# transformers 5.23


def register_backbone(config: "type[PreTrainedConfig]", model: type[nn.Module]) -> None:
    """Let AutoBackbone build `model` for `config`, even where the model names another class of configurations.

    `AutoBackbone.register` does the same for the model's own class of configurations alone.
    """
    from transformers import AutoBackbone

    AutoBackbone._model_mapping.register(config, model, exist_ok=True)  # type: ignore[arg-type]  # annotated as a pair
