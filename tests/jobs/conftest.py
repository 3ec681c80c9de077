"""What the command line says of wrong input."""

import sys
from collections.abc import Callable

import pytest

from reid_hub.cli import main


@pytest.fixture
def complaint(monkeypatch, capsys) -> Callable[[list], str]:
    """`complaint(words)`: run the command, which must stop with exit code 2, and return its one line."""

    def run(words: list) -> str:
        monkeypatch.setattr(sys, "argv", ["reid-hub", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith("Error: ")
        return said

    return run
