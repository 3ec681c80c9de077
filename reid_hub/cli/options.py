"""Options that commands share, and what they do with them."""

import inspect
from collections.abc import Callable, Collection, Mapping
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reid_hub.errors import ReIDError

if TYPE_CHECKING:
    from reid_hub.evaluation import Results

Model = Annotated[str, typer.Argument(help="A checkpoint folder or a repository of the Hub.")]
Data = Annotated[str, typer.Option(help="A data set (`reid-hub list datasets`) or NAMESPACE/NAME on the Hub.")]
DataDir = Annotated[Path | None, typer.Option(help="The folder in which the data set was unpacked.")]
DataOption = Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="An option of the data set.")]
DatasetName = Annotated[str | None, typer.Option(help="What the results call the data set.")]
Flip = Annotated[bool, typer.Option(help="Average the vectors of a picture and of its mirror image.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a repository.")]


def training_run(
    out: Annotated[Path, typer.Option(help="Folder of the result; a run is resumed from it.")] = Path("runs/train"),
    data: Data = "synthetic",
    data_dir: DataDir = None,
    data_option: DataOption = None,
    dataset_name: DatasetName = None,
    recipe: Annotated[str, typer.Option(help="A recipe (`reid-hub list recipes`).")] = "demo",
    set_value: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Replace a value of the recipe.")
    ] = None,
    image_size: Annotated[tuple[int, int] | None, typer.Option(help="Height and width in pixels.")] = None,
    epochs: Annotated[float | None, typer.Option(help="In place of the recipe's.")] = None,
    seed: int = 0,
    validation: Annotated[float, typer.Option(help="Share of the training identities held out; 0 for none.")] = 0.1,
    keep_ids: Annotated[float, typer.Option(help="Share of the training identities kept, drawn by the seed.")] = 1.0,
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint in --out.")] = False,
    flip: Flip = False,
    channels_last: Annotated[bool, typer.Option(help="Memory format; faster for CNNs.")] = False,
    push: Annotated[str | None, typer.Option(metavar="NAMESPACE/NAME", help="Publish the result.")] = None,
    private: Annotated[bool | None, typer.Option(help="Whether a new repository is private.")] = None,
    arg: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Any of transformers' TrainingArguments.")
    ] = None,
) -> dict[str, Any]:
    """The fields of `TrainSettings` that every command which trains takes from its options."""
    return {
        "output_dir": out,
        "data": data,
        "data_dir": None if data_dir is None else str(data_dir),
        "data_options": pairs(data_option),
        "dataset_name": dataset_name,
        "recipe": recipe,
        "changes": pairs(set_value),
        "image_size": image_size,
        "epochs": epochs,
        "seed": seed,
        "validation": validation,
        "keep_ids": keep_ids,
        "resume": resume,
        "flip": flip,
        "channels_last": channels_last,
        "push_to": push,
        "private": private,
        "arguments": pairs(arg),
    }


def takes(
    shared: Callable[..., dict[str, Any]],
    *,
    argument: str = "run",
    without: Collection[str] = (),
    **defaults: Any,
) -> Callable[[Callable], Callable]:
    """A decorator: the command gets the shared options behind its own, and what they make as one `argument`.

    `defaults` replace those of the shared options; those in `without` are not offered, and stay at their default.
    """
    options = {
        name: parameter.replace(default=defaults.get(name, parameter.default))
        for name, parameter in inspect.signature(shared).parameters.items()
        if name not in without
    }
    fixed = {name: defaults[name] for name in without if name in defaults}

    def decorate(command: Callable) -> Callable:
        own = {name: p for name, p in inspect.signature(command).parameters.items() if name != argument}

        @wraps(command)
        def combined(**values: Any):
            made = shared(**fixed, **{name: values.pop(name) for name in options})
            return command(**values, **{argument: made})

        parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in (*own.values(), *options.values())]
        combined.__signature__ = inspect.Signature(parameters)
        combined.__annotations__ = {p.name: p.annotation for p in parameters}
        return combined

    return decorate


def refuse_options(context: typer.Context) -> None:
    """Stop on options in front of a command's sub-command, which would never see them.

    Raises:
        ValueError: naming them.
    """
    given = [name for name in context.params if context.get_parameter_source(name).name == "COMMANDLINE"]
    if given:
        flags = ", ".join(option.opts[0] for option in context.command.params if option.name in given)
        command = f"{context.command_path} {context.invoked_subcommand}"
        raise ReIDError(f"{flags} must stand behind {context.invoked_subcommand!r}: `{command} {flags} ...`")


def pairs(texts: list[str] | None) -> dict[str, Any]:
    """`["a=1", "b=x"]` -> `{"a": 1, "b": "x"}`; a value is JSON where it can be."""
    from reid_hub.training import parse_override

    return dict(parse_override(text) for text in texts or [])


def show(results: "Results | None", made: Mapping[str, Path | None]) -> None:
    """Say what was measured, in percent, and where everything lies."""
    if results is not None and (fractions := results.metrics.fractions()):
        shown = ", ".join(f"{name} {100 * value:.1f}" for name, value in fractions.items())
        typer.echo(f"{results.model} on {results.dataset.name}: {shown} (percent)")
    for name, path in made.items():
        if path is not None and Path(path).exists():
            typer.echo(f"{name}: {path}")
