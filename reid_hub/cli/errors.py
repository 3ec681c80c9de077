"""Error handling: an error that the user can fix is printed as one line, a bug keeps its traceback."""

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
# Model files are used without the package and its errors: they raise ValueError or ImportError for user errors.
_MODELS = str(Path(reid_hub.__file__).parent / "models") + os.sep


def is_mendable(error: BaseException) -> bool:
    """Whether an exception is caused by the user's input, so that its message is sufficient.

    True for a `ReIDError`, an error of the operating system or the Hub, a field that a configuration rejects, and a
    ValueError or ImportError raised by a model file itself.
    """
    from huggingface_hub.errors import StrictDataclassError

    if isinstance(error, ReIDError | OSError | StrictDataclassError):
        return True
    raised_in = [frame.filename for frame in traceback.extract_tb(error.__traceback__)][-1:]
    return isinstance(error, ValueError | ImportError) and any(file.startswith(_MODELS) for file in raised_in)


def run(main: Callable[[], object]) -> None:
    """Run a program. An error that the user can fix prints one line and exits with code 2, an interrupt with code 130.

    `--debug` anywhere in the command, or REID_HUB_DEBUG=1 in the environment, shows the traceback of every error.
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
