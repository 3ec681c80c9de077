"""The logger of the library: quiet by default, to stderr, like that of transformers.

The default level is WARNING; the environment variable REID_HUB_VERBOSITY or `set_verbosity` changes it. The command
line uses INFO.
"""

import logging
import os
import sys

_NAME = __name__.split(".")[0]
_LEVELS = ("debug", "info", "warning", "error", "critical")


class _Stderr(logging.Handler):
    """Writes to the current `sys.stderr`, which notebooks and tests replace."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(self.format(record), file=sys.stderr, flush=True)
        except Exception:
            self.handleError(record)


def _library_logger() -> logging.Logger:
    logger = logging.getLogger(_NAME)
    if not logger.handlers:
        logger.addHandler(_Stderr())
        logger.propagate = False
        level = os.environ.get("REID_HUB_VERBOSITY", "warning").upper()
        logger.setLevel(level if level.lower() in _LEVELS else "WARNING")
    return logger


def get_logger(name: str = _NAME) -> logging.Logger:
    """The logger of a module, below the library's own: `logger = get_logger(__name__)`."""
    _library_logger()
    return logging.getLogger(name)


def set_verbosity(level: int | str) -> None:
    """Show messages of this level and above: `"debug"`, `"info"`, `"warning"`, `"error"`, or a level of `logging`.

    Raises:
        ValueError: if the level is unknown.
    """
    _library_logger().setLevel(level.upper() if isinstance(level, str) else level)
