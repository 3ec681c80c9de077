"""Errors that the user can mend. Their message says what must be, what was got, and what to do next."""


class ReIDError(ValueError):
    """The input is wrong: a name, a size, a file, settings that exclude each other.

    The command line shows it as one line. Every other exception is a bug of ours and keeps its traceback.
    """


class MissingError(ReIDError, FileNotFoundError):
    """A file or folder that the user names is not there."""


class MissingLibraryError(ReIDError, ImportError):
    """An optional library is not installed."""


class RunError(ReIDError, RuntimeError):
    """The input was right, but the run cannot go on: the loss diverged, the disk is full, the server refuses."""
