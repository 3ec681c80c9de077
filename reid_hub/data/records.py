"""What a data set file gives: its description (`DatasetSpec`) and what it found on disk (`Scan`)."""

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
        """What the `path` column holds: unique also for several crops of one frame."""
        return self.path if self.box is None else f"{self.path}#{','.join(map(str, self.box))}"


class Counts(NamedTuple):
    """Published size of one split; None where no number was published."""

    images: int | None
    ids: int | None


def image_files(root: Path, records: Sequence[Record]) -> Iterator[Any]:
    """The usual reader: Arrow keeps the paths, the pixels stay where they are."""
    for record in records:
        yield str(root / record.path)


@dataclass(frozen=True)
class Scan:
    """What a loader found: pids as the data set writes them, junk still in.

    `read(root, records)` yields one value for a `datasets.Image` column per record. `sources` are the files that hold
    the pixels where they are not the records' own paths. `classes` are the names of the labels of a classification
    set, whose records carry the label as pid. A data set that is computed has `draw` instead of records: it gives the
    finished rows of every split, and `sources` are the files of the program that draws. `tolerant` lets empty files be:
    who reads the images leaves out what cannot be read.
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

    `scan(data_dir, **options) -> Scan`; its keyword arguments are the options of `load_reid_dataset`. `counts` are
    the official ones of the default options, `variant_counts[option, value]` replace them split by split; both count
    the images in the folders, junk and distractors included. A data set without `layout` (what `data_dir` must
    hold) needs no `data_dir`. `notice` is shown as a warning on every load.
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
    """Return an option's value if it is one of its choices.

    Raises:
        ValueError: naming the choices.
    """
    if value not in choices:
        raise ReIDError(f"{option} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value
