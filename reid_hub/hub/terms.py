"""Which data weights were learned from, and under which terms."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reid_hub.data import DATASETS


@dataclass(frozen=True)
class DataTerms:
    """The terms of a data set, as a card shows them: its name, linked where it has a page, and what it was used for."""

    title: str
    use: str
    terms: str
    notice: str


def datasets_of(steps: Sequence[Mapping[str, Any]] | None) -> list[str]:
    """The data sets that weights of this lineage learned from, those of their teachers included, each once."""
    names = (name for step in steps or () for name in (*names_of(step.get("dataset")), *step.get("teachers_saw", ())))
    return list(dict.fromkeys(names))


def names_of(dataset: str | Sequence[str] | None) -> list[str]:
    """The names of one data set, of several, or of none."""
    return [dataset] if isinstance(dataset, str) else list(dataset or ())


def title_of(name: str) -> str:
    """What a data set is called in print."""
    return DATASETS[name].title if name in DATASETS else name


def license_of(trained_on: Sequence[str]) -> str | None:
    """The Hub's identifier of the licence of weights learned from these data sets; None if that is for the user to say.

    "apache-2.0" after training on drawn people, "other" after training on images that may not be passed on.
    """
    specs = [DATASETS.get(name) for name in trained_on]
    if not specs or None in specs:
        return None
    if all(spec.licence == "Apache-2.0" for spec in specs):
        return "apache-2.0"
    return None if all(spec.redistributable for spec in specs) else "other"


def data_terms(trained_on: Sequence[str], evaluated_on: Sequence[str]) -> list[DataTerms]:
    """The terms of each data set, those of the training first."""
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
