"""Progressive Transfer Learning: fine-tuning with a memory, on several data sets in sequence, and distillation."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from reid_hub.errors import ReIDError
from reid_hub.evaluation import RetrievalEvaluation
from reid_hub.files import atomic_file
from reid_hub.methods import STDMethod
from reid_hub.models import ReIDModel, list_variants
from reid_hub.models.backbones import find_variant
from reid_hub.registry import lookup
from reid_hub.runs.classify import ClassifySettings
from reid_hub.runs.lineage import note_teachers, public_source
from reid_hub.runs.models import model_to_train, open_model
from reid_hub.runs.options import Pairs, Part, option
from reid_hub.runs.processes import is_main_process
from reid_hub.runs.settings import (
    EmbeddingArguments,
    ModelArguments,
    OutputArguments,
    RecipeArguments,
    RunSettings,
    TrainSettings,
)
from reid_hub.runs.train import Train, load_splits
from reid_hub.training import TrainingSubset

Made = dict[Path, RetrievalEvaluation | None]  # results by folder

CELLS = ("none", "v1", "v2", "plain")
# The paper's names.
DATASET_NAMES = {"market": "market1501", "duke": "dukemtmc", "msmt": "msmt17", "market-duke": "market_duke"}


def side_network(backbone: str, cell: str = "v1", memory: bool = True) -> dict[str, Any]:
    """One ablation arm for the memory, as options of `TrainSettings`: the variant and its side network.

    Args:
        backbone: res50, densenet161, mgn, res18-x0.25, ...: any backbone with a variant "-ptl".
        cell: "v1", "v2", "none" (the backbone alone) or "plain" (as many weights, but neither gates nor memory).
        memory: False resets the memory before every batch, as in the released training code.

    Raises:
        ReIDError: for an unknown cell, or a backbone without such a variant.
    """
    lookup(dict.fromkeys(CELLS), cell, "cell")
    variants = list_variants()
    known = {name.removesuffix("-ptl"): name for name in variants if name.endswith("-ptl")}
    with_side = lookup(known, backbone, "backbone with a side network")
    if cell == "none":
        return {"model": f"{backbone}-conv" if f"{backbone}-conv" in variants else backbone, "set": {}}
    return {"model": with_side, "set": {"config.side": {"cell": cell, "memory": memory}}}


def classification_arm(backbone: str, cell: str = "v1", memory: bool = True, augment: bool = False) -> dict[str, Any]:
    """The same for general images, as options of `ClassifySettings`.

    With cells two linear layers classify, as wide as the feature, which the paper leaves open. Without augmentation
    (neither flip nor crop) a DenseNet has the dropout of 0.2 of its own paper (arXiv:1608.06993).
    """
    fields = side_network(backbone, cell, memory)
    variant, changes = find_variant(fields["model"]), fields["set"]
    if cell != "none":
        changes["config.classifier_hidden"] = [variant["embedding"]["dim"]]
    if not augment:
        changes |= {"augmentation.flip": 0.0, "augmentation.pad": 0}
        if variant["backbone_config"]["model_type"] == "reid_densenet":
            changes["config.backbone_config"] = {**variant["backbone_config"], "dropout": 0.2}
    return fields


def with_changes(arm: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Merge further recipe changes into the fields of an arm; in the arm's mappings only the given keys are replaced.

    Raises:
        ReIDError: for side network options if the arm has no side network.
    """
    own = arm["set"]
    if isinstance(changes.get("config.side"), Mapping) and "config.side" not in own:
        raise ReIDError(
            f"config.side {dict(changes['config.side'])} is of a side network, and {arm['model']} without a cell has "
            "none: choose one, or leave config.side out"
        )
    nested = [key for key in own if isinstance(own[key], Mapping) and isinstance(changes.get(key), Mapping)]
    return {**arm, "set": {**own, **changes, **{key: {**own[key], **changes[key]} for key in nested}}}


@dataclass(frozen=True)
class ArmArguments(Part):
    """The arm of the memory ablation to train; see `side_network`."""

    backbone: str = option("res18-x0.25", "Backbone of the arm: res50, densenet161, mgn, res18-x0.25, ...")
    cell: Literal["none", "v1", "v2", "plain"] = option(
        "v1", "Cell of its side network; none is the backbone alone, plain has as many weights but no memory."
    )
    memory: bool = option(True, "Carry the memory over from batch to batch.")


