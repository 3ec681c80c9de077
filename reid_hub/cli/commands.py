"""Commands generated from settings: each option of a command is a field of its settings."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import Field
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer

from reid_hub.errors import ReIDError
from reid_hub.evaluation.results import Results
from reid_hub.runs.options import Pairs, Settings


def command(settings: type[Settings]) -> Callable[[Callable], Callable]:
    """Decorator that turns a function of settings into a command with their options.

    Other parameters of the function, such as a `typer.Context`, are kept.
    """

    def decorate(function: Callable) -> Callable:
        own = [p for name, p in inspect.signature(function).parameters.items() if name != "settings"]
        options = settings.options()

        @wraps(function)
        def run(**values: Any) -> None:
            given = {name: values.pop(name) for name in options}
            changed = {name: _value(options[name], value) for name, value in given.items()}
            return function(settings=settings.of(**changed), **values)

        parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in own]
        parameters += [_parameter(each) for each in options.values()]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def _parameter(option: Field) -> inspect.Parameter:
    """Convert an option to the signature parameter that typer reads."""
    said = {"help": option.metadata["help"], "metavar": option.metadata.get("metavar")}
    kind, default = option.type, option.default
    if kind is Pairs:
        kind, default = list[str], list(default) or None
    elif option.metadata.get("nargs") == 2:
        kind, said["metavar"] = tuple[int, int] | None, "HEIGHT WIDTH"
        default = default and tuple(default)
    elif get_origin(kind) is list:
        default = list(default) or None
    if get_origin(kind) is list and default is None and not option.metadata.get("argument"):
        kind = kind | None
    if option.metadata.get("argument"):
        marker = typer.Argument(**said)
        default = inspect.Parameter.empty if option.default is None or option.default == [] else default
    else:
        required = option.metadata.get("required")
        marker = typer.Option(f"--{option.name.replace('_', '-')}" + _negative(option), **said)
        default = inspect.Parameter.empty if required else default
    kind = _without_none(kind) if default is inspect.Parameter.empty else kind
    return inspect.Parameter(
        option.name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[kind, marker], default=default
    )


def _negative(option: Field) -> str:
    return f"/--no-{option.name.replace('_', '-')}" if option.type in (bool, bool | None) else ""


def _without_none(kind: Any) -> Any:
    rest = [each for each in get_args(kind) if each is not type(None)]
    return rest[0] if type(None) in get_args(kind) and len(rest) == 1 else kind


def _value(option: Field, given: Any) -> Any:
    """Convert typer's parsed value to the option's value."""
    if option.type is Pairs:
        return Pairs(given or ())
    if given is None or not isinstance(given, list | tuple):
        return given if given is not None or get_origin(option.type) is not list else []
    return list(given)


def refuse_options(context: typer.Context) -> None:
    """Reject options placed before a sub-command, which would ignore them.

    Raises:
        ReIDError: if there are any; the message names them.
    """
    given = [name for name in context.params if context.get_parameter_source(name).name == "COMMANDLINE"]
    if given:
        flags = ", ".join(option.opts[0] for option in context.command.params if option.name in given)
        command = f"{context.command_path} {context.invoked_subcommand}"
        raise ReIDError(f"{flags} must stand behind {context.invoked_subcommand!r}: `{command} {flags} ...`")


def show_table(title: str, rows: Mapping[str, str]) -> None:
    """Show two aligned columns between rules."""
    width = max(map(len, rows))
    lines = [f"  {name:<{width}}  {value}" for name, value in rows.items()]
    rule = "-" * max(len(title), *map(len, lines))
    typer.echo("\n".join(["", rule, title, rule, *lines, rule]))


def show(results: Results | None, made: Mapping[str, str | Path | None]) -> None:
    """Show the metrics, in percent, and the paths of all outputs."""
    if results is not None and (fractions := results.metrics.fractions()):
        shown = ", ".join(f"{name} {100 * value:.1f}" for name, value in fractions.items())
        typer.echo(f"{results.model} on {results.dataset.name}: {shown} (percent)")
    for name, path in made.items():
        if path is not None and Path(path).exists():
            typer.echo(f"{name}: {path}")
