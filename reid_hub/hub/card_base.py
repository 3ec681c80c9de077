"""The base class of all model cards."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from reid_hub.data import DATASETS
from reid_hub.errors import ReIDError
from reid_hub.evaluation.results import Results
from reid_hub.hub.citations import cite
from reid_hub.hub.terms import DataTerms, data_terms, datasets_of, license_of, names_of, title_of
from reid_hub.hub.text import step_text, table
from reid_hub.models import ReIDConfig, ReIDForImageClassification, ReIDModel

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    trim_blocks=True,
    undefined=StrictUndefined,
)
REPO_ID = "NAMESPACE/NAME"  # placeholder in the examples until the folder is pushed


@dataclass(frozen=True)
class EvaluationText:
    """One evaluation as printed on a card; `wrong_first` is the percentage of wrong first answers."""

    title: str
    split: str
    metrics: Sequence[str]
    wrong_first: str
    best_epoch: float | None
    setting: str | None
    camera_note: str | None
    details: Mapping[str, str]
    command: str


@dataclass(frozen=True)
class Card:
    """Base class of model cards; templates use its attributes by name.

    Attributes:
        template: file name of the template.
        noun: what the card calls the model.
        accepted: kinds of results that such a model can have.
        task: Hub identifier and name of the evaluated task.
        labels: printed names of the metrics.
        first: the metric that is the share of correct first answers.
        also_cited: names that every card of this kind cites, see `cite`.
    """

    config: Any
    results: Sequence[Results]
    repo_id: str = REPO_ID
    license: str | None = None

    template: ClassVar[str]
    tags: ClassVar[tuple[str, ...]]
    pipeline_tag: ClassVar[str | None] = "image-feature-extraction"
    noun: ClassVar[str] = "model"
    accepted: ClassVar[tuple[type[Results], ...]]
    task: ClassVar[tuple[str, str]]
    labels: ClassVar[Mapping[str, str]] = {}
    first: ClassVar[str]
    also_cited: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if not all(isinstance(result, self.accepted) for result in self.results):
            raise ReIDError("the results are of another kind of model than config.json: evaluate this one again")

    def render(self) -> str:
        """Render the card."""
        return TEMPLATES.get_template(self.template).render(card=self, card_data=self.header().to_yaml())

    def header(self) -> ModelCardData:
        """The metadata that the Hub reads."""
        return ModelCardData(
            license=self.weights_license,
            license_name="training-data-terms" if self.weights_license == "other" else None,
            library_name="transformers",
            pipeline_tag=self.pipeline_tag,
            tags=list(self.tags),
            datasets=self.trained_on or None,
            base_model=self.results[0].training.base_model if self.results else None,
            model_name=self.name,
            eval_results=list(self._eval_results()) or None,
        )

    @property
    def model(self) -> ReIDConfig:
        """The configuration whose variant, lineage and backbone the card describes."""
        return self.config

    @property
    def name(self) -> str:
        return self.results[0].model if self.results else self.model.variant or "person-reid"

    @cached_property
    def facts(self) -> dict[str, str]:
        """Facts from the configuration; sizes come from the model, built on the meta device."""
        with torch.device("meta"):
            whole = self._new_model()
        model = whole.reid if isinstance(whole, ReIDForImageClassification) else whole
        parameters = sum(parameter.numel() for parameter in whole.parameters())
        return {**self._network_facts(parameters, model.embedding_dim), **_option_facts(self.model, model)}

    def _new_model(self) -> ReIDModel | ReIDForImageClassification:
        return ReIDModel(self.config)

    def _network_facts(self, parameters: int, dim: int) -> dict[str, str]:
        config, (height, width) = self.model, self.model.image_size
        parts = (config.pooling, config.embedding, config.neck)
        return {
            "Variant": config.variant or "not a named one",
            "Backbone": config.backbone_config.model_type,
            "Parameters": f"{parameters:,}",
            "Input": f"{height} x {width} pixels (height x width)",
            "Embedding": f"{dim} numbers",
            "Pooling, embedding layer, neck": ", ".join(part["name"] for part in parts),
        }

    @property
    def measured(self) -> list[Results]:
        return [result for result in self.results if result.metrics.fractions()]

    @cached_property
    def evaluations(self) -> list[EvaluationText]:
        return [self._evaluation(result) for result in self.measured]

    @property
    def metric_labels(self) -> list[str]:
        return list(self.labels.values())

    @property
    def cost(self) -> dict[str, str]:
        return table(self.results[0].cost.to_dict()) if self.results else {}

    @property
    def training(self) -> dict[str, str]:
        return table(self.results[0].training.to_dict()) if self.results else {}

    @property
    def steps(self) -> list[str]:
        """The lineage, unless the training table says the same."""
        steps = self.model.lineage or []
        return [step_text(step) for step in steps if len(steps) > 1 or "teachers" in step or not self.results]

    @cached_property
    def trained_on(self) -> list[str]:
        last = names_of(self.results[0].training.dataset) if self.results else []
        return list(dict.fromkeys([*last, *datasets_of(self.model.lineage)]))

    @property
    def training_titles(self) -> list[str]:
        return [title_of(name) for name in self.trained_on]

    @property
    def drawn_only(self) -> bool:
        return self.trained_on == ["synthetic"]

    @property
    def weights_license(self) -> str | None:
        return self.license or license_of(self.trained_on)

    @property
    def data_terms(self) -> list[DataTerms]:
        return data_terms(self.trained_on, [result.dataset.name for result in self.results])

    @property
    def citations(self) -> list[str]:
        names = [self.model.backbone_config.model_type, self.model.variant, *self.also_cited]
        if self.results:
            names += [self.results[0].training.method, self.results[0].training.recipe]
        names += [step.get(key) for step in self.model.lineage or [] for key in ("method", "recipe")]
        names += ["rerank" for result in self.results if getattr(result.protocol, "rerank", None)]
        used = [*self.trained_on, *(result.dataset.name for result in self.results)]
        return cite(names, [DATASETS[name].citation for name in used if name in DATASETS])

    def _evaluation(self, result: Results) -> EvaluationText:
        metrics = result.metrics.fractions()
        details = {"data_dir_counts": result.dataset.data_dir_counts, **self._protocol(result)}
        return EvaluationText(
            title=title_of(result.dataset.name),
            split=result.dataset.split,
            metrics=[f"{100 * metrics[name]:.1f}" for name in self.labels],
            wrong_first=f"{100 * (1 - metrics[self.first]):.1f}",
            best_epoch=getattr(result.metrics, "best_epoch", None),
            setting=self._setting(result),
            camera_note=result.dataset.camera_note,
            details=table({**details, "versions": result.versions}),
            command=result.command,
        )

    def _protocol(self, result: Results) -> dict[str, Any]:
        return result.protocol.to_dict()

    def _setting(self, result: Results) -> str | None:
        """What distinguishes evaluations on the same data set."""
        return None

    def _eval_results(self) -> Iterator[EvalResult]:
        for result in self.measured:
            metrics = result.metrics.fractions()
            for name, label in self.labels.items():
                yield EvalResult(
                    task_type=self.task[0],
                    task_name=self.task[1],
                    dataset_type=result.dataset.name,
                    dataset_name=title_of(result.dataset.name),
                    dataset_split=result.dataset.split,
                    dataset_config=self._setting(result),
                    metric_type=name,
                    metric_name=label,
                    metric_value=metrics[name],
                )


def _option_facts(config: ReIDConfig, model: ReIDModel) -> dict[str, str]:
    """Facts that apply to some models only."""
    facts = {}
    if (codes := config.codes) is not None:
        kind = {"low_rank": "by a learned linear map", "pruned": "by pruning"}.get(codes["name"], "by slicing")
        facts["Compressed"] = f"from {model.compression.in_features} numbers {kind}"
        if codes["quantization"]:
            coded = f"{codes['quantization']}, one scale per {codes['granularity']}"
            facts["Stored as"] = f"{model.embedding_dim} bytes ({coded})"
    if config.side is not None:
        memory = "with" if config.side["memory"] else "without"
        facts["Side network"] = f"cells {config.side['cell']}, trained {memory} a memory of earlier batches"
    if config.decision is not None:
        facts["Same person"] = (
            f"{config.decision['metric']} distance up to {config.decision['threshold']:.4f}: false matches "
            f"{100 * config.decision['false_match_rate']:.3g} %, true matches "
            f"{100 * config.decision['true_match_rate']:.1f} % on {config.decision['dataset']}"
        )
    return facts
