"""Progressive Transfer Learning: fine-tuning with a memory, over several data sets in turn, and distillation of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from reid_hub.evaluation import RetrievalEvaluation
from reid_hub.files import atomic_file
from reid_hub.methods import STDMethod
from reid_hub.models import ReIDModel, list_variants
from reid_hub.models.backbones import find_variant
from reid_hub.registry import lookup
from reid_hub.runs.models import model_to_train, open_model
from reid_hub.runs.processes import is_main_process
from reid_hub.runs.provenance import is_done, note_teachers, public_source
from reid_hub.runs.train import TrainSettings, load_splits, train
from reid_hub.training import RECIPES, TrainingSubset, override

Made = dict[Path, RetrievalEvaluation | None]  # results by folder

CELLS = ("none", "v1", "v2", "plain")
# As the paper calls them.
DATASET_NAMES = {"market": "market1501", "duke": "dukemtmc", "msmt": "msmt17", "market-duke": "market_duke"}


def side_network(backbone: str, cell: str = "v1", memory: bool = True) -> dict[str, Any]:
    """One of the arms that tell what the memory does, as fields of `TrainSettings`: the variant and its side network.

    Args:
        backbone: res50, densenet161, mgn, res18-x0.25, ...: what has a variant "-ptl".
        cell: "v1", "v2", "none" (the backbone alone) or "plain" (as many weights, but neither gates nor memory).
        memory: False lets it forget before every batch, as the released training did.

    Raises:
        ValueError: for an unknown cell, or a backbone without such a variant.
    """
    lookup(dict.fromkeys(CELLS), cell, "cell")
    variants = list_variants()
    known = {name.removesuffix("-ptl"): name for name in variants if name.endswith("-ptl")}
    with_side = lookup(known, backbone, "backbone with a side network")
    if cell == "none":
        return {"model": f"{backbone}-conv" if f"{backbone}-conv" in variants else backbone, "changes": {}}
    return {"model": with_side, "changes": {"config.side": {"cell": cell, "memory": memory}}}


def classification_arm(backbone: str, cell: str = "v1", memory: bool = True, augment: bool = False) -> dict[str, Any]:
    """The same for general pictures, as fields of `ClassifySettings`.

    With cells two linear layers classify, as wide as the feature, which the paper leaves open. Without augmentation
    (neither flip nor crop) a DenseNet has the dropout of 0.2 of its own paper (arXiv:1608.06993).
    """
    fields = side_network(backbone, cell, memory)
    variant, changes = find_variant(fields["model"]), fields["changes"]
    if cell != "none":
        changes["config.classifier_hidden"] = [variant["embedding_dim"]]
    if not augment:
        changes |= {"augmentation.flip": 0.0, "augmentation.pad": 0}
        if variant["backbone_config"]["model_type"] == "reid_densenet":
            changes["config.backbone_config"] = {**variant["backbone_config"], "dropout": 0.2}
    return fields


def with_changes(arm: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an arm with further changes of the recipe; of mappings of its own only the keys that they name.

    Raises:
        ValueError: for options of a side network where the arm has none.
    """
    own = arm["changes"]
    if isinstance(changes.get("config.side"), Mapping) and "config.side" not in own:
        raise ValueError(
            f"config.side {dict(changes['config.side'])} is of a side network, and {arm['model']} without a cell has "
            "none: choose one, or leave config.side out"
        )
    nested = [key for key in own if isinstance(own[key], Mapping) and isinstance(changes.get(key), Mapping)]
    return {**arm, "changes": {**own, **changes, **{key: {**own[key], **changes[key]} for key in nested}}}


@dataclass
class STDSettings(TrainSettings):
    """What to distill into which student.

    Attributes:
        output_dir: below it there will be lam-VALUE for each weight, and the table table.md.
        model: the student: a variant, or the folder of a trained one to go on with.
        teacher: a folder or a repository of the Hub: a network with a memory, or any other with as many features.
        lams: weights of the distillation; 0 is the baseline and asks no teacher.
    """

    output_dir: str | Path = "runs/std"
    recipe: str = "std-demo"
    model: str = "res18-x0.25-conv"
    flip: bool = True
    teacher: str | None = None
    lams: Sequence[float] = (0.8,)


def distill(settings: STDSettings) -> Made:
    """Train a student for each weight; with `resume`, what is done is not done again and what was begun goes on.

    Returns:
        Folder and results of each; no results where the data set has no query and gallery.

    Raises:
        ValueError, FileNotFoundError: before training starts, for anything unknown or impossible.
    """
    recipe = override(lookup(RECIPES, settings.recipe, "recipe"), settings.changes)
    if recipe.method != "std":
        raise ValueError(f"distilling needs a recipe of the method 'std' (std, std-demo), got {settings.recipe!r}")
    names = [f"lam-{lam:g}" for lam in settings.lams]
    if not names or len(set(names)) < len(names) or "options.lam" in settings.changes:
        raise ValueError(
            f"lams must be different weights, at least one, and options.lam is set by them alone; got {settings.lams} "
            f"and {settings.changes.get('options.lam')}"
        )
    teacher = None if settings.teacher is None else open_model(settings.teacher)
    for lam in {min(settings.lams), max(settings.lams)}:  # what cannot be is said before anything is trained
        STDMethod(
            model_to_train(settings, recipe), 2,
            teacher=teacher, **{**recipe.options, "lam": lam},
        )  # fmt: skip
    made: Made = {}
    for name, lam in zip(names, settings.lams, strict=True):
        folder = Path(settings.output_dir) / name
        stage = replace(settings, output_dir=folder, origin=settings.origin or f"std-{lam:g}")
        stage.changes = {**settings.changes, "options.lam": lam}
        stage.push_to = settings.push_to and settings.push_to + (f"-{name}" if len(names) > 1 else "")
        made[folder] = _distill(stage, lam, teacher)
    _write_table(settings, made, "lam")
    return made


