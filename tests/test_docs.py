"""What the documents say of sizes is what the models have, and every command in them exists."""

import re
from pathlib import Path

import pytest
import torch

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


@pytest.mark.parametrize("page", [*PAGES, *EXAMPLES], ids=lambda page: page.name)
def test_recipes_in_the_documents_exist(page):
    # In a command, not in a sentence about the option.
    named = re.findall(r"^.*(?: --|reid-hub|`).*--recipe[= ]([a-z][\w-]*)", page.read_text(), re.MULTILINE)
    assert set(named) <= RECIPES.keys()