@dataclass(frozen=True)
class ArmSettings(TrainSettings):
    """Settings for training an arm on people; `model` overrides the arm."""

    model: ModelArguments = ModelArguments(model=None)
    recipe: RecipeArguments = RecipeArguments(recipe="ptl-demo")
    output: OutputArguments = OutputArguments(out="runs/ptl")
    embedding: EmbeddingArguments = EmbeddingArguments(flip=True)
    arm: ArmArguments = ArmArguments()


@dataclass(frozen=True)
class ClassifierArmArguments(ArmArguments):
    """The arm to train on classes; see `classification_arm`."""

    augment: bool = option(False, "Flip and crop; without, a DenseNet has a dropout of 0.2.")


@dataclass(frozen=True)
class ClassifierArmSettings(ClassifySettings):
    """Settings for training an arm on classes; `model` overrides the arm."""

    model: ModelArguments = ModelArguments(model=None)
    output: OutputArguments = OutputArguments(out="runs/ptl-cifar")
    arm: ClassifierArmArguments = ClassifierArmArguments()


AnySettings = TypeVar("AnySettings", bound=RunSettings)


def with_arm(settings: AnySettings) -> AnySettings:
    """Apply the model and recipe changes of the settings' `arm`, unless the settings name a model.

    Raises:
        ReIDError: see `side_network` and `with_changes`.
    """
    if settings.model.model is not None:
        return settings
    make = classification_arm if isinstance(settings, ClassifySettings) else side_network
    return settings.but(**with_changes(make(**vars(settings.arm)), settings.recipe.set))


@dataclass(frozen=True)
class STDArguments(Part):
    """The teacher and the weights of the distillation."""

    teacher: str | None = option(None, "Teacher: a trained model's folder or repository; none for --lam 0 alone.")
    lam: list[float] = option(list, "Weight of the distillation; 0 is the baseline. Repeat for a sweep.")


@dataclass(frozen=True)
class STDSettings(TrainSettings):
    """Settings of PTL's STD; writes lam-VALUE for each weight, and table.md, below `out`."""

    model: ModelArguments = ModelArguments(model="res18-x0.25-conv")
    recipe: RecipeArguments = RecipeArguments(recipe="std-demo")
    output: OutputArguments = OutputArguments(out="runs/std")
    embedding: EmbeddingArguments = EmbeddingArguments(flip=True)
    std: STDArguments = STDArguments(lam=[0.8])


class TrainSTD(Train):
    """A student distilled with one weight."""

    settings: STDSettings
    kind: ClassVar[str] = "std"
    method: ClassVar[str] = "std"

    @cached_property
    def teacher(self) -> ReIDModel | None:
        """The teacher, if there is one."""
        return open_model(self.settings.std.teacher) if self.recipe.options["lam"] else None

    @cached_property
    def inputs(self) -> Mapping[str, Any]:
        return {"teacher": self.teacher and self.teacher.fingerprint()}

    def parts(self, model: ReIDModel, subset: TrainingSubset) -> Mapping[str, Any]:
        if self.teacher is not None:
            note_teachers(model.config, {self.settings.std.teacher: self.teacher.config})
        return {"teacher": self.teacher}


def distill(settings: STDSettings) -> Made:
    """Train a student for each weight. With `resume`, finished runs are skipped and interrupted ones are resumed.

    Returns:
        Folder and results of each; results are None if the data set has no query and gallery.

    Raises:
        ReIDError: for unknown or invalid settings, before training starts.
    """
    recipe, lams = settings.recipe.resolved, settings.std.lam
    if recipe.method != "std":
        raise ReIDError(
            f"distilling needs a recipe of the method 'std' (std, std-demo), got {settings.recipe.recipe!r}"
        )
    names = [f"lam-{lam:g}" for lam in lams]
    if not names or len(set(names)) < len(names) or "options.lam" in settings.recipe.set:
        raise ReIDError(
            f"lams must be different weights, at least one, and options.lam is set by them alone; got {lams} and "
            f"{settings.recipe.set.get('options.lam')}"
        )
    teacher = None if settings.std.teacher is None else open_model(settings.std.teacher)
    for lam in {min(lams), max(lams)}:  # reject invalid settings before any training
        STDMethod(model_to_train(settings), 2, teacher=teacher, **{**recipe.options, "lam": lam})
    made: Made = {}
    for name, lam in zip(names, lams, strict=True):
        folder, push = Path(settings.output.out) / name, settings.output.push
        stage = settings.but(
            out=folder,
            origin=settings.origin or f"std-{lam:g}",
            set={**settings.recipe.set, "options.lam": lam},
            push=push and push + (f"-{name}" if len(names) > 1 else ""),
        )
        made[folder] = TrainSTD(stage).run()
    _write_table(settings, made, "lam")
    return made


