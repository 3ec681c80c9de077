"""The sections of results.json as dataclasses: data set, protocol, metrics, cost and training."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any, ClassVar, Self, get_type_hints

from reid_hub.errors import ReIDError
from reid_hub.evaluation.metrics import RetrievalResults


@dataclass(frozen=True, kw_only=True)
class Section:
    """A mapping in results.json: known keys are attributes, all others are kept unchanged in `extra`.

    Keys that default to None are optional, and not written if they are None; all other keys are required.
    """

    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], name: str = "results") -> Self:
        """Read a section from JSON content; `name` is its key, for error messages.

        Raises:
            ValueError: if a key is missing or invalid; names it.
        """
        if not isinstance(content, Mapping):
            raise ReIDError(f"{name!r} must be a non-empty mapping, got {content!r}")
        known = {part.name: part for part in fields(cls) if part.name != "extra"}
        required = [key for key, part in known.items() if not _optional(part)]
        if missing := [key for key in required if key not in content]:
            raise ReIDError(f"{name!r} lacks {', '.join(missing)}: it needs {', '.join(required)}")
        hints = get_type_hints(cls)
        values, extra = {}, {}
        for key, value in content.items():
            if key not in known or (value is None and key not in required):
                extra[key] = value
            elif isinstance(hints[key], type) and issubclass(hints[key], Section):
                values[key] = hints[key].from_dict(value, key)
            else:
                values[key] = value
        return cls(**values, extra=extra)

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON content with sorted keys."""
        values = {part.name: getattr(self, part.name) for part in fields(self) if part.name != "extra"}
        written = {part.name for part in fields(self) if not _optional(part)}
        known = {key: value for key, value in values.items() if value is not None or key in written}
        plain = {key: value.to_dict() if isinstance(value, Section) else value for key, value in known.items()}
        return dict(sorted({**plain, **self.extra}.items()))


def _optional(part: Field) -> bool:
    return part.default is None


@dataclass(frozen=True, kw_only=True)
class DatasetInfo(Section):
    """The data set of an evaluation.

    Attributes:
        data_dir_counts: counts found in the data folder, by split.
        camera_note: note on missing camera ids, if any; see `camera_note` in `reid_hub.data`.
    """

    name: str
    split: str
    data_dir_counts: Mapping[str, Mapping[str, int]]
    camera_note: str | None = None


@dataclass(frozen=True, kw_only=True)
class Cost(Section):
    """Cost of a model, see `measure_cost`; `search_ms` is the time of one query in an index, in milliseconds.

    Raises:
        ValueError: if a cost is negative or not finite.
    """

    parameters: int
    macs: int
    latency_ms: float
    attention_macs: int | None = None
    bytes_per_vector: int | None = None
    latency_threads: int | None = None
    latency_device: str | None = None
    image_size: Sequence[int] | None = None
    search_ms: float | None = None

    def __post_init__(self) -> None:
        for name in ("parameters", "macs", "latency_ms", "bytes_per_vector"):
            value = getattr(self, name)
            if not (value is None and name == "bytes_per_vector") and (not _is_number(value) or value < 0):
                raise ReIDError(f"cost {name} must be a finite number, at least 0, got {value!r}")

    @property
    def all_macs(self) -> int:
        """Multiply-adds of layers and attention."""
        return self.macs + (self.attention_macs or 0)


@dataclass(frozen=True, kw_only=True)
class TrainingInfo(Section):
    """How a model was trained; None where unknown (converted weights). Methods add keys to `extra`.

    Attributes:
        changes: settings that override the recipe.
        init: source of the initial weights.
        dataset: training data set, or several.
        base_model: Hub repository that training started from.
        model, data_options, validation, keep_ids: settings of the run.
        identities, classes: number of rows of the classifier.
    """

    method: str | None
    recipe: str | None
    epochs: float | None
    seed: int | None
    changes: Mapping[str, Any] | None = None
    init: str | None = None
    dataset: str | Sequence[str] | None = None
    base_model: str | None = None
    model: str | None = None
    data_options: Mapping[str, Any] | None = None
    validation: float | None = None
    keep_ids: float | None = None
    weight_decay: float | None = None
    batch_size: int | None = None
    precision: str | None = None
    identities: int | None = None
    classes: int | None = None
    images: int | None = None

    def with_extra(self, more: Mapping[str, Any] | None) -> "TrainingInfo":
        """A copy with more keys, which override existing ones."""
        return TrainingInfo.from_dict({**self.to_dict(), **(more or {})}, "training")


UNKNOWN_TRAINING = TrainingInfo(method=None, recipe=None, epochs=None, seed=None)


@dataclass(frozen=True, kw_only=True)
class Protocol(Section):
    """Evaluation protocol; the base class has no fields."""


@dataclass(frozen=True, kw_only=True)
class RetrievalProtocol(Protocol):
    """The protocol of `evaluate_retrieval`, with the numbers of queries and gallery images."""

    metric: str | None = None
    flip: bool | None = None
    rerank: Mapping[str, Any] | None = None
    codec: str | None = None
    shortlist: int | None = None
    cameras: bool | None = None
    num_queries: int | None = None
    num_valid_queries: int | None = None
    num_gallery: int | None = None

    @classmethod
    def of(cls, results: RetrievalResults) -> Self:
        """The protocol of an evaluation."""
        counts = {name: getattr(results, name) for name in ("num_queries", "num_valid_queries", "num_gallery")}
        return cls.from_dict({**results.protocol, **counts}, "protocol")


@dataclass(frozen=True, kw_only=True)
class ClassificationProtocol(Protocol):
    """How a classifier was tested, and which split its best epoch was chosen on."""

    num_images: int
    image_size: Sequence[int]
    resize_shortest: int | None
    evaluations: int
    best_chosen_on: str


@dataclass(frozen=True, kw_only=True)
class Metrics(Section):
    """Metrics as fractions in [0, 1]; the base class has none.

    Raises:
        ValueError: if a metric is not a fraction.
    """

    counts: ClassVar[tuple[str, ...]] = ()  # names of metrics that are not fractions

    def fractions(self) -> dict[str, float]:
        """The metrics by name, without `counts` and `extra`."""
        names = (part.name for part in fields(self) if part.name not in (*self.counts, "extra"))
        return {name: getattr(self, name) for name in names}

    def __post_init__(self) -> None:
        for part in fields(self):
            value = getattr(self, part.name)
            highest = math.inf if part.name in self.counts else 1
            if part.name != "extra" and (not _is_number(value) or not 0 <= value <= highest):
                raise ReIDError(f"metric {part.name} must be a fraction between 0 and 1 (not percent), got {value!r}")


@dataclass(frozen=True, kw_only=True)
class RetrievalMetrics(Metrics):
    """The metrics of `evaluate_retrieval`."""

    mAP: float
    rank1: float
    rank5: float
    rank10: float
    mINP: float

    @classmethod
    def of(cls, results: RetrievalResults) -> Self:
        """The metrics of an evaluation."""
        return cls(**{part.name: getattr(results, part.name) for part in fields(cls) if part.name != "extra"})


@dataclass(frozen=True, kw_only=True)
class ClassificationMetrics(Metrics):
    """Accuracies of the last epoch, and the best accuracy with its epoch."""

    counts: ClassVar[tuple[str, ...]] = ("best_epoch",)

    top1: float
    top5: float
    top1_best: float
    best_epoch: float


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
