"""Base class of the parts behind a backbone (pooling, embedding layer, neck, ...): options and compatibility."""

from collections.abc import Mapping, Sequence
from inspect import Parameter, signature
from typing import Any

from huggingface_hub.dataclasses import type_validator
from torch import nn

# Kinds of output, with their names in messages: values of a backbone's `gives` and of a part's `needs` and `gives`.
KINDS = {
    "map": "a map",  # (B, C, h, w)
    "stages": "the maps of several stages",  # a tuple of maps, from `stages(pixel_values)`
    "branches": "the maps of several branches",  # the last ones of `stages(pixel_values)`, as many as `branches`
    "tokens": "tokens",  # (B, N, C), the class token first if there is one
    "patches": "tokens of patches behind others",  # (B, N, C), behind `prefix_tokens` others
    "part_tokens": "part tokens",  # (B, 4 + n, C), a class token and three part tokens first
    "vector": "a vector",  # (B, D)
    "parts": "vectors of parts",  # (B, P, C), which only together are a vector
}


class Part(nn.Module):
    """A part of a `ReIDModel` behind the backbone; one class of a registry such as `POOLINGS`.

    The keyword-only parameters of its constructor, with their types and defaults, are its options in a `ReIDConfig`.

    Attributes:
        needs: accepted inputs (`KINDS`); the part in front must give one of them.
        gives: its outputs (`KINDS`); empty for a part that keeps the kind of its input.
    """

    needs: tuple[str, ...] = ("vector",)
    gives: tuple[str, ...] = ("vector",)

    @classmethod
    def behind(cls, before: Any, **options: Any) -> "Part":
        """Build the part behind another: a pooling behind a backbone, others behind a vector of these `part_dims`."""
        return cls(**options)

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        """Raise a ValueError for values of the right types that make no sense."""


def options_of(part: type[Part]) -> dict[str, Parameter]:
    """The options of a part by name; constructors with ** hand theirs on to the class above."""
    options = {}
    for level in reversed(part.__mro__):
        if "__init__" in vars(level):
            parameters = signature(level.__init__).parameters
            options |= {name: p for name, p in parameters.items() if p.kind is Parameter.KEYWORD_ONLY}
    return options


def read_part(kind: str, value: Mapping[str, Any], registry: Mapping[str, type[Part]]) -> dict[str, Any]:
    """A part of a configuration with all its options: {"name": ..., option: value}.

    Args:
        kind: its field, for messages.
        value: its name, and the options that are not to have their defaults.

    Raises:
        ValueError: for an unknown name or option, a missing one, or a value of another type.
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
            read[option] = float(read[option])  # JSON and people write 3 for 3.0
        try:
            type_validator(option, read[option], parameter.annotation)
        except TypeError as error:
            raise ValueError(f"{kind}={name!r}: {error}") from error
    registry[name].check(read)
    return {"name": name, **read}


def check_fit(source: str, gives: Sequence[str], parts: Mapping[str, tuple[str, Mapping[str, type[Part]]]]) -> None:
    """Refuse parts that do not fit behind one another.

    Args:
        source: what stands in front of the first, in words, and `gives` of it.
        parts: in their order, field of the configuration -> name and registry.

    Raises:
        ValueError: saying what is needed and given, and what would fit.
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
