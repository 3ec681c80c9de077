"""The model card: README.md of a checkpoint, rendered from its config.json and results.json alone.

Each kind of model has a subclass of `Card` and a template; `Card` provides what all cards share.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch

from reid_hub.errors import MissingError
from reid_hub.evaluation.results import ClassificationEvaluation, Pretraining, Results, RetrievalEvaluation
from reid_hub.files import atomic_file
from reid_hub.hub.card_base import REPO_ID, Card
from reid_hub.hub.folder import read_json
from reid_hub.hub.text import LABELS, text
from reid_hub.models import ReIDConfig, ReIDForImageClassification, ReIDModel, WeightChain, WeightChainConfig
from reid_hub.models.width_scale import width_of


def write_card(folder: str | Path, *, repo_id: str = REPO_ID, license: str | None = None) -> Path:
    """Render `folder`/README.md from config.json and, if present, results.json; options as in `render_card`.

    Raises:
        FileNotFoundError: if there is no config.json.
        ValueError: if one of the files is invalid.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise MissingError(f"{folder} has no config.json: give the folder that model.save_pretrained wrote")
    config = read_config(read_json(folder / "config.json"))
    content = read_json(folder / "results.json") if (folder / "results.json").is_file() else []
    results = [Results.from_dict(part) for part in (content if isinstance(content, list) else [content])]
    card = render_card(config, results, repo_id=repo_id, license=license)
    with atomic_file(folder / "README.md") as temporary:
        temporary.write_text(card, encoding="utf-8")
    return folder / "README.md"


def read_config(content: Mapping[str, Any]) -> ReIDConfig | WeightChainConfig:
    """The configuration of a model or a weight chain, from the content of its config.json.

    Raises:
        ValueError: if it is neither.
    """
    is_chain = content.get("model_type") == WeightChainConfig.model_type
    return (WeightChainConfig if is_chain else ReIDConfig).from_dict(dict(content))


def render_card(
    config: ReIDConfig | WeightChainConfig,
    results: Sequence[Results] = (),
    *,
    repo_id: str = REPO_ID,
    license: str | None = None,
) -> str:
    """Render a model card with valid Hub metadata.

    Args:
        results: evaluations of the model, one per data set, split and setting.
        repo_id: repository of the model, used in the examples.
        license: Hub identifier of the weights' licence (default: see `license_of`).

    Raises:
        ValueError: if the results are of another kind of model.
    """
    return kind_of(config, results)(config, tuple(results), repo_id, license).render()


def kind_of(config: ReIDConfig | WeightChainConfig, results: Sequence[Results]) -> type["Card"]:
    """The class of card for a model with these results."""
    if isinstance(config, WeightChainConfig):
        return WeightChainCard
    if ReIDForImageClassification.__name__ in (config.architectures or ()):
        return ClassifierCard
    if results and all(isinstance(result, Pretraining) for result in results):
        return BackboneCard
    return QuantizedCard if (config.codes or {}).get("quantization") == "int8" else RetrievalCard


class RetrievalCard(Card):
    """A model that embeds images of people."""

    template: ClassVar[str] = "retrieval.md"
    tags: ClassVar[tuple[str, ...]] = (
        "person-reid", "person-re-identification", "re-identification",
        "image-retrieval", "metric-learning", "reid-hub",
    )  # fmt: skip
    accepted: ClassVar[tuple[type[Results], ...]] = (RetrievalEvaluation, Pretraining)
    task: ClassVar[tuple[str, str]] = ("image-retrieval", "Person re-identification")
    labels: ClassVar[Mapping[str, str]] = {
        "mAP": "mAP", "rank1": "Rank-1", "rank5": "Rank-5", "rank10": "Rank-10", "mINP": "mINP",
    }  # fmt: skip
    first: ClassVar[str] = "rank1"

    def _protocol(self, result: Results) -> dict[str, Any]:
        protocol = result.protocol.to_dict()
        return {**protocol, "rerank": protocol.get("rerank") or False}

    def _setting(self, result: Results) -> str | None:
        if not isinstance(result, RetrievalEvaluation):
            return None
        protocol = result.protocol
        applied = [LABELS[name].lower() for name in ("flip", "rerank") if getattr(protocol, name)]
        return ", ".join(part for part in (protocol.metric, protocol.codec, *applied) if part) or None


class QuantizedCard(RetrievalCard):
    """A model whose embeddings are int8 codes."""

    template: ClassVar[str] = "quantized.md"

    @property
    def scale(self) -> str:
        """The scale argument of an index of such codes, as code."""
        by_dimension = self.config.codes["granularity"] == "dimension"
        return ", scale=model.int8_scale(None)" if by_dimension else ""


class BackboneCard(Card):
    """A pre-trained backbone without an evaluation."""

    template: ClassVar[str] = "backbone.md"
    accepted: ClassVar[tuple[type[Results], ...]] = (Pretraining,)
    tags: ClassVar[tuple[str, ...]] = ("knowledge-distillation", "pre-training", "backbone", "reid-hub")


class ClassifierCard(Card):
    """An image classifier."""

    template: ClassVar[str] = "classifier.md"
    tags: ClassVar[tuple[str, ...]] = ("image-classification", "reid-hub")
    pipeline_tag: ClassVar[str | None] = "image-classification"
    accepted: ClassVar[tuple[type[Results], ...]] = (ClassificationEvaluation,)
    task: ClassVar[tuple[str, str]] = ("image-classification", "Image classification")
    labels: ClassVar[Mapping[str, str]] = {
        "top1": "Top-1", "top5": "Top-5", "top1_best": "Best top-1 of the training",
    }  # fmt: skip
    first: ClassVar[str] = "top1"

    def _new_model(self) -> ReIDForImageClassification:
        return ReIDForImageClassification(self.config)

    def _network_facts(self, parameters: int, dim: int) -> dict[str, str]:
        names = [self.config.id2label[number] for number in range(self.config.num_labels)]
        classes = f"{len(names)}: {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}"
        return {**super()._network_facts(parameters, dim), "Classes": classes}


class WeightChainCard(RetrievalCard):
    """A weight chain, from which students are expanded."""

    template: ClassVar[str] = "weight_chain.md"
    tags: ClassVar[tuple[str, ...]] = (*RetrievalCard.tags, "weight-chain")
    pipeline_tag: ClassVar[str | None] = None
    noun: ClassVar[str] = "chain"
    also_cited: ClassVar[tuple[str, ...]] = ("oskt",)

    @property
    def model(self) -> ReIDConfig:
        return self.config.teacher_config

    @property
    def name(self) -> str:
        return super().name if self.results else f"{super().name}.chain"

    @cached_property
    def facts(self) -> dict[str, str]:
        """Facts from the configuration of a weight chain."""
        config, teacher, student = self.config, self.config.teacher_config, self.config.student_config
        with torch.device("meta"):
            sizes = [sum(p.numel() for p in ReIDModel(model).parameters()) for model in (student, teacher)]
            rows = sum(p.numel() for p in WeightChain(config).parameters())
        name = teacher.variant or teacher.backbone_config.model_type
        return {
            "Teacher": f"{name}, fingerprint {config.teacher_fingerprint}",
            "Widths of students": f"{width_of(student)} to {width_of(teacher)}",
            "Parameters of students": f"{sizes[0]:,} to {sizes[1]:,}",
            "Parameters of the chain": f"{rows:,}",
            "Clustering": f"{config.clustering}, {config.distance}",
            "Refined": text("refinement", config.refinement) if config.refinement else "no, only clustered",
        }
