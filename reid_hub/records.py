"""Records of runs, and the comparison of two records."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from reid_hub.errors import ReIDError
from reid_hub.files import atomic_file

# In a sub-folder, because sub-folders are never published.
RUN_FILE = Path("training", "run.json")
_SHOWN = 4  # number of differences shown in a message


@dataclass(frozen=True)
class RunRecord:
    """What determines a run, and its progress.

    Attributes:
        stage: the kind of run: "train", "refine", "basis", ...
        key: everything that determines the result, see `canonical`; runs with equal keys have the same result.
        done: whether the result is complete.
        found: values computed during the run, such as a scale derived from the data; not compared.
    """

    stage: str
    key: Mapping[str, Any]
    done: bool = False
    found: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: str | Path, file: str | Path = RUN_FILE) -> Self | None:
        """Read the record of a folder; None if there is none.

        Raises:
            ReIDError: if the file is damaged.
        """
        path = Path(folder, file)
        if not path.is_file():
            return None
        try:
            return cls(**json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise ReIDError(
                f"{path} is damaged, or an earlier version of reid_hub wrote it ({error}): use another folder"
            ) from error

    def write(self, folder: str | Path, file: str | Path = RUN_FILE) -> None:
        """Write the record to a folder."""
        with atomic_file(Path(folder, file)) as temporary:
            temporary.write_text(json.dumps(canonical(asdict(self)), indent=2, sort_keys=True) + "\n")

    def finished(self, **found: Any) -> Self:
        """A copy marked as done, with more values in `found`."""
        return replace(self, done=True, found={**self.found, **found})

    def check(self, other: "RunRecord", folder: str | Path) -> None:
        """Check that `other` is the same run as this one, which was found in `folder`.

        Raises:
            ReIDError: if they differ; names the differences.
        """
        check_same(folder, {"stage": self.stage, **self.key}, {"stage": other.stage, **other.key})


def canonical(value: Any) -> Any:
    """Convert a value to what JSON reads back, independent of machine and notation.

    Tuples become lists, numpy values Python's, dataclasses mappings. An existing path is reduced to its name, so that
    records do not contain the folders of a machine.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return canonical(asdict(value))
    if isinstance(value, Mapping):
        return {str(name): canonical(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return canonical(value.tolist())
    if isinstance(value, Path):
        return value.name if value.exists() else str(value)
    return json.loads(json.dumps(value))


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Describe how a run differs from an earlier one: "recipe.learning_rate was 0.01 and is 0.1".

    Missing keys count as None.
    """
    return [f"{name} was {old!r} and is {new!r}" for name, old, new in _differing(canonical(before), canonical(now))]


def check_same(
    where: str | Path,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    advice: str = "repeat the command it was made with, or give another folder",
) -> None:
    """Check that two records are of the same run.

    Raises:
        ReIDError: if they differ; names `where` and the differences.
    """
    if found := differences(before, now):
        more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise ReIDError(f"{where} belongs to another run: {'; '.join(found[:_SHOWN])}{more}. To go on, {advice}")


def _differing(before: Any, now: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in {**before, **now}:
            yield from _differing(before.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif before != now:
        yield name, before, now
