"""The width of a model as one number, and configurations of the same architecture at other widths."""

import copy

from .backbones import FAMILIES, family_of, find_variant
from .configuration_reid import ReIDConfig
from .families import Width


def width_of(config: ReIDConfig) -> int:
    """The width of a model: channels of the stem (CNN) or of the blocks (ViT).

    Raises:
        ValueError: if the architecture has no single width.
    """
    return _width(config).get(config.backbone_config)


def at_width(config: ReIDConfig, width: int) -> ReIDConfig:
    """The same architecture with all stages scaled to another width.

    An embedding with the same length as the backbone's last stage (OSNet x1.0) is scaled with it.

    Raises:
        ValueError: if a number of channels would not be an integer, or the architecture has no single width.
    """
    if width < 1:
        raise ValueError(f"a width must be at least 1, got {width}")
    backbone, scale = copy.deepcopy(config.backbone_config), _width(config)
    scale.set(backbone, width)
    name = None if config.variant is None else f"{config.variant}-w{width}"
    fields = {**config.to_dict(), "backbone_config": backbone, "variant": name}
    if config.embedding.get("dim", 0) == scale.out(config.backbone_config):
        fields["embedding"] = {**config.embedding, "dim": scale.out(backbone)}
    return ReIDConfig(**fields)


def student_of(teacher: ReIDConfig, student: int | str | ReIDConfig) -> ReIDConfig:
    """Configuration of a student: the teacher's input, embedding layer and neck, at the width of `student`.

    Args:
        student: a width (also as text), the name of a variant, or a configuration, which is returned unchanged.

    Raises:
        ValueError: for an unknown variant, another architecture, or an invalid width.
    """
    if isinstance(student, int):
        return at_width(teacher, student)
    if isinstance(student, ReIDConfig):
        return student
    if student.isdecimal():
        return at_width(teacher, int(student))
    variant, fields = find_variant(student), teacher.to_dict()
    ours, theirs = fields["backbone_config"], variant["backbone_config"]
    if ours["model_type"] != theirs["model_type"]:
        raise ValueError(
            f"{student} is a {theirs['model_type']!r} and the teacher a {ours['model_type']!r}: only widths may differ"
        )
    # All else (stride, drop path, genotype, ...) is the teacher's; another depth is rejected later, by `match_widths`.
    width = family_of(teacher.backbone_config).width
    names = set(width.fields) & set(theirs) if width is not None else ()
    fields["backbone_config"] = {**ours, **{name: theirs[name] for name in names}}
    if "dim" in fields["embedding"]:
        fields["embedding"] |= {"dim": variant.get("embedding", fields["embedding"])["dim"]}
    return ReIDConfig(**{**fields, "variant": student})


def _width(config: ReIDConfig) -> Width:
    family = family_of(config.backbone_config)
    if family.width is None:
        known = ", ".join(other.name for other in FAMILIES.values() if other.width is not None)
        raise ValueError(
            f"a {config.backbone_config.model_type!r} backbone has no single width; those that have: {known}"
        )
    return family.width
