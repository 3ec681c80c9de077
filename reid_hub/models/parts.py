"""Base class of the parts after a backbone (pooling, embedding layer, neck, ...): options and compatibility."""

from collections.abc import Mapping, Sequence
from inspect import Parameter, signature
from typing import Any

from huggingface_hub.dataclasses import type_validator
from torch import nn

# Kinds of output and their names in messages: the values of a backbone's `gives` and of a part's `needs` and `gives`.
KINDS = {
    "map": "a map",  # (B, C, h, w)
    "stages": "the maps of several stages",  # a tuple of feature maps, from `stages(pixel_values)`
    "branches": "the maps of several branches",  # the last ones of `stages(pixel_values)`, as many as `branches`
    "tokens": "tokens",  # (B, N, C), the class token first if there is one
    "patches": "tokens of patches behind others",  # (B, N, C), after `prefix_tokens` others
    "part_tokens": "part tokens",  # (B, 4 + n, C), a class token and three part tokens first
    "vector": "a vector",  # (B, D)
    "parts": "vectors of parts",  # (B, P, C), concatenated to one vector later
}


class Part(nn.Module):
    """A part of a `ReIDModel` after the backbone; its subclasses are in registries such as `POOLINGS`.

    The keyword-only parameters of its constructor, with their types and defaults, are its options in a `ReIDConfig`.

    Attributes:
        needs: accepted kinds of input (`KINDS`); the previous part must give one of them.
        gives: kinds of output (`KINDS`); empty if the part keeps the kind of its input.
    """

    needs: tuple[str, ...] = ("vector",)
    gives: tuple[str, ...] = ("vector",)

    @classmethod
    def behind(cls, before: Any, **options: Any) -> "Part":
        """Build the part that follows `before`: a backbone for poolings, otherwise the `part_dims` of the input."""
        return cls(**options)

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        """Raise a ValueError for options of the right types with invalid values."""


def options_of(part: type[Part]) -> dict[str, Parameter]:
    """The options of a part by name, including those of its base classes."""
    options = {}
    for level in reversed(part.__mro__):
        if "__init__" in vars(level):
            parameters = signature(level.__init__).parameters
            options |= {name: p for name, p in parameters.items() if p.kind is Parameter.KEYWORD_ONLY}
    return options


def read_part(kind: str, value: Mapping[str, Any], registry: Mapping[str, type[Part]]) -> dict[str, Any]:
    """Validate a part of a configuration and fill in its defaults: {"name": ..., option: value}.

    Args:
        kind: field of the configuration, for messages.
        value: its name and the options that differ from their defaults.
        registry: classes by name.

    Raises:
        ValueError: for an unknown name or option, a missing option, or a value of the wrong type.
    """
    name, given = value["name"], {option: value[option] for option in value if option != "name"}
    if name is None and given:
        raise ValueError(f"{kind} needs a name beside {', '.join(given)}: one of {', '.join(registry)}")
    if name not in registry:
        raise ValueError(f"{kind} must be one of {', '.join(registry)}, got {name!r}")
    known = options_of(registry[name])
    if unknown := sorted(given.keys() - known.keys()):
        has = f"its options are {', '.join(known)}" if known else "it has no options"
        raise ValueError(f"unknown options {', '.join(unknown)} of {kind}={name!r}; {has}")
    read = {option: given.get(option, parameter.default) for option, parameter in known.items()}
    if missing := [option for option, value in read.items() if value is Parameter.empty]:
        raise ValueError(f"{kind}={name!r} needs {', '.join(missing)}")
    for option, parameter in known.items():
        if parameter.annotation in (float, float | None) and type(read[option]) is int:
            read[option] = float(read[option])  # in JSON, 3.0 is often written as 3
        try:
            type_validator(option, read[option], parameter.annotation)
        except TypeError as error:
            raise ValueError(f"{kind}={name!r}: {error}") from error
    registry[name].check(read)
    return {"name": name, **read}


def check_fit(source: str, gives: Sequence[str], parts: Mapping[str, tuple[str, Mapping[str, type[Part]]]]) -> None:
    """Check that each part accepts the output of the previous one.

    Args:
        source: name of the input of the first part, for messages.
        gives: kinds of output of `source`.
        parts: the parts in order, field of the configuration -> (name, registry).

    Raises:
        ValueError: if a part does not fit; the message names what is needed, what is given, and alternatives.
    """
    for kind, (name, registry) in parts.items():
        part = registry[name]
        if not set(part.needs) & set(gives):
            fitting = [other for other, each in registry.items() if set(each.needs) & set(gives)]
            raise ValueError(
                f"{kind}={name!r} needs {_words(part.needs, ' or ')}, but {source} gives {_words(gives, ', ')}"
                + (f": take {kind} {' or '.join(fitting)}" if fitting else "")
            )
        if part.gives:
            source, gives = f"{kind}={name!r}", part.gives


def _words(kinds: Sequence[str], joined_by: str) -> str:
    return joined_by.join(KINDS[kind] for kind in kinds)
