"""What is wrong with the input is said in one line, without a traceback."""

import sys
from collections.abc import Callable

import typer


def run(main: Callable[[], object]) -> None:
    """Run a program; an error that a user can mend is one line and exit code 2, an interrupt 130.

    Anything else is a mistake of ours and leaves its traceback.
    """
    from huggingface_hub.errors import StrictDataclassError

    try:
        main()
    except (ValueError, OSError, ImportError, RuntimeError, StrictDataclassError) as error:
        typer.secho(f"Error: {error}", fg="red", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.secho("Stopped; --resume goes on from the last checkpoint.", err=True)
        sys.exit(130)