def _distill(settings: STDSettings, lam: float, teacher: ReIDModel | None) -> RetrievalEvaluation | None:
    about = {"teacher": teacher.fingerprint() if lam else None}
    recipe = override(RECIPES[settings.recipe], settings.changes)

    def make_method(model: ReIDModel, subset: TrainingSubset) -> STDMethod:
        if lam:
            note_teachers(model.config, {settings.teacher: teacher.config})
        return STDMethod(model, len(subset.identities), teacher=teacher, **recipe.options)

    if settings.resume and is_done(settings, about):
        return RetrievalEvaluation.read(Path(settings.output_dir) / "results.json")
    return train(settings, make_method=make_method, about=about)


@dataclass
class TransferSettings(TrainSettings):
    """Over which data sets to go.

    Attributes:
        output_dir: below it there will be 1-NAME, 2-NAME, ... for each step, and the table table.md.
        order: names of data sets, also as the paper calls them (market, duke, msmt, market-duke). "synthetic" has
            other people in each step.
        data_dir: a folder that holds all of them, each in its own; data_dirs has another folder by name in the order.
        data_options: options of each data set, by name in the order.
        model, init: what the first step starts from; each other one goes on with the model of the step before, under a
            new classifier.
    """

    output_dir: str | Path = "runs/transfer"
    recipe: str = "ptl-demo"
    model: str = "res18-x0.25-ptl"
    flip: bool = True
    order: Sequence[str] = ("synthetic", "synthetic")
    data_dirs: Mapping[str, str] = field(default_factory=dict)
    data_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def step(self, number: int) -> TrainSettings:
        """The settings of a step, from 1."""
        name = self.order[number - 1]
        data = DATASET_NAMES.get(name, name)
        drawn, options = data == "synthetic", self.data_options.get(name, {})
        fields = {
            "data": data,
            "data_dir": self.data_dirs.get(name, None if drawn else self.data_dir),
            "data_options": {"seed": number, **options} if drawn else options,
        }
        if number > 1:
            fields |= {"model": str(self.folder(number - 1)), "init": None}
        if number < len(self.order):
            fields["push_to"] = None
        return replace(self, output_dir=self.folder(number), dataset_name=name, **fields)

    def folder(self, number: int) -> Path:
        """Where the model of a step lies."""
        return Path(self.output_dir) / f"{number}-{self.order[number - 1].replace('/', '-')}"


def transfer(settings: TransferSettings) -> Made:
    """Fine-tune on one data set after the other; with `resume`, what is done is not done again.

    Returns:
        Folder and results of each step, on the test set of its own data.

    Raises:
        ValueError, FileNotFoundError: before training starts, for anything unknown or impossible.
    """
    if not settings.order:
        raise ValueError("the order names no data set: give at least one")
    for name in {*settings.data_dirs, *settings.data_options}:
        lookup(dict.fromkeys(settings.order), name, "data set of this order")
    stages = [settings.step(number) for number in range(1, len(settings.order) + 1)]
    splits = [load_splits(stage) for stage in stages]  # all of them, before hours are spent on the first
    made: Made = {}
    for number, (stage, data) in enumerate(zip(stages, splits, strict=True), start=1):
        folder = Path(stage.output_dir)
        about = {"order": list(settings.order[:number]), "start": public_source(settings.init or settings.model)}
        done = stage.resume and is_done(stage, about)
        made[folder] = (
            RetrievalEvaluation.read(folder / "results.json") if done else train(stage, splits=data, about=about)
        )
    _write_table(settings, made, "step")
    return made


def _write_table(settings: TrainSettings, made: Made, title: str) -> None:
    """table.md: mAP and rank-1 of every folder, in percent."""
    if not is_main_process():
        return
    lines = [f"| {title} | data | mAP | rank-1 |", "|---|---|---|---|"]
    for folder, results in made.items():
        metrics = results.metrics.to_dict() if results else {}
        cells = [f"{100 * metrics[name]:.2f}" if name in metrics else "-" for name in ("mAP", "rank1")]
        data = results.dataset.name if results else "-"
        lines.append(f"| {' | '.join([folder.name.removeprefix('lam-'), data, *cells])} |")
    with atomic_file(Path(settings.output_dir) / "table.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n")
