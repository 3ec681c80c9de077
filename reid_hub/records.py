"""What a folder says of how it was made, and the one comparison of two such records."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from reid_hub.errors import ReIDError
from reid_hub.files import atomic_file

# In a folder of its own, so that it is never published.
RUN_FILE = Path("training", "run.json")
_SHOWN = 4  # differences that a message names


@dataclass(frozen=True)
class RunRecord:
    """What a run is, and how far it came.

    Attributes:
        stage: the kind of run: "train", "refine", "basis", ...
        key: all that decides the result, see `canonical`; two runs with equal keys have the same result.
        done: whether the result is complete.
        found: what became known on the way, such as a scale that was computed from the data; not compared.
    """

    stage: str
    key: Mapping[str, Any]
    done: bool = False
    found: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: str | Path, file: str | Path = RUN_FILE) -> Self | None:
        """The record in a folder, or None where nothing says what the folder is.

        Raises:
            ReIDError: if the file is damaged.
        """
        path = Path(folder, file)
        if not path.is_file():
            return None
        try:
            return cls(**json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise ReIDError(f"{path} is damaged ({error}): remove it, or use another folder") from error

    def write(self, folder: str | Path, file: str | Path = RUN_FILE) -> None:
        """Write the record into a folder."""
        with atomic_file(Path(folder, file)) as temporary:
            temporary.write_text(json.dumps(canonical(asdict(self)), indent=2, sort_keys=True) + "\n")

    def finished(self, **found: Any) -> Self:
        """The record of the same run when it is done."""
        return replace(self, done=True, found={**self.found, **found})

    def check(self, other: "RunRecord", folder: str | Path) -> None:
        """Refuse to take another run for this one, which was found in `folder`.

        Raises:
            ReIDError: naming what differs.
        """
        check_same(folder, {"stage": self.stage, **self.key}, {"stage": other.stage, **other.key})


def canonical(value: Any) -> Any:
    """A value as JSON reads it back, without what differs between machines and spellings.

    Tuples are lists, numbers are Python's, dataclasses are mappings. A path that exists is its name: the folders of a
    machine are nobody's business.
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
    """How a run differs from an earlier one, in words: "recipe.learning_rate was 0.01 and is 0.1".

    What one of them does not mention is None in it.
    """
    return [f"{name} was {old!r} and is {new!r}" for name, old, new in _differing(canonical(before), canonical(now))]


def check_same(
    where: str | Path,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    advice: str = "repeat the command it was made with, or give another folder",
) -> None:
    """Refuse to take one run for another.

    Raises:
        ReIDError: naming the place and what differs, if anything does.
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
