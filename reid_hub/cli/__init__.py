"""The command line: each command parses, calls one job, and prints what was made."""

import typer

from reid_hub.cli.classify import classify
from reid_hub.cli.compress import compress
from reid_hub.cli.errors import run
from reid_hub.cli.evaluate import calibrate, evaluate, index_add, index_build, search
from reid_hub.cli.fd import attention, fd
from reid_hub.cli.hub import card, convert, list_names, push
from reid_hub.cli.kdep import basis, pretrain
from reid_hub.cli.oskt import expand, kdpp, refine, shrink, sparsify
from reid_hub.cli.ptl import std, surface
from reid_hub.cli.train import demo, train

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
distill_app = typer.Typer(no_args_is_help=True, help="Train students beside what a teacher says.")
distill_app.command("kdpp")(kdpp)
distill_app.command("fd")(fd)
distill_app.command("attention")(attention)
distill_app.command("std")(std)
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
