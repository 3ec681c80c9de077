"""The type checker of `make quality` finds wrong fields and arguments."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WRONG = """
from reid_hub.data.augmentation_options import Augmentation
from reid_hub.training.recipe import Recipe

augmentation = Augmentation(flip=0.5)
print(augmentation.flip, Augmentation(flipp=0.5))  # call-arg
print(augmentation.flipp)  # attr-defined
print(Augmentation(flip="often"))  # arg-type
print(Recipe())  # call-arg
"""


def test_wrong_fields_and_arguments_are_found(tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "wrong.py").write_text(WRONG)
    words = [sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml", tmp_path / "wrong.py"]
    said = subprocess.run(words, cwd=ROOT, capture_output=True, text=True).stdout
    found = dict(re.findall(r"wrong\.py:(\d+): error: .*\[([a-z-]+)\]", said))
    expected = {str(n): line.split("# ")[1] for n, line in enumerate(WRONG.splitlines(), 1) if "# " in line}
    assert found == expected, said
