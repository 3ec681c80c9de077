"""`results.json`: one evaluation, with everything needed to interpret and to reproduce it.

`Results` is the content of the file; its kinds are `RetrievalEvaluation`, `ClassificationEvaluation` and `Pretraining`.
Only `Results.read` and `Results.write` handle JSON.
"""

import json
import platform
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Self

from reid_hub.errors import MissingError, ReIDError
from reid_hub.evaluation.sections import (
    ClassificationMetrics,
    ClassificationProtocol,
    Cost,
    DatasetInfo,
    Metrics,
    Protocol,
    RetrievalMetrics,
    RetrievalProtocol,
    Section,
    TrainingInfo,
)
from reid_hub.files import atomic_file
from reid_hub.registry import lookup

LIBRARIES = ("torch", "transformers")

# An absolute path ("/", "~/", "C:\", "file:///") at the start of an argument or after a separator, up to the next
# separator; "https://..." is not a path.
_ABSOLUTE_PATH = re.compile(
    r"""(?:(?<=^)|(?<=[=,;:@\s"'(\[{]))(?:file://)?(?:~[^/\\\s]*|[A-Za-z]:)?(?!(?<=:)//)[/\\][^,;:"')\]}]*"""
)


def _this_command() -> str:
    return public_command(sys.argv)


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that the results depend on."""
    from reid_hub.version import __version__

    return {
        "python": platform.python_version(),
        "reid_hub": __version__,
        **{name: version(name) for name in LIBRARIES},
    }


@dataclass(frozen=True, kw_only=True)
class Results(Section):
    """The content of results.json.

    Attributes:
        model: name of the model, such as "res50-s1.supervised".
        command: the command that was run, see `public_command` (default: that of this process).

    Raises:
        ValueError: if a value is invalid.
    """

    task: ClassVar[str]

    model: str
    dataset: DatasetInfo
    protocol: Protocol
    metrics: Metrics
    cost: Cost
    training: TrainingInfo
    command: str = field(default_factory=_this_command)
    versions: Mapping[str, str] = field(default_factory=versions)

    def __post_init__(self) -> None:
        for name in ("model", "command"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise ReIDError(f"{name!r} must be a non-empty str, got {value!r}")
        if missing := {"python", "torch", "transformers", "reid_hub"} - set(self.versions):
            raise ReIDError(f"'versions' lacks {', '.join(sorted(missing))}")

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], name: str = "results") -> Self:
        """Results of the kind given by the key "task" (default: retrieval).

        Raises:
            ValueError: if a key is missing or invalid; says what it must be and what it is.
        """
        if not isinstance(content, Mapping):
            raise ReIDError(f"{name} must be a mapping, got {type(content).__name__}")
        kind = lookup(TASKS, content.get("task", RetrievalEvaluation.task), "task")
        if not issubclass(kind, cls):
            raise ReIDError(f"these are results of {kind.task}, not of {cls.task}: evaluate the model again")
        for part in fields(kind):
            if part.name != "extra" and part.name not in content:
                raise ReIDError(f"{name} lack {part.name!r}: evaluate the model again")
        return super(Results, kind).from_dict({key: content[key] for key in content if key != "task"}, name)

    def to_dict(self) -> dict[str, Any]:
        task = {} if self.task == RetrievalEvaluation.task else {"task": self.task}
        return dict(sorted({**super().to_dict(), **task}.items()))

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a results.json.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if it is not valid JSON or not valid results; names the file.
        """
        path = Path(path)
        if not path.is_file():
            raise MissingError(f"no results in {path}: write them with `reid-hub evaluate`")
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise ReIDError(f"{path}: {error}") from error

    def write(self, path: str | Path) -> Path:
        """Write the results atomically as JSON with sorted keys; returns the path.

        Raises:
            ValueError: if they hold a value that JSON cannot represent.
        """
        try:
            text = json.dumps(self.to_dict(), indent=2, sort_keys=True, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ReIDError(f"results must hold plain finite numbers, strings, lists and mappings: {error}") from error
        with atomic_file(path) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
        return Path(path)


@dataclass(frozen=True, kw_only=True)
class RetrievalEvaluation(Results):
    """Evaluation of a model on query and gallery."""

    task: ClassVar[str] = "retrieval"

    protocol: RetrievalProtocol
    metrics: RetrievalMetrics

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cost.bytes_per_vector is None:
            raise ReIDError("'cost' lacks bytes_per_vector: measure it with measure_cost")


@dataclass(frozen=True, kw_only=True)
class ClassificationEvaluation(Results):
    """Evaluation of a classifier on a test split."""

    task: ClassVar[str] = "classification"

    protocol: ClassificationProtocol
    metrics: ClassificationMetrics


@dataclass(frozen=True, kw_only=True)
class Pretraining(Results):
    """A pre-trained backbone, not evaluated."""

    task: ClassVar[str] = "pretraining"

    protocol: Protocol = field(default_factory=Protocol)
    metrics: Metrics = field(default_factory=Metrics)


TASKS: dict[str, type[Results]] = {
    kind.task: kind for kind in (RetrievalEvaluation, ClassificationEvaluation, Pretraining)
}


def public_command(words: Sequence[str]) -> str:
    """Join the words of a command to a shell line, reducing every absolute path to its last part.

    `["/home/me/bin/reid-hub", "evaluate", "--data-dir=/data/market"]` -> `reid-hub evaluate --data-dir=market`.
    """
    return shlex.join(_ABSOLUTE_PATH.sub(_last_part, word) for word in words)


def _last_part(match: re.Match) -> str:
    return re.split(r"[/\\]+", match.group().rstrip("/\\"))[-1]
