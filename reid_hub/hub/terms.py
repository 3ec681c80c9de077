"""Training data of weights, and the terms of that data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reid_hub.data import DATASETS


@dataclass(frozen=True)
class DataTerms:
    """The terms of a data set as shown on a card: its name, linked to its home page, and its use."""

    title: str
    use: str
    terms: str
    notice: str


def datasets_of(steps: Sequence[Mapping[str, Any]] | None) -> list[str]:
    """Names of the data sets that weights of this lineage were trained on, including those of their teachers."""
    names = (name for step in steps or () for name in (*names_of(step.get("dataset")), *step.get("teachers_saw", ())))
    return list(dict.fromkeys(names))


def names_of(dataset: str | Sequence[str] | None) -> list[str]:
    """The names of one, several or no data sets, as a list."""
    return [dataset] if isinstance(dataset, str) else list(dataset or ())


def title_of(name: str) -> str:
    """The printed name of a data set."""
    return DATASETS[name].title if name in DATASETS else name


def license_of(trained_on: Sequence[str]) -> str | None:
    """Hub identifier of the licence of weights trained on these data sets; None if the user has to choose it.

    "apache-2.0" for generated images, "other" for images that must not be redistributed.
    """
    specs = [DATASETS.get(name) for name in trained_on]
    if not specs or None in specs:
        return None
    if all(spec.licence == "Apache-2.0" for spec in specs):
        return "apache-2.0"
    return None if all(spec.redistributable for spec in specs) else "other"


def data_terms(trained_on: Sequence[str], evaluated_on: Sequence[str]) -> list[DataTerms]:
    """The terms of each data set, training data first."""
    rows = []
    for name in dict.fromkeys((*trained_on, *evaluated_on)):
        spec = DATASETS.get(name)
        rows.append(
            DataTerms(
                title=f"[{spec.title}]({spec.homepage})" if spec and spec.homepage else title_of(name),
                use="training" if name in trained_on else "evaluation",
                terms=spec.licence if spec else "not known to reid_hub: ask whoever holds the data",
                notice=spec.notice if spec else "",
            )
        )
    return rows
