"""What OSKT is compared with, from the same teacher: weight selection, DepGraph with sparsity learning, KD++."""

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
    """A student cut out of a teacher, to be trained further.

    Args:
        teacher: folder or repository.
        student: width, variant or configuration, as for `WeightChain.expand`.
        by: "wtsel" (weight selection) or "depgraph" (pruning by magnitude; best after `train_sparse`).
        options: of `select_weights` or `prune_to`.

    Raises:
        ReIDError: for another architecture or a wider student.
        ImportError: "depgraph" without the torch-pruning library.
    """
    lookup(dict.fromkeys(SHRINKERS), by, "way to shrink")
    model = open_model(teacher)
    config = student_of(model.config, student)
    if by == "wtsel":
        return select_weights(model, config, **options)
    try:
        classifier = read_state(teacher).get("classifier.weight")
    except MissingError:
        classifier = None  # one that was pulled from the Hub; its columns then do not count
    if len(model.part_dims) > 1:
        classifier = None  # behind several vectors the library cannot trace
    return prune_to(model, config, classifier=classifier, **options)


@dataclass(frozen=True)
class ShrinkArguments(Part):
    """What to cut out of which model."""

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
    """How strongly unimportant channels fade, see `SparsityLearning`."""

    reg: float = option(1e-4, "Decay of the most important channels.")
    alpha: float = option(16.0, "How many times stronger the least important channels decay.")


@dataclass(frozen=True)
class SparseSettings(TrainSettings):
    """A training that continues a model so that its unimportant channels fade."""

    output: OutputArguments = OutputArguments(out="runs/sparse")
    sparsity: SparsityArguments = SparsityArguments()
    origin: str | None = "sparse"


class TrainSparse(Train):
    """DepGraph's sparsity learning; the model's classifier goes on too."""

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
    """Go on training a model so that its unimportant channels fade.

    Raises:
        ReIDError: see `train`.
    """
    return TrainSparse(settings).run()


@dataclass(frozen=True)
class KDPPArguments(Part):
    """Who teaches, and how."""

    teacher: str = option(None, "Teacher: the folder of a training run on the same identities.", required=True)
    option: Pairs = option(Pairs, "Option of KD++: kd_weight, nd_weight, temperature, ...", metavar="NAME=VALUE")


@dataclass(frozen=True)
class KDPPSettings(TrainSettings):
    """A training beside a frozen teacher of the same identities."""

    output: OutputArguments = OutputArguments(out="runs/kdpp")
    kdpp: KDPPArguments = KDPPArguments()
    origin: str | None = "kdpp"


class TrainKDPP(Train):
    """KD++; without its classifier (a model from the Hub) only the teacher's features are distilled."""

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
    """Train a student beside a frozen teacher of the same identities, by KD++.

    Raises:
        ReIDError: if the teacher was trained on other identities; see also `train`.
    """
    return TrainKDPP(settings).run()