@dataclass(frozen=True)
class OrderArguments(Part):
    """The sequence of data sets."""

    order: list[str] = option(
        list, "Data sets in order, also market, duke, msmt, market-duke; synthetic has different people in each step."
    )
    data_dirs: Pairs = option(Pairs, "Folder of a data set in the order (default: --data-dir).", metavar="NAME=DIR")
    data_options: Pairs = option(Pairs, "Options of a data set's loader, as a JSON mapping.", metavar="NAME=JSON")


@dataclass(frozen=True)
class TransferSettings(TrainSettings):
    """Settings of multi-step transfer; writes 1-NAME, 2-NAME, ... for the steps, and table.md, below `out`.

    `data_dir` contains all data sets, each in its own layout; `data_dirs` overrides it by name in the order, and
    `data_options` sets the options of each. The first step starts from `model` and `init`; each later step continues
    the previous step's model with a new classifier.
    """

    model: ModelArguments = ModelArguments(model="res18-x0.25-ptl")
    recipe: RecipeArguments = RecipeArguments(recipe="ptl-demo")
    output: OutputArguments = OutputArguments(out="runs/transfer")
    embedding: EmbeddingArguments = EmbeddingArguments(flip=True)
    steps: OrderArguments = OrderArguments(order=["synthetic", "synthetic"])

    @property
    def order(self) -> list[str]:
        """The data sets by name."""
        return self.steps.order

    def step(self, number: int) -> TrainSettings:
        """The settings of a step, from 1."""
        name = self.order[number - 1]
        data = DATASET_NAMES.get(name, name)
        drawn, options = data == "synthetic", self.steps.data_options.get(name, {})
        changed: dict[str, Any] = {
            "out": self.folder(number),
            "origin": self.origin,
            "data": data,
            "dataset_name": name,
            "data_dir": self.steps.data_dirs.get(name, None if drawn else self.data.data_dir),
            "data_option": {"seed": number, **options} if drawn else options,
        }
        if number > 1:
            changed |= {"model": str(self.folder(number - 1)), "init": None}
        if number < len(self.order):
            changed["push"] = None
        return TrainSettings.like(self, **changed)

    def folder(self, number: int) -> Path:
        """Folder of a step's model."""
        return Path(self.output.out) / f"{number}-{self.order[number - 1].replace('/', '-')}"


@dataclass(frozen=True)
class ArmTransferSettings(TransferSettings):
    """Settings of multi-step transfer with an arm; `model` overrides the arm."""

    model: ModelArguments = ModelArguments(model=None)
    arm: ArmArguments = ArmArguments()


def transfer(settings: TransferSettings) -> Made:
    """Fine-tune on several data sets in sequence. With `resume`, finished steps are skipped.

    Returns:
        Folder and results of each step, on the test set of its own data.

    Raises:
        ReIDError: for unknown or invalid settings, before training starts.
    """
    if not settings.order:
        raise ReIDError("the order names no data set: give at least one")
    for name in {*settings.steps.data_dirs, *settings.steps.data_options}:
        lookup(dict.fromkeys(settings.order), name, "data set of this order")
    steps = [settings.step(number) for number in range(1, len(settings.order) + 1)]
    splits = [load_splits(step) for step in steps]  # load all of them before hours are spent on the first
    start, made = public_source(settings.model.init or settings.model.model), {}
    for number, (step, data) in enumerate(zip(steps, splits, strict=True), start=1):
        stage = Train(step, data, {"order": settings.order[:number], "start": start})
        made[stage.folder] = stage.run()
    _write_table(settings, made, "step")
    return made


def _write_table(settings: TrainSettings, made: Made, title: str) -> None:
    """Write table.md: mAP and rank-1 of every folder, in percent."""
    if not is_main_process():
        return
    lines = [f"| {title} | data | mAP | rank-1 |", "|---|---|---|---|"]
    for folder, results in made.items():
        metrics = results.metrics.to_dict() if results else {}
        cells = [f"{100 * metrics[name]:.2f}" if name in metrics else "-" for name in ("mAP", "rank1")]
        data = results.dataset.name if results else "-"
        lines.append(f"| {' | '.join([folder.name.removeprefix('lam-'), data, *cells])} |")
    with atomic_file(Path(settings.output.out) / "table.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n")
