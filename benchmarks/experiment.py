"""A benchmark of trainings: rows to run, and a page of tables and sentences about their results."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from render import Block, Plot
from words import Runs

CIFAR = {"--cifar-dir": {"help": "CIFAR-10 as distributed, or one folder of images per class"}}


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        stages: calls of functions in stages.py, in order. Each resumes where it was interrupted.
        folder: folder of the last stage's results.json and of the model that other rows start from.
        needs: names of the rows that this row starts from.
        wanted: False for a row that runs only if a wanted row needs it.
        makes: result folders by name (default: `folder`, under the row's own name).
    """

    name: str
    stages: Sequence[partial]
    folder: Path
    needs: Sequence[str] = ()
    wanted: bool = True
    makes: Mapping[str, Path] = field(default_factory=dict)

    @property
    def results(self) -> Mapping[str, Path]:
        """Result folders by name."""
        return self.makes or {self.name: self.folder}


@dataclass(frozen=True)
class Options:
    """Options of the command line: `work` holds checkpoints, `out` page and results, `own` the experiment's options."""

    work: Path
    out: Path
    data_dir: str | None = None
    dataset_name: str = "market1501_tr751"
    scale: str = "small"
    seeds: Sequence[int] = (0,)
    own: Mapping[str, Any] = field(default_factory=dict)

    def settings(self, name: str, **fields: Any) -> dict[str, Any]:
        """Options of a row's runs. The name decides the seed, and the data set: CIFAR-10 for names "cifar10.ARM"."""
        seed = int((re.search(r"-seed(\d+)$", name) or [0, 0])[1])
        data = {"data": "market_layout", "data_dir": self.data_dir, "dataset_name": self.dataset_name}
        if name.startswith("cifar10."):
            data = {"data": "cifar10", "data_dir": self.own["cifar_dir"], "dataset_name": "CIFAR-10"}
        common = {"out": self.work / name, "seed": seed, "channels_last": True, "resume": True}
        return {**data, **common, **fields}

    def row(self, name: str, *stages: partial, needs: Sequence[str] = (), **fields: Any) -> Row:
        """A row with a folder of its own name; see `Row`."""
        return Row(name, stages, needs=needs, **{"folder": self.work / name, **fields})


@dataclass(frozen=True)
class Experiment:
    """A benchmark of trainings.

    Attributes:
        name: name of its file and of the folder of its page.
        about: text of `--help`: the question, what is compared, and what is kept the same.
        title: title of the page.
        rows: all rows of a scale and its seeds, most wanted first.
        page, plot: the page's blocks, the answer first, and its plot accuracy.png, from results and the scale.
        scales: "small" for two CPU cores, "full" for a GPU and the published sizes.
        options: further options of the command, as keyword arguments of `add_argument` by flag.
        required: options without which no row can run.
    """

    name: str
    about: str
    title: str
    rows: Callable[[Options], Iterable[Row]]
    page: Callable[[Runs, Any], Iterable[Block]]
    plot: Callable[[Runs, Any], Plot]
    scales: Mapping[str, Any]
    seeds: Sequence[int] = (0, 1)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    required: Sequence[str] = ("data_dir",)

    def blocks(self, runs: Runs, scale: str = "small") -> Iterable[Block]:
        """The whole page."""
        command = f"python benchmarks/run.py {self.name} --render"
        yield f"# {self.title}"
        yield from self.page(runs, self.scales[scale])
        yield f"Rendered by `{command}` from the results.json files in this folder."


def seeded(name: str, seed: int) -> str:
    """The name of a row with a seed; seed 0 is left out."""
    return f"{name}-seed{seed}" if seed else name
