"""Sizes in the documents are those of the models, figures those of the benchmarks, and every command exists."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from typer.main import get_command

from reid_hub import ReIDConfig, ReIDModel
from reid_hub.cli import app
from reid_hub.evaluation import count_macs
from reid_hub.training import RECIPES

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SIZES = re.findall(r"^\| ([\w.-]+) \| ([\d,]+) \| ([\d,]+) \|", (ROOT / "docs" / "oskt.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize(("variant", "parameters", "macs"), SIZES, ids=[row[0] for row in SIZES])
def test_sizes_of_published_students(variant, parameters, macs):
    with torch.device("meta"), torch.no_grad():
        model = ReIDModel(ReIDConfig.from_variant(variant)).eval()
        counted = count_macs(model, torch.zeros(1, 3, *model.config.image_size))[0]
    assert sum(p.numel() for p in model.backbone.parameters()) == int(parameters.replace(",", ""))
    assert counted == int(macs.replace(",", ""))


def test_the_table_of_sizes_was_found():
    assert len(SIZES) == 17


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_links_in_the_documents_exist(page):
    text = page.read_text()
    known = {command.name or command.callback.__name__ for command in app.registered_commands}
    known |= {group.name for group in app.registered_groups}
    commands = set(re.findall(r"reid-hub ([a-z]\w*)", text))
    assert commands
    assert commands <= known
    for example in re.findall(r"examples/\w+\.py", text):
        assert (ROOT / example).is_file(), example
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_documented_commands_are_understood(page):
    text = re.sub(r"\\\n", " ", page.read_text())
    for words in re.findall(r"^reid-hub (.*)$", text, re.MULTILINE):
        command, rest = get_command(app), [word for word in shlex.split(words, comments=True) if word != "..."]
        while rest and rest[0] in getattr(command, "commands", {}):
            command = command.commands[rest.pop(0)]
        command.make_context("reid-hub", rest).close()  # raises a UsageError for what the command does not have


def tables(text):
    """The rows of all tables of a page, each as a mapping from the titles of its columns to its cells."""
    for table in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        titles, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
        yield [dict(zip(titles, row, strict=True)) for row in rows]


def test_results_in_the_readme_are_those_of_the_benchmark():
    page = [row for table in tables((ROOT / "benchmarks" / "oskt" / "README.md").read_text()) for row in table]
    shown = next(table for table in tables((ROOT / "README.md").read_text()) if "OSKT" in table[0])
    assert len(shown) == 3
    for row in shown:
        assert any(row.items() <= measured.items() for measured in page), row


@pytest.mark.parametrize("page", [*PAGES, *EXAMPLES], ids=lambda page: page.name)
def test_recipes_in_the_documents_exist(page):
    # In a command, not in a sentence about the option.
    named = re.findall(r"^.*(?: --|reid-hub|`).*--recipe[= ]([a-z][\w-]*)", page.read_text(), re.MULTILINE)
    assert set(named) <= RECIPES.keys()
