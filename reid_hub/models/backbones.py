"""Backbone families of the package (one import line each), and look-ups by configuration and by name."""

import copy
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from .backbone_densenet import DenseNet as DenseNet
from .backbone_library import LibraryBackbone as LibraryBackbone
from .backbone_mgn import MGN as MGN
from .backbone_msinet import MSINet as MSINet
from .backbone_osnet import OSNet as OSNet
from .backbone_part_vit import PartViT as PartViT
from .backbone_resnet import ResNet as ResNet
from .backbone_squeezenet import SqueezeNet as SqueezeNet
from .backbone_timm import TimmBackbone as TimmBackbone
from .families import FAMILIES, Family, is_outside, portable_code


def family_of(config: PreTrainedConfig) -> Family:
    """The family of a backbone configuration; "transformers" for a model type without a family of its own."""
    return FAMILIES.get(config.model_type, FAMILIES["transformers"])


def read_config(config: dict[str, Any] | PreTrainedConfig) -> PreTrainedConfig:
    """Build a backbone configuration from its fields, which include `model_type`.

    Raises:
        ValueError: if neither a family nor transformers has this `model_type`, or a field is unknown.
    """
    if isinstance(config, PreTrainedConfig):
        return config
    config = copy.deepcopy(config)
    model_type = config.pop("model_type", None)
    own = [family.name for family in FAMILIES.values() if family.config is not None]
    if model_type is None:
        raise ValueError(f"backbone_config needs a model_type: one of {', '.join(own)} or one of transformers'")
    if model_type in own:
        return FAMILIES[model_type].config(**config)
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"unknown model_type {model_type!r} of a backbone: neither transformers has it, nor one of the families "
            f"{', '.join(own)}. If the family is from outside the package, import its file first"
        )
    return AutoConfig.for_model(model_type, **config)


def build_backbone(config: PreTrainedConfig, **strides: int | None) -> nn.Module:
    """Build the network of a backbone configuration.

    Args:
        strides: `last_stride` and `stride1_stage`, see `ReIDConfig`.

    Raises:
        ValueError: if a stride is given for a network with fixed strides.
    """
    family, strides = family_of(config), {name: stride for name, stride in strides.items() if stride is not None}
    if strides and not family.strided:
        name, stride = next(iter(strides.items()))
        raise ValueError(f"{name}={stride} is for a ResNet, {family.name} has its own strides: leave it at None")
    return family.network(config, **strides)


def list_variants() -> list[str]:
    """Names accepted by `ReIDConfig.from_variant`; "timm/NAME" accepts any model of the timm library."""
    names = [name for family in FAMILIES.values() for name in family.variants]
    return [*names, *(f"{family.prefix}/<name>" for family in FAMILIES.values() if family.prefix)]


def find_variant(name: str, image_size: Sequence[int] = (256, 128)) -> dict[str, Any]:
    """The `ReIDConfig` fields of a named variant.

    Args:
        image_size: (height, width) in pixels, for library models that depend on it.

    Raises:
        ValueError: if there is no such variant; the message suggests the closest name.
        ImportError: if the model's library is not installed.
    """
    prefix, slash, rest = name.partition("/")
    for family in FAMILIES.values():
        if slash and prefix == family.prefix:
            return family.from_name(rest, tuple(image_size))
        if variant := family.variants.get(name):
            fields = {"backbone_config": {"model_type": family.name, **variant.backbone}, **variant.fields}
            return copy.deepcopy(fields)
    # The package has a helper for this, but files that are copied into checkpoints may import only their siblings.
    near = get_close_matches(name, list_variants(), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"unknown variant {name!r}: {hint}choices are {', '.join(list_variants())}")


def takes_any_size(config: PreTrainedConfig) -> bool:
    """Whether a backbone accepts images of any size; False if it has a position embedding per patch."""
    return not family_of(config).fixes_size(config)


def at_size(config: PreTrainedConfig, image_size: Sequence[int]) -> PreTrainedConfig:
    """A copy of a backbone configuration for images of (height, width); unchanged if it accepts any size."""
    family = family_of(config)
    if not family.fixes_size(config):
        return config
    config = copy.deepcopy(config)
    family.set_size(config, list(image_size))
    return config


def carry_family(folder: Path, config: PreTrainedConfig) -> None:
    """Copy the file of an external backbone family into a checkpoint folder with our code, and add its import there.

    Do nothing for a family of the package: its file is already in the folder.

    Raises:
        ValueError: if the file has the same name as a file of the package.
    """
    family, ours = family_of(config), folder / Path(__file__).name
    if not is_outside(family) or not ours.is_file():
        return
    target = folder / family.file.name
    if target.exists():
        raise ValueError(f"{family.file} has the name of a file of the package: rename it")
    target.write_text(portable_code(family), encoding="utf-8")
    network = family.network.__name__
    line = f"from .{target.stem} import {network} as {network}  # noqa: E402"
    ours.write_text(f"{ours.read_text(encoding='utf-8')}\n{line}\n", encoding="utf-8")
