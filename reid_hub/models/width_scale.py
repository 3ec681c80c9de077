"""One number for the width of a model, and the configuration of the same architecture at another width."""

import copy
from collections.abc import Callable

from .configuration_reid import ReIDConfig
from .variants_reid import find_variant

# OSNet's and MSINet's gates have one hidden channel in sixteen: a narrower stem would leave one without any.
GATED = 16
# What of a backbone's configuration says its widths; all else a student has from its teacher.
WIDTH_FIELDS = ("embedding_size", "hidden_sizes", "layer_type", "channels", "embed_dim", "width", "heads")


def _scaled(values: list[int], old: int, new: int) -> list[int]:
    """All values times new / old, which must come out whole."""
    if any(value * new % old for value in values):
        legal = [width for width in range(1, old + 1) if not any(value * width % old for value in values)]
        near = min(legal, key=lambda width: abs(width - new))
        raise ValueError(f"width {new} gives stages of broken channel numbers; the nearest that does not is {near}")
    return [value * new // old for value in values]


def _resnet(backbone, width: int) -> None:
    backbone.hidden_sizes = _scaled(backbone.hidden_sizes, backbone.embedding_size, width)
    backbone.embedding_size = width


def _channels(backbone, width: int) -> None:
    if width < GATED:
        raise ValueError(
            f"the gates of OSNet and MSINet have one hidden channel in sixteen: the width must be {GATED} or more, got "
            f"{width}"
        )
    backbone.channels = _scaled(backbone.channels, backbone.channels[0], width)


def _part_vit(backbone, width: int) -> None:
    if width % backbone.heads:
        raise ValueError(
            f"the width of a ViT must be a multiple of its {backbone.heads} heads, from {backbone.heads} to the "
            f"teacher's {backbone.width}, got {width}"
        )
    backbone.width = width


# How each architecture says its width: a function (configuration) -> width, and one that changes a configuration.
WIDTHS: dict[str, tuple[Callable, Callable]] = {
    "resnet": (lambda backbone: backbone.embedding_size, _resnet),
    "reid_osnet": (lambda backbone: backbone.channels[0], _channels),
    "reid_msinet": (lambda backbone: backbone.channels[0], _channels),
    "reid_part_vit": (lambda backbone: backbone.width, _part_vit),
}


def width_of(config: ReIDConfig) -> int:
    """The number that stands for a model's width: channels of the stem (CNN) or of the blocks (ViT).

    Raises:
        ValueError: for an architecture that has none.
    """
    return _entry(config)[0](config.backbone_config)


def at_width(config: ReIDConfig, width: int) -> ReIDConfig:
    """The same architecture with all stages scaled to another width.

    An embedding as long as the trunk's last stage (OSNet x1.0) is scaled with it.

    Raises:
        ValueError: if a channel number would be broken, or the architecture has no single width.
    """
    if width < 1:
        raise ValueError(f"a width must be at least 1, got {width}")
    backbone = copy.deepcopy(config.backbone_config)
    _entry(config)[1](backbone, width)
    name = None if config.variant is None else f"{config.variant}-w{width}"
    fields = {**config.to_dict(), "backbone_config": backbone, "variant": name}
    if config.embedding_dim is not None and config.embedding_dim == _last(config.backbone_config):
        fields["embedding_dim"] = _last(backbone)
    return ReIDConfig(**fields)


def student_of(teacher: ReIDConfig, student: int | str | ReIDConfig) -> ReIDConfig:
    """The configuration of a student: the teacher's input, head and neck, at the width of what is named.

    Args:
        student: a width (also as text), the name of a variant, or a configuration, which is taken as it is.

    Raises:
        ValueError: for an unknown variant, another architecture, or a broken width.
    """
    if isinstance(student, int):
        return at_width(teacher, student)
    if isinstance(student, ReIDConfig):
        return student
    if student.isdecimal():
        return at_width(teacher, int(student))
    variant, fields = copy.deepcopy(find_variant(student)), teacher.to_dict()
    ours, theirs = fields["backbone_config"], variant["backbone_config"]
    if ours["model_type"] != theirs["model_type"]:
        raise ValueError(
            f"{student} is a {theirs['model_type']!r} and the teacher a {ours['model_type']!r}: only widths may differ"
        )
    # Everything else (stride, drop path, genotype, ...) stays the teacher's; another depth is refused where it matters.
    fields["backbone_config"] = {**ours, **{key: theirs[key] for key in (*WIDTH_FIELDS, "depths") if key in theirs}}
    fields["embedding_dim"] = variant.get("embedding_dim", fields["embedding_dim"])
    return ReIDConfig(**{**fields, "variant": student})


def _last(backbone) -> int | None:
    return getattr(backbone, "channels", getattr(backbone, "hidden_sizes", [None]))[-1]


def _entry(config: ReIDConfig) -> tuple[Callable, Callable]:
    model_type = config.backbone_config.model_type
    if model_type not in WIDTHS:
        raise ValueError(f"a {model_type!r} backbone has no single width; those that have: {', '.join(WIDTHS)}")
    return WIDTHS[model_type]
