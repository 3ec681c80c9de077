"""Settings as small dataclasses: the one place where an option is named, typed, defaulted and explained.

A *part* is a frozen dataclass of options; `Settings` are composed of parts. The command line and the examples make
their options from the fields (`reid_hub.cli`), so an option has one spelling: the name of its field.
"""

import argparse
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Self, get_type_hints

from reid_hub.registry import lookup
from reid_hub.training.overrides import parse_override


class Pairs(dict[str, Any]):
    """Values by name, as `--set NAME=VALUE` gives them; a value is JSON where it can be read as such.

    `Pairs("a=1")`, `Pairs(["a=1", "b=x"])` and `Pairs({"a": 1, "b": "x"})`.

    Raises:
        ReIDError: for a text without an equals sign.
    """

    def __init__(self, values: str | Iterable[str] | Mapping[str, Any] = ()):
        texts = [values] if isinstance(values, str) else values
        super().__init__(texts if isinstance(texts, Mapping) else map(parse_override, texts))


class Gather(argparse.Action):
    """Append the values of a repeated option to those given before."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        before = getattr(namespace, self.dest)
        before = type(before)() if before is self.default else before
        for value in values:
            before = Pairs({**before, **value}) if isinstance(before, Pairs) else [*before, value]
        setattr(namespace, self.dest, before)


def option(default: Any, help: str, **metadata: Any) -> Any:
    """A field of a part.

    Args:
        default: a value, or `list` or `Pairs` for an option of several values, which may be given again.
        help: the text shown by `--help`.
        metadata: "metavar", "nargs"; "argument" for one that the command line takes by its position.
    """
    values = {"help": help, **metadata}
    if default in (list, Pairs):
        return field(default_factory=default, metadata={"nargs": "+", "action": Gather, **values})
    return field(default=default, metadata=values)


class Part:
    """A group of options that belong together; a frozen dataclass derives from it.

    Paths are kept as strings and pairs as `Pairs`, so that an option is the same however it was given.
    """

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            value = getattr(self, name)
            if isinstance(value, Path):
                self._put(name, str(value))
            elif kind is Pairs and not isinstance(value, Pairs):
                self._put(name, Pairs(value))

    def _put(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)


@dataclass(frozen=True)
class Settings:
    """The settings of a run, composed of parts; fields that are not parts have no command-line option."""

    @classmethod
    def of(cls, **options: Any) -> Self:
        """Settings with some options set by their names, whichever part they belong to.

        Raises:
            ReIDError: for an unknown name; the message suggests the nearest one.
        """
        return cls().but(**options)

    @classmethod
    def like(cls, other: "Settings", **options: Any) -> Self:
        """Settings with the shared options of other settings, some of them changed; see `of`."""
        shared = {name: value for name, value in other.values().items() if name in cls.options()}
        return cls.of(**{**shared, **options})

    def but(self, **options: Any) -> Self:
        """A copy with some options changed; see `of`."""
        owners, changed = dict(self._owners()), {}
        for name, value in options.items():
            part = lookup(owners, name, "option")
            changed.setdefault(part, {})[name] = value
        own = changed.pop(None, {})
        return replace(self, **own, **{part: replace(getattr(self, part), **new) for part, new in changed.items()})

    def values(self) -> dict[str, Any]:
        """All options by name."""
        return {name: getattr(self if part is None else getattr(self, part), name) for name, part in self._owners()}

    @classmethod
    def parts(cls) -> dict[str, type]:
        """The parts by the name of their field."""
        return {field.name: field.type for field in fields(cls) if is_dataclass(field.type)}

    @classmethod
    def options(cls) -> dict[str, Field]:
        """Every option by name, with the default that it has in these settings, and its type resolved."""
        found = {}
        for name, part in cls.parts().items():
            given, hints = _default(cls, name), get_type_hints(part)
            for each in fields(part):
                made = dataclasses.field(default=getattr(given, each.name), metadata=each.metadata)
                made.name, made.type = each.name, hints[each.name]
                found[each.name] = made
        return found

    @classmethod
    def _owners(cls) -> Iterator[tuple[str, str | None]]:
        for each in fields(cls):
            if is_dataclass(each.type):
                yield from ((inner.name, each.name) for inner in fields(each.type))
            else:
                yield each.name, None


def _default(cls: type, name: str) -> Any:
    of = next(each for each in fields(cls) if each.name == name)
    if of.default is not MISSING:
        return of.default
    return of.default_factory() if of.default_factory is not MISSING else of.type()
