"""Every option of the command line and of the examples is a field of a settings dataclass, with a help text."""

import inspect
import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import get_type_hints

import pytest
from transformers import HfArgumentParser
from typer.main import get_command

from reid_hub.cli import app
from reid_hub.cli import examples as shared

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
DOCUMENTED = [*EXAMPLES, *sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]


class Parsed(Exception):
    """Stops an example where its work would begin."""


def commands(command, path="reid-hub"):
    """All commands by their words, including those of groups, and groups that are commands themselves."""
    if command.callback is not None:
        yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, f"{path} {name}")


COMMANDS = dict(commands(get_command(app)))


@pytest.mark.parametrize("path", COMMANDS)
def test_options_of_a_command_are_those_of_its_settings(path):
    command = COMMANDS[path]
    settings = get_type_hints(inspect.unwrap(command.callback))["settings"]
    fields, found = settings.options(), {param.name: param for param in command.params if param.name != "help"}
    assert found.keys() == fields.keys()
    for name, param in found.items():
        flag = "--" + name.replace("_", "-")
        assert param.param_type_name == "argument" or flag in param.opts
        assert param.help.strip() == fields[name].metadata["help"] != "", flag
    assert "Example: " in command.help


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_options_of_an_example_are_those_of_its_settings(monkeypatch, example):
    seen = []

    def parse(settings, *args, **options):
        seen.append(settings)
        return real(settings, *args, **options)

    def stop(parser, **options):
        seen.append(parser)
        raise Parsed

    real = shared.parse
    monkeypatch.setattr(shared, "parse", parse)
    monkeypatch.setattr(HfArgumentParser, "parse_args_into_dataclasses", stop)
    monkeypatch.setattr(sys, "argv", [str(example)])
    with pytest.raises(Parsed):
        runpy.run_path(str(example))["main"]()
    settings, parser = seen
    fields = settings.options()
    actions = [action for action in parser._actions if action.dest != "help"]
    assert {action.dest for action in actions} == fields.keys()
    for action in actions:
        assert action.help == fields[action.dest].metadata["help"].strip() != "", action.dest
        flag = action.dest.replace("_", "-")
        assert {f"--{flag}", f"--no-{flag}"} & set(action.option_strings)
    assert runpy.run_path(str(example))["__doc__"].splitlines()[0] in parser.format_help()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_has_no_parser_of_its_own(example):
    text = example.read_text()
    assert "add_argument" not in text
    assert "argparse" not in text


@pytest.mark.parametrize("path", DOCUMENTED, ids=lambda path: path.name)
def test_documented_commands_of_the_examples_are_understood(monkeypatch, path):
    parse = shared.parse

    def stop(*args, **options):
        parse(*args, **options)
        raise Parsed

    monkeypatch.setattr(shared, "parse", stop)
    text = re.sub(r"\\+\n", " ", path.read_text())
    for example, words in re.findall(
        r"^ *(?:accelerate launch|python)(?: --\S+(?: \d)?)* (examples/\w+\.py)(.*)$", text, re.M
    ):
        monkeypatch.setattr(
            sys, "argv", [example, *(word for word in shlex.split(words, comments=True) if word != "...")]
        )
        with pytest.raises(Parsed):
            runpy.run_path(str(ROOT / example))["main"]()
