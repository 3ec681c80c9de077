"""Error messages of the command line, and log messages of the library."""

import errno
import logging
import subprocess
import sys

import pytest
import torch

from reid_hub import ReIDConfig
from reid_hub.cli.errors import run
from reid_hub.errors import MissingError, MissingLibraryError, ReIDError, RunError
from reid_hub.logging import get_logger, set_verbosity


def raising(error: Exception):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    "main",
    [
        raising(ReIDError("the width must be 1, got 2")),
        raising(MissingError("the width must be 1, got 2")),
        raising(MissingLibraryError("the width must be 1, got 2")),
        raising(RunError("the width must be 1, got 2")),
        raising(OSError(errno.ENOSPC, "No space left on device")),
        lambda: ReIDConfig.from_variant("res5"),  # ValueError of a file that travels
        lambda: ReIDConfig.from_variant("res50", embed_dim="many"),  # of the strict dataclass
    ],
)
def test_errors_that_a_user_can_mend_are_one_line(main, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(SystemExit) as stopped:
        run(main)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("Error: ")
    monkeypatch.setattr(sys, "argv", ["program", "--debug"])
    monkeypatch.setenv("REID_HUB_DEBUG", "0")
    with pytest.raises((ValueError, OSError)):
        run(main)
    assert sys.argv == ["program"]


@pytest.mark.parametrize(
    "main",
    [
        lambda: torch.zeros(2, 3) @ torch.zeros(2, 3),  # shapes: RuntimeError
        lambda: torch.from_numpy([1]),  # TypeError
        lambda: int("many"),  # ValueError of the language, not ours
        raising(torch.OutOfMemoryError("out of memory")),
        raising(RuntimeError("of a library")),
    ],
)
def test_everything_else_keeps_its_traceback(main, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(Exception, match=r".") as raised:
        run(main)
    assert not isinstance(raised.value, ReIDError)


def test_an_interrupt_says_how_to_resume(monkeypatch, capsys):
    def main():
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(SystemExit) as stopped:
        run(main)
    assert stopped.value.code == 130
    assert "--resume" in capsys.readouterr().err


def test_the_library_is_quiet_unless_asked(capsys):
    logger = get_logger("reid_hub.somewhere")
    try:
        for level, shown in (("warning", ["two"]), ("info", ["one", "two"]), ("error", [])):
            set_verbosity(level)
            logger.info("one")
            logger.warning("two")
            said = capsys.readouterr()
            assert said.err.splitlines() == shown
            assert said.out == ""
        with pytest.raises(ValueError, match="LOUD"):
            set_verbosity("loud")
    finally:
        set_verbosity("warning")


@pytest.mark.parametrize(("value", "level"), [(None, "WARNING"), ("debug", "DEBUG"), ("nonsense", "WARNING")])
def test_the_environment_sets_the_level(value, level, monkeypatch):
    monkeypatch.delenv("REID_HUB_VERBOSITY", raising=False)
    if value is not None:
        monkeypatch.setenv("REID_HUB_VERBOSITY", value)
    code = "import logging, reid_hub.logging as l; l.get_logger(); print(logging.getLogger('reid_hub').level)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(ran.stdout) == getattr(logging, level)
