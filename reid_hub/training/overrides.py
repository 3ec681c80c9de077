"""Changing values of a recipe by name."""

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from inspect import Parameter, signature
from typing import Any

from reid_hub.errors import ReIDError
from reid_hub.methods import METHODS
from reid_hub.registry import lookup
from reid_hub.training.optimizers import OPTIMIZERS
from reid_hub.training.recipe import Recipe

VAR_KEYWORD = Parameter.VAR_KEYWORD


def override(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """A copy of the recipe with some values changed.

    A name is that of a field ("learning_rate") or goes one or two steps further down ("schedule.gamma",
    "augmentation.flip", "options.metric_options.margin").

    Raises:
        ValueError: for a name that nothing answers to (the nearest is offered) or a value of another kind.
    """
    # Fields of the recipe itself change together: it checks that they fit one another.
    plain = {name: value for name, value in changes.items() if "." not in name}
    known = {field.name: getattr(recipe, field.name) for field in fields(recipe)}
    kinds = {name: _same_kind(lookup(known, name, "recipe value"), value, name) for name, value in plain.items()}
    recipe = replace(recipe, **kinds)
    for name, value in changes.items():
        if name not in plain:
            recipe = _changed(recipe, name.split("."), value, name)
    _check_options(METHODS, recipe.method, "method", recipe.options)
    _check_options(OPTIMIZERS, recipe.optimizer, "optimizer", recipe.optimizer_options)
    return recipe


def parse_override(text: str) -> tuple[str, Any]:
    """Read "name=value"; the value is JSON where it can be read as such, else a string.

    Raises:
        ValueError: without an equals sign.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise ReIDError(f"an override must read name=value, got {text!r}")
    try:
        return name.strip(), json.loads(value)
    except json.JSONDecodeError:
        return name.strip(), value


def _changed(holder: Any, path: list[str], value: Any, name: str) -> Any:
    if is_dataclass(holder):
        known = {field.name: getattr(holder, field.name) for field in fields(holder)}
        old = lookup(known, path[0], "recipe value" if isinstance(holder, Recipe) else f"value of {name}")
    else:
        old = holder.get(path[0])
    if path[1:]:
        if not (is_dataclass(old) or isinstance(old, Mapping)):
            raise ReIDError(f"cannot set {name!r}: {path[0]!r} has nothing below it")
        value = _changed(old, path[1:], value, name)
    else:
        value = _same_kind(old, value, name)
    return replace(holder, **{path[0]: value}) if is_dataclass(holder) else {**holder, path[0]: value}


def _same_kind(old: Any, value: Any, name: str) -> Any:
    if isinstance(old, tuple) and isinstance(value, list):
        return tuple(value)
    numbers = isinstance(old, (int, float)) and isinstance(value, (int, float))
    whole = not isinstance(old, int) or isinstance(value, int)
    if old is None or value is None or (numbers and whole) or isinstance(value, type(old)):
        return value
    raise ReIDError(f"{name} must be like {old!r}, got {value!r}")


def _check_options(table: Mapping[str, Any], name: str, kind: str, options: Mapping[str, Any]) -> None:
    parameters = {}
    for level in lookup(table, name, kind).__mro__:
        parameters |= signature(level).parameters
        if "__init__" in vars(level) and VAR_KEYWORD not in {p.kind for p in signature(level).parameters.values()}:
            break  # a constructor with ** hands the rest on to the class above
    for option in options:
        lookup(parameters, option, f"option of {kind} {name!r}")
