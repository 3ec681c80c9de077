"""What a data set module provides: its description (`DatasetSpec`) and what it finds on disk (`Scan`)."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from reid_hub.errors import ReIDError

JUNK = -1
DISTRACTOR = 0
NO_CAMERA = -1


class Record(NamedTuple):
    """One image: its path below the data set's root, person, camera (0-based) and, for a crop, (x, y, w, h)."""

    path: str
    pid: int
    camid: int = NO_CAMERA
    box: tuple[int, int, int, int] | None = None

    @property
    def key(self) -> str:
        """Value of the `path` column; unique even for several crops of one frame."""
        return self.path if self.box is None else f"{self.path}#{','.join(map(str, self.box))}"


class Counts(NamedTuple):
    """Published size of a split; None if not published."""

    images: int | None
    ids: int | None


def image_files(root: Path, records: Sequence[Record]) -> Iterator[Any]:
    """The default reader: Arrow stores the paths, the image files stay where they are."""
    for record in records:
        yield str(root / record.path)


@dataclass(frozen=True)
class Scan:
    """What a data set module found on disk, with the data set's own pids and with junk.

    Attributes:
        root: folder that the records' paths are relative to.
        splits: records of each split.
        read: `read(root, records)` yields one value for a `datasets.Image` column per record.
        sources: files that hold the pixels, if they are not the files of the records; for a generated data set, the
            source files of the generator.
        classes: label names of a classification data set; its records have the label as pid.
        draw: for a generated data set, a function that returns the finished rows of every split, instead of records.
        tolerant: accept empty files; they are skipped when the images are read.
    """

    root: Path
    splits: Mapping[str, Sequence[Record]] = field(default_factory=dict)
    read: Callable[[Path, Sequence[Record]], Iterator[Any]] = image_files
    sources: Sequence[Path] | None = None
    classes: Sequence[str] | None = None
    draw: Callable[[], Mapping[str, list[dict[str, Any]]]] | None = None
    tolerant: bool = False


@dataclass(frozen=True)
class DatasetSpec:
    """A data set: where it comes from, its terms, its official counts, and the function that reads its layout.

    Attributes:
        layout: what `data_dir` must hold; a data set without a layout needs no `data_dir`.
        scan: `scan(data_dir, **options) -> Scan`; its keyword arguments are the options of `load_reid_dataset`.
        counts: official counts for the default options, including junk and distractors.
        variant_counts: `variant_counts[option, value]` overrides `counts` split by split.
        notice: warning shown on every load.
    """

    name: str
    title: str
    homepage: str
    licence: str
    citation: str
    layout: str
    scan: Callable[..., Scan]
    counts: Mapping[str, Counts] = field(default_factory=dict)
    variant_counts: Mapping[tuple[str, Any], Mapping[str, Counts]] = field(default_factory=dict)
    notes: str = ""
    notice: str = ""
    redistributable: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """Names and defaults of the options of `load_reid_dataset` for this data set."""
        parameters = inspect.signature(self.scan).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    def official_counts(self, options: Mapping[str, Any]) -> dict[str, Counts]:
        """Official counts per split under these options."""
        counts = dict(self.counts)
        for (option, value), changed in self.variant_counts.items():
            if options.get(option, self.options.get(option)) == value:
                counts.update(changed)
        return counts


def one_of(option: str, value: str, choices: Sequence[str]) -> str:
    """Return the value of an option after checking it.

    Raises:
        ValueError: if it is not one of the choices; names them.
    """
    if value not in choices:
        raise ReIDError(f"{option} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value
