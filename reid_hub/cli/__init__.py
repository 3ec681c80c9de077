"""The command line: each command reads its settings, calls one run, and shows the results."""

import typer

from reid_hub.cli.errors import run
from reid_hub.cli.evaluate import calibrate, evaluate, index_add, index_build, search
from reid_hub.cli.hub import card, convert, list_names, push
from reid_hub.cli.train import (
    attention,
    basis,
    classify,
    compress,
    demo,
    expand,
    fd,
    kdpp,
    pretrain,
    refine,
    shrink,
    sparsify,
    std,
    surface,
    train,
)  # fmt: skip

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Compact person re-identification: train, shrink, evaluate, convert, publish and search.",
    epilog="Add --debug to any command to see the traceback of an error.",
)
for command in (demo, train, refine, expand, sparsify, shrink, compress, classify, evaluate, calibrate, convert):
    app.command()(command)
distill_app = typer.Typer(no_args_is_help=True, help="Distill a teacher into a student.")
for command in (kdpp, fd, attention, std):
    distill_app.command(command.__name__)(command)
app.add_typer(distill_app, name="distill")
pretrain_app = typer.Typer()
pretrain_app.callback(invoke_without_command=True)(pretrain)
pretrain_app.command("basis")(basis)
app.add_typer(pretrain_app, name="pretrain")
index_app = typer.Typer(no_args_is_help=True, help="Build galleries to search in.")
index_app.command("build")(index_build)
index_app.command("add")(index_add)
app.add_typer(index_app, name="index")
for command in (search, surface, card, push):
    app.command()(command)
app.command("list")(list_names)


def main() -> None:
    """Run the command line; see `run`."""
    run(app)
