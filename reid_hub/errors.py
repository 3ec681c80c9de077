"""Errors that the user can fix. Messages say what is required, what was given, and what to do next."""


class ReIDError(ValueError):
    """Invalid input: a name, a size, a file, or settings that exclude each other.

    The command line shows it as one line. Any other exception is a bug and keeps its traceback.
    """


class MissingError(ReIDError, FileNotFoundError):
    """A file or folder given by the user does not exist."""


class MissingLibraryError(ReIDError, ImportError):
    """An optional library is not installed."""


class RunError(ReIDError, RuntimeError):
    """The input is valid, but the run cannot continue: the loss diverged, the disk is full, the server refuses."""
