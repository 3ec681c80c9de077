"""Baselines for OSKT from the same teacher: weight selection, DepGraph with sparsity learning, KD++."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from reid_hub.errors import MissingError
from reid_hub.evaluation import RetrievalEvaluation
from reid_hub.methods import Method
from reid_hub.methods.baselines import SparsityLearning, prune_to, select_weights
from reid_hub.methods.state import read_state
from reid_hub.models import ReIDConfig, ReIDModel
from reid_hub.models.width_scale import student_of
from reid_hub.registry import lookup
from reid_hub.runs.lineage import note_teachers
from reid_hub.runs.models import open_model
from reid_hub.runs.options import Pairs, Part, Settings, option
from reid_hub.runs.settings import OutputArguments, TrainSettings
from reid_hub.runs.train import Train
from reid_hub.training import TrainingSubset

SHRINKERS = ("wtsel", "depgraph")


def shrink(teacher: str | Path, student: int | str | ReIDConfig, by: str, **options: Any) -> ReIDModel:
    """Extract a student from a teacher, to be trained further.

    Args:
        teacher: folder or repository.
        student: width, variant or configuration, as for `WeightChain.expand`.
        by: "wtsel" (weight selection) or "depgraph" (pruning by magnitude; best after `train_sparse`).
        options: of `select_weights` or `prune_to`.

    Raises:
        ReIDError: if the student has another architecture or is wider than the teacher.
        ImportError: for "depgraph" if the torch-pruning library is not installed.
    """
    lookup(dict.fromkeys(SHRINKERS), by, "way to shrink")
    model = open_model(teacher)
    config = student_of(model.config, student)
    if by == "wtsel":
        return select_weights(model, config, **options)
    try:
        classifier = read_state(teacher).get("classifier.weight")
    except MissingError:
        classifier = None  # a model from the Hub has none; its columns are then ignored
    if len(model.part_dims) > 1:
        classifier = None  # the library cannot trace a classifier on several vectors
    return prune_to(model, config, classifier=classifier, **options)


@dataclass(frozen=True)
class ShrinkArguments(Part):
    """The trained model, the student, and how to extract it."""

    model: str = option(None, "Trained model: a folder or NAMESPACE/NAME.", argument=True)
    student: str = option(None, "Variant or width of the student.", required=True)
    out: str = option(None, "Folder for the student.", required=True)
    by: Literal["wtsel", "depgraph"] = option("wtsel", "Weight selection, or pruning by DepGraph.")


@dataclass(frozen=True)
class ShrinkSettings(Settings):
    """The settings of `reid-hub shrink`."""

    shrink: ShrinkArguments = ShrinkArguments()


@dataclass(frozen=True)
class SparsityArguments(Part):
    """Strength of the decay of unimportant channels; see `SparsityLearning`."""

    reg: float = option(1e-4, "Decay of the most important channels.")
    alpha: float = option(16.0, "Factor by which the least important channels decay more strongly.")


@dataclass(frozen=True)
class SparseSettings(TrainSettings):
    """Settings of continued training that decays a model's unimportant channels."""

    output: OutputArguments = OutputArguments(out="runs/sparse")
    sparsity: SparsityArguments = SparsityArguments()
    origin: str | None = "sparse"


class TrainSparse(Train):
    """DepGraph's sparsity learning; it continues training the model's classifier too."""

    settings: SparseSettings
    kind: ClassVar[str] = "sparse"
    method: ClassVar[str] = "supervised"

    @property
    def source(self) -> str:
        return self.settings.model.model

    def key(self) -> dict[str, Any]:
        sparsity = self.settings.sparsity
        return {**super().key(), "sparsity": {"reg": sparsity.reg, "alpha": sparsity.alpha}}

    def callbacks(self, method: Method) -> list[SparsityLearning]:
        single, sparsity = method.classifier if len(method.model.part_dims) == 1 else None, self.settings.sparsity
        return [SparsityLearning(method.model, single, reg=sparsity.reg, alpha=sparsity.alpha)]


def train_sparse(settings: SparseSettings) -> RetrievalEvaluation | None:
    """Continue training a model to decay its unimportant channels.

    Raises:
        ReIDError: see `train`.
    """
    return TrainSparse(settings).run()


@dataclass(frozen=True)
class KDPPArguments(Part):
    """The teacher and the options of KD++."""

    teacher: str = option(None, "Teacher: the folder of a training run on the same identities.", required=True)
    option: Pairs = option(Pairs, "Option of KD++: kd_weight, nd_weight, temperature, ...", metavar="NAME=VALUE")


@dataclass(frozen=True)
class KDPPSettings(TrainSettings):
    """Settings of distillation from a frozen teacher trained on the same identities."""

    output: OutputArguments = OutputArguments(out="runs/kdpp")
    kdpp: KDPPArguments = KDPPArguments()
    origin: str | None = "kdpp"


class TrainKDPP(Train):
    """KD++; if the teacher has no classifier (a model from the Hub), only its features are distilled."""

    settings: KDPPSettings
    kind: ClassVar[str] = "kdpp"
    method: ClassVar[str] = "supervised"
    trained_by: ClassVar[str] = "kdpp"

    @property
    def options(self) -> Mapping[str, Any]:
        return {**self.recipe.options, **self.settings.kdpp.option}

    def key(self) -> dict[str, Any]:
        teacher = open_model(self.settings.kdpp.teacher).fingerprint()
        return {**super().key(), "kdpp": dict(self.settings.kdpp.option), "teacher": teacher}

    def parts(self, model: ReIDModel, subset: TrainingSubset) -> Mapping[str, Any]:
        teacher = open_model(self.settings.kdpp.teacher)
        note_teachers(model.config, {self.settings.kdpp.teacher: teacher.config})
        return {"teacher": teacher}


def train_kdpp(settings: KDPPSettings) -> RetrievalEvaluation | None:
    """Distill a frozen teacher trained on the same identities into a student with KD++.

    Raises:
        ReIDError: if the teacher was trained on other identities; see also `train`.
    """
    return TrainKDPP(settings).run()
