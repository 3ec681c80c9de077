"""Factorized Distillation: an initial student and teachers of views, what the teachers say, and the final student."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from reid_hub.data.views import View, choose_views, view_split
from reid_hub.evaluation import RetrievalEvaluation
from reid_hub.methods import FDMethod
from reid_hub.methods.fd import (
    CachedRepresentations,
    OnlineRepresentations,
    Representations,
    Teacher,
    check_sees_all,
    fd_method,
    map_channels,
    write_representations,
)
from reid_hub.models import ReIDConfig, ReIDModel
from reid_hub.registry import lookup
from reid_hub.runs.models import is_checkpoint, model_to_train, new_model, on_accelerator, open_model
from reid_hub.runs.provenance import is_done, note_teachers
from reid_hub.runs.train import TrainSettings, load_splits, start_heads, train
from reid_hub.training import RECIPES, Recipe, TrainingSubset, known_identities, override

# Recipes of the initial student and whole-image teacher, and of the other teachers, by the final student's.
STAGES = {"fd-student": ("fd", "fd-teacher"), "fd-demo": ("demo", "demo")}
_SAME = "train all of them with the same data, --validation, --keep-ids and --seed"


@dataclass
class FDSettings(TrainSettings):
    """What to distill from what; below `output_dir` there will be initial, teachers/VIEW, cache and student.

    Attributes:
        model, init: variant and first weights of the initial student.
        initial: the folder of its training, in place of training one.
        backbone, teacher_init: variant and first weights of the teachers that are trained.
        teachers: in place of training them, by view: folders, or repositories of the Hub.
        views, view_size: see `choose_views`; `image_size` is that of the whole picture. Or views of any kind.
        changes, epochs: of the final student; `teacher_changes` and `teacher_epochs` of all that goes before.
        initial_recipe, teacher_recipe: by default those that belong to `recipe`, see `STAGES`.
        cache: folder of the representations; by default below `output_dir`.
        online: ask the teachers in every step, and store nothing.
    """

    output_dir: str | Path = "runs/fd"
    recipe: str = "fd-demo"
    flip: bool = True
    initial: str | None = None
    backbone: str = "res18-x0.25"
    teacher_init: str | None = None
    teachers: Mapping[str, str] = field(default_factory=dict)
    views: str | Sequence[str] | Sequence[View] = "all"
    view_size: Sequence[int] | None = None
    teacher_changes: Mapping[str, Any] = field(default_factory=dict)
    teacher_epochs: float | None = None
    initial_recipe: str | None = None
    teacher_recipe: str | None = None
    cache: str | None = None
    online: bool = False

    @property
    def chosen(self) -> tuple[View, ...]:
        """The views."""
        if not isinstance(self.views, str) and all(isinstance(view, View) for view in self.views):
            return tuple(self.views)
        return choose_views(self.views, self.image_size, self.view_size)

    @property
    def cache_dir(self) -> Path:
        """Where the representations lie."""
        return Path(self.cache or Path(self.output_dir) / "cache")

    def student_recipe(self) -> Recipe:
        """The final student's.

        Raises:
            ValueError: if it is of another method, or moves the picture so that views are no views of it any more.
        """
        recipe = override(lookup(RECIPES, self.recipe, "recipe"), self.changes)
        if recipe.method != "fd":
            raise ValueError(f"distilling needs a recipe of the method 'fd' (fd-student, fd-demo), got {self.recipe!r}")
        moved = recipe.augmentation
        if moved.pad or moved.crop_scale > 1 or moved.rotation or moved.resized_area:
            raise ValueError(
                "the views would not be those of the student's picture: its recipe must have the augmentation's pad 0, "
                "crop_scale 1, rotation 0 and no resized_area, "
                f"got {moved.pad}, {moved.crop_scale}, {moved.rotation} and {moved.resized_area}"
            )
        return recipe

    def earlier(self, folder: str, *, part: bool = False, **fields: Any) -> "FDSettings":
        """The settings of a stage before the last: an initial student or a teacher."""
        whole, parts = STAGES.get(self.recipe, ("fd", "fd-teacher"))
        recipe = (self.teacher_recipe or parts) if part else (self.initial_recipe or whole)
        earlier = {"recipe": recipe, "changes": self.teacher_changes, "epochs": self.teacher_epochs, "push_to": None}
        return replace(self, output_dir=Path(self.output_dir) / folder, **{**earlier, **fields})


def distill(settings: FDSettings) -> RetrievalEvaluation | None:
    """All of it in one call; with `resume`, what is done is not done again and what was begun goes on.

    Returns:
        What the student's results.json holds, or None where the data set has no query and gallery.

    Raises:
        ValueError, FileNotFoundError: for anything unknown or impossible; before training starts for a recipe, a view,
            a picture that has no such view, or a student that can have no branches.
    """
    taught = _weights(settings)
    _check_teachers(settings)
    if taught:
        _check_student(settings)
        cut_views(settings)
    settings = replace(settings, initial=settings.initial or str(train_initial(settings)))
    if taught:
        settings = replace(settings, teachers=train_teachers(settings))
        if not settings.online:
            make_cache(settings)
    return train_student(settings)


def train_initial(settings: FDSettings) -> Path:
    """Train the student without teachers; returns its folder."""
    stage = settings.earlier("initial", origin="initial")
    if not (stage.resume and is_done(stage)):
        train(stage)
    return Path(stage.output_dir)


def train_teachers(settings: FDSettings) -> dict[str, str]:
    """Train a teacher for each view that has none; returns the folders, or repositories, of all by view.

    Each is FD's network of the view's length, as far as `teacher_changes` say nothing else: stabilised max pooling, FC
    and BN. A trained model as backbone goes on with what it has, and one of tokens or branches keeps its own.

    Raises:
        ValueError: for a teacher of a view that is not among the settings', or see `cut_views`; before training starts.
    """
    _check_teachers(settings)
    teachers, cut = {}, cut_views(settings)
    for view in settings.chosen:
        teachers[view.name] = settings.teachers.get(view.name)
        if teachers[view.name] is not None:
            continue
        head = {"pooling": "stabilised_max", "head": "linear", "neck": "none", "embedding_dim": view.dim}
        head = head if _has_map(settings.backbone, view.image_size) else {}
        changes = {**{f"config.{name}": value for name, value in head.items()}, **settings.teacher_changes}
        stage = settings.earlier(
            f"teachers/{view.name}",
            part=not view.whole,
            model=settings.backbone,
            init=settings.teacher_init,
            changes=changes,
            image_size=view.image_size,
            origin=f"teacher-{view.name}",
        )
        teachers[view.name] = str(stage.output_dir)
        about = {"view": view.describe(cut[view.name]["train"]["path"] if view.region else ())}
        if not (stage.resume and is_done(stage, about)):
            train(stage, splits=cut[view.name], about=about)
    return teachers


def cut_views(settings: FDSettings) -> dict[str, dict[str, Any]]:
    """The data set as the teachers of all views see it, by view and split; cut once, and kept by `datasets`.

    Query and gallery are there for teachers that are to be trained; for a region, if all of their pictures have one.

    Raises:
        ValueError: if a picture is damaged, is too small for a view, or has no region, naming it.
    """
    splits, cut = load_splits(settings), {}
    for view in settings.chosen:
        tested = view.name not in settings.teachers and all(view.covers(split["path"]) for split in splits.values())
        seen = splits if tested else {"train": splits["train"]}
        cut[view.name] = {name: view_split(split, view) for name, split in seen.items()}
    return cut


def open_teachers(settings: FDSettings, split: Any) -> list[Teacher]:
    """The teachers of the settings' views, in that order, frozen and on the accelerator where there is one.

    Raises:
        ValueError: if a view has no teacher, or teachers were trained on different identities.
    """
    teachers: list[Teacher] = []
    for view in settings.chosen:
        if view.name not in settings.teachers:
            raise ValueError(f"view {view.name!r} has no teacher: give one, or train it with examples/fd_teachers.py")
        folder = settings.teachers[view.name]
        model = on_accelerator(open_model(folder).requires_grad_(False).eval(), settings.arguments)
        teachers.append(Teacher(model, view, split, identities=known_identities(folder)))
    known = {teacher.view.name: teacher.identities for teacher in teachers if teacher.identities is not None}
    for name, identities in known.items():
        first = next(iter(known))
        if identities != known[first]:
            raise ValueError(
                f"the teachers of views {first!r} and {name!r} were trained on different identities, "
                f"{len(known[first])} and {len(identities)}: {_SAME}"
            )
    return teachers


def make_cache(settings: FDSettings, **options: Any) -> Path:
    """Store what the teachers say of the training pictures; `options` of `write_representations`. Returns the folder.

    Raises:
        ValueError: see `open_teachers` and `write_representations`.
    """
    for teacher in open_teachers(settings, load_splits(settings)["train"]):
        write_representations(settings.cache_dir, teacher, **options)
    return settings.cache_dir


def train_student(settings: FDSettings) -> RetrievalEvaluation | None:
    """Train the final student, from the initial one and its classifier.

    With alpha = beta = 0 this is the control that the paper lacks: the initial student, continued for as long.

    Raises:
        ValueError: without an initial student, or if it, the teachers and the data do not belong together.
    """
    recipe, taught = settings.student_recipe(), _weights(settings)
    if settings.initial is None:
        raise ValueError("the final student starts from an initial one: give the folder of its training")
    splits = load_splits(settings)
    representations = _representations(settings, splits["train"]) if taught else None
    about = _about(settings.initial, representations)
    origin = settings.origin or ("fd" if taught else "fd-control")
    stage = replace(
        settings, output_dir=Path(settings.output_dir) / "student", model=settings.initial, init=None, origin=origin
    )
    if stage.resume and is_done(stage, about):
        return RetrievalEvaluation.read(Path(stage.output_dir) / "results.json")

    def make_method(model: ReIDModel, subset: TrainingSubset) -> FDMethod:
        if taught:
            _check_identities(representations.identities, subset.identities.tolist())
            note_teachers(model.config, {name: ReIDConfig.from_pretrained(name) for name in settings.teachers.values()})
        method = fd_method(model, len(subset.identities), representations=representations, **recipe.options)
        start_heads(method, settings.initial, subset)
        return method

    return train(stage, splits=splits, make_method=make_method, about=about)


def _representations(settings: FDSettings, split: Any) -> Representations:
    if settings.online:
        return OnlineRepresentations(open_teachers(settings, split))
    given = {name: open_model(folder).fingerprint() for name, folder in settings.teachers.items()}
    return CachedRepresentations(settings.cache_dir, settings.chosen, split, teachers=given)


def _about(initial: str, representations: Representations | None) -> dict[str, Any]:
    """What decides a final student beside its recipe and data: what it starts from, and who teaches it what."""
    about = {"views": [], "initial": open_model(initial).fingerprint()}
    if representations is None:
        return about
    views, paths = representations.views, representations.paths
    return {
        **about,
        "views": [view.name for view in views],
        "cuts": [view.describe(paths if view.region else ()) for view in views],
        "teachers": representations.fingerprints,
    }


def _check_identities(known: Sequence[int] | None, wanted: Sequence[int]) -> None:
    if known is not None and known != wanted:
        raise ValueError(
            f"the teachers were trained on {len(known)} identities, the student is to be on {len(wanted)} or others: "
            f"{_SAME}"
        )


def _check_teachers(settings: FDSettings) -> None:
    views = {view.name: view for view in settings.chosen}
    for name in settings.teachers:
        lookup(views, name, "view of these teachers")


def _check_student(settings: FDSettings) -> None:
    """Refuse a student that cannot be taught, by the model that its training starts from."""
    stage = settings.earlier("initial") if settings.initial is None else replace(settings, model=settings.initial)
    model = model_to_train(stage, override(lookup(RECIPES, stage.recipe, "recipe"), stage.changes))
    check_sees_all(model.config)
    if settings.student_recipe().options.get("alpha", 4.0):
        map_channels(model)


def _has_map(backbone: str, image_size: Sequence[int]) -> bool:
    """Whether it is a variant that makes one map of a picture, not tokens or branches, for a pooling of FD's."""
    if is_checkpoint(backbone):
        return False
    with torch.device("meta"):
        model = new_model(backbone, image_size).eval()
        return model.config.pooling != "branch_stripes" and model.backbone(torch.zeros(1, 3, *image_size)).ndim == 4


def _weights(settings: FDSettings) -> bool:
    """Whether the student learns from teachers at all."""
    options = settings.student_recipe().options
    return bool(options.get("alpha", 4.0) or options.get("beta", 2.0))
