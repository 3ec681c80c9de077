"""Look up a name in a table of choices."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TypeVar

from reid_hub.errors import ReIDError

T = TypeVar("T")


def lookup(table: Mapping[str, T], name: str, kind: str) -> T:
    """Return `table[name]`.

    Raises:
        ValueError: if `name` is not a key of `table`; suggests the nearest spelling and lists all choices.
    """
    if name in table:
        return table[name]
    near = get_close_matches(str(name), table, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ReIDError(f"unknown {kind} {name!r}: {hint}choices are {', '.join(sorted(table))}")
