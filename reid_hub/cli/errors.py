"""How a program ends: what the user can mend is said in one line, a bug keeps its traceback."""

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import typer

import reid_hub
from reid_hub.errors import ReIDError
from reid_hub.logging import set_verbosity

DEBUG = "REID_HUB_DEBUG"
# Model files travel without the package and its errors: they raise ValueError or ImportError for what a user can mend.
_MODELS = str(Path(reid_hub.__file__).parent / "models") + os.sep


def is_mendable(error: BaseException) -> bool:
    """Whether an exception is about the user's input, so that its message says all that there is to say.

    That is a `ReIDError`, an error of the operating system or the Hub, a field that a configuration refuses, or a
    ValueError or ImportError that a model file itself raises.
    """
    from huggingface_hub.errors import StrictDataclassError

    if isinstance(error, ReIDError | OSError | StrictDataclassError):
        return True
    raised_in = [frame.filename for frame in traceback.extract_tb(error.__traceback__)][-1:]
    return isinstance(error, ValueError | ImportError) and any(file.startswith(_MODELS) for file in raised_in)


def run(main: Callable[[], object]) -> None:
    """Run a program; an error that the user can mend is one line and exit code 2, an interrupt 130.

    `--debug` anywhere in the command, or REID_HUB_DEBUG=1 in the environment, keeps the traceback of every error.
    """
    if "--debug" in sys.argv:
        sys.argv.remove("--debug")
        os.environ[DEBUG] = "1"
    if "REID_HUB_VERBOSITY" not in os.environ:
        set_verbosity("info")
    try:
        main()
    except Exception as error:
        if os.environ.get(DEBUG, "0") not in ("", "0") or not is_mendable(error):
            raise
        typer.secho(f"Error: {error}", fg="red", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.secho("Interrupted. To resume, repeat the command with --resume.", err=True)
        sys.exit(130)
