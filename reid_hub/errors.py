"""Errors that the user can mend; the command line shows them as one line."""


class ReIDError(ValueError):
    """Something the user can mend: the message says what must be, what was given, and what to do next."""


class MissingError(ReIDError, FileNotFoundError):
    """A file or folder that has to be there, and is not."""
