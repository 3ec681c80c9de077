"""Factorized Distillation: initial student, teachers of views, their representations, and the final student."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch

from reid_hub.data.views import View, choose_views, view_split
from reid_hub.errors import ReIDError
from reid_hub.evaluation import RetrievalEvaluation
from reid_hub.methods.fd import (
    CachedRepresentations,
    OnlineRepresentations,
    Representations,
    ViewTeacher,
    check_sees_all,
    map_channels,
    write_representations,
)
from reid_hub.methods.state import known_identities
from reid_hub.models import ReIDConfig, ReIDModel
from reid_hub.registry import lookup
from reid_hub.runs.lineage import note_teachers
from reid_hub.runs.models import is_checkpoint, model_to_train, new_model, on_accelerator, open_model
from reid_hub.runs.options import Pairs, Part, option
from reid_hub.runs.settings import EmbeddingArguments, OutputArguments, RecipeArguments, TrainSettings
from reid_hub.runs.train import Train, load_splits
from reid_hub.training import Recipe, TrainingSubset

# Maps the final student's recipe to those of the initial student and whole-image teacher, and of the other teachers.
STAGES = {"fd-student": ("fd", "fd-teacher"), "fd-demo": ("demo", "demo")}
_SAME = "train all of them with the same data, --validation, --keep-ids and --seed"
_VIEWS = (
    "View: Hol, Up1, Mid1, Dn1, Up2, Mid2, Dn2, a band NAME=TOP:BOTTOM, Hol+G1 or all (default). Repeat for several."
)


@dataclass(frozen=True)
class ViewArguments(Part):
    """The teachers' views of an image; `image_size` is that of the whole image."""

    view: list[str] = option(list, _VIEWS)
    view_size: list[int] | None = option(None, "Height and width of an image part.", nargs=2)


@dataclass(frozen=True)
class TeacherArguments(Part):
    """The teachers and the initial student, which are trained before the final student."""

    initial: str | None = option(None, "Folder of a trained initial student (default: train one).")
    backbone: str = option("res18-x0.25", "Variant of the teachers.")
    teacher_init: str | None = option(None, "Initial weights of the teachers.")
    teacher: Pairs = option(Pairs, "Use this trained teacher for a view: folder or repository.", metavar="VIEW=MODEL")
    teacher_epochs: float | None = option(None, "Number of epochs for the teachers and the initial student.")
    set_teacher: Pairs = option(Pairs, "Replace a value in the recipes of the teachers and the initial student.",
                                metavar="NAME=VALUE")  # fmt: skip
    initial_recipe: str | None = option(
        None, "Recipe of the initial student and the whole-image teacher (default: by --recipe)."
    )
    teacher_recipe: str | None = option(None, "Recipe of the other teachers (default: by --recipe).")


@dataclass(frozen=True)
class RepresentationArguments(Part):
    """The teachers' representations: stored or computed online."""

    cache: str | None = option(None, "Folder of the teachers' representations (default: below --out).")
    online: bool = option(False, "Run the teachers in every training step instead of storing representations.")


@dataclass(frozen=True)
class FDSettings(TrainSettings):
    """Settings of Factorized Distillation; writes initial, teachers/VIEW, cache and student below `out`.

    `model` and `init` apply to the initial student, `set` and `epochs` to the final student.
    """

    recipe: RecipeArguments = RecipeArguments(recipe="fd-demo")
    output: OutputArguments = OutputArguments(out="runs/fd")
    embedding: EmbeddingArguments = EmbeddingArguments(flip=True)
    views: ViewArguments = ViewArguments()
    teachers: TeacherArguments = TeacherArguments()
    representations: RepresentationArguments = RepresentationArguments()
    cut: tuple[View, ...] = ()  # views of any kind, such as regions, instead of named views

    @property
    def chosen(self) -> tuple[View, ...]:
        """The views."""
        names = self.views.view or ["all"]
        if self.cut:
            return self.cut
        return choose_views(names[0] if len(names) == 1 else names, self.model.image_size, self.views.view_size)

    @property
    def cache_dir(self) -> Path:
        """Folder of the representations."""
        return Path(self.representations.cache or Path(self.output.out) / "cache")

    @property
    def taught(self) -> bool:
        """Whether the student learns from teachers."""
        options = self.student_recipe().options
        return bool(options.get("alpha", 4.0) or options.get("beta", 2.0))

    def student_recipe(self) -> Recipe:
        """The final student's recipe.

        Raises:
            ReIDError: if it belongs to another method, or its augmentation shifts the image so that views no longer
                match.
        """
        recipe = self.recipe.resolved
        if recipe.method != "fd":
            raise ReIDError(
                f"distilling needs a recipe of the method 'fd' (fd-student, fd-demo), got {self.recipe.recipe!r}"
            )
        moved = recipe.augmentation
        if moved.pad or moved.crop_scale > 1 or moved.rotation or moved.resized_area:
            raise ReIDError(
                "the views would not be those of the student's image: its recipe must have the augmentation's pad 0, "
                "crop_scale 1, rotation 0 and no resized_area, "
                f"got {moved.pad}, {moved.crop_scale}, {moved.rotation} and {moved.resized_area}"
            )
        return recipe

    def earlier(self, folder: str, *, part: bool = False, **options: Any) -> TrainSettings:
        """The settings of an earlier stage: the initial student or a teacher."""
        whole, parts = STAGES.get(self.recipe.recipe, ("fd", "fd-teacher"))
        given = self.teachers
        recipe = (given.teacher_recipe or parts) if part else (given.initial_recipe or whole)
        changes = {**self.recipe.of_machine, **given.set_teacher, **options.pop("set", {})}
        changed = {"recipe": recipe, "epochs": given.teacher_epochs, "out": Path(self.output.out) / folder, **options}
        return TrainSettings.like(self, push=None, set=changes, **changed)


@dataclass(frozen=True)
class CacheArguments(Part):
    """The teachers whose representations are stored, and the file size."""

    teachers: str | None = option(None, "Folder with a teacher for each view (default: below --out).")
    shard_size: int = option(2048, "Number of images per file of representations.")


@dataclass(frozen=True)
class CacheSettings(FDSettings):
    """Settings for storing the teachers' representations; `teacher` overrides the teacher of single views."""

    shards: CacheArguments = CacheArguments()

    def with_teachers(self) -> "CacheSettings":
        """A copy with a teacher for each view."""
        folder = Path(self.shards.teachers or Path(self.output.out) / "teachers")
        found = {view.name: str(folder / view.name) for view in self.chosen}
        return self.but(teacher={**found, **self.teachers.teacher})


class TrainFDStudent(Train):
    """Train the final student, starting from the initial student and its classifier."""

    settings: FDSettings
    kind: ClassVar[str] = "fd"
    method: ClassVar[str] = "fd"

    @property
    def source(self) -> str:
        return self.settings.model.model

    @cached_property
    def representations(self) -> Representations | None:
        """The representations that the student learns from."""
        settings = self.settings
        if not settings.taught:
            return None
        split = self.load()["train"]
        if settings.representations.online:
            return OnlineRepresentations(open_teachers(settings, split))
        given = {name: open_model(folder).fingerprint() for name, folder in settings.teachers.teacher.items()}
        return CachedRepresentations(settings.cache_dir, settings.chosen, split, teachers=given)

    @cached_property
    def inputs(self) -> Mapping[str, Any]:
        said, learned = (
            {"views": [], "initial": open_model(self.settings.model.model).fingerprint()},
            self.representations,
        )
        if learned is None:
            return said
        return {
            **said,
            "views": [view.name for view in learned.views],
            "cuts": [view.describe(learned.paths if view.region else ()) for view in learned.views],
            "teachers": learned.fingerprints,
        }

    def parts(self, model: ReIDModel, subset: TrainingSubset) -> Mapping[str, Any]:
        if self.representations is not None:
            teachers = self.settings.teachers.teacher.values()
            note_teachers(model.config, {name: ReIDConfig.from_pretrained(name) for name in teachers})
        return {"representations": self.representations}


def distill(settings: FDSettings) -> RetrievalEvaluation | None:
    """Run all stages. With `resume`, finished stages are skipped and interrupted ones are resumed.

    Returns:
        The contents of the student's results.json, or None if the data set has no query and gallery.

    Raises:
        ReIDError: for unknown or invalid settings; before training starts for a recipe, a view, an image without such
            a view, or a student that cannot have branches.
    """
    _check_teachers(settings)
    if settings.taught:
        _check_student(settings)
        cut_views(settings)
    settings = settings.but(initial=settings.teachers.initial or str(train_initial(settings)))
    if settings.taught:
        settings = settings.but(teacher=train_teachers(settings))
        if not settings.representations.online:
            make_cache(settings)
    return train_student(settings)


def train_initial(settings: FDSettings) -> Path:
    """Train the student without teachers; returns its folder."""
    stage = Train(settings.earlier("initial", origin="initial"))
    stage.run()
    return stage.folder


def train_teachers(settings: FDSettings) -> dict[str, str]:
    """Train a teacher for each view that has none; returns the folders or repositories of all teachers by view.

    Unless `set_teacher` overrides it, each is FD's network with the view's embedding length: stabilised max pooling, FC
    and BN. A trained model used as backbone keeps its own layers, as does one with tokens or branches.

    Raises:
        ReIDError: if a teacher is given for a view that is not in the settings; see also `cut_views`. Raised before
            training starts.
    """
    _check_teachers(settings)
    given, teachers, cut = settings.teachers, dict(settings.teachers.teacher), cut_views(settings)
    for view in settings.chosen:
        if view.name in teachers:
            continue
        head = {"pooling": "stabilised_max", "head": "linear", "neck": "none", "embedding_dim": view.dim}
        head = head if _has_map(given.backbone, view.image_size) else {}
        stage = settings.earlier(
            f"teachers/{view.name}",
            part=not view.whole,
            model=given.backbone,
            init=given.teacher_init,
            set={**{f"config.{name}": value for name, value in head.items()}, **given.set_teacher},
            image_size=view.image_size,
            origin=f"teacher-{view.name}",
        )
        splits = cut[view.name]
        said = {"view": view.describe(splits["train"]["path"] if view.region else ())}
        Train(stage, splits, said).run()
        teachers[view.name] = stage.output.out
    return {view.name: str(teachers[view.name]) for view in settings.chosen}


def cut_views(settings: FDSettings) -> dict[str, dict[str, Any]]:
    """The data set as seen by each view's teacher, by view and split; cropped once and cached by `datasets`.

    Query and gallery are included for teachers to be trained; for a region, only if all of their images have one.

    Raises:
        ReIDError: if an image is damaged, too small for a view, or has no region; the message names the image.
    """
    splits, cut = load_splits(settings), {}
    for view in settings.chosen:
        tested = view.name not in settings.teachers.teacher and all(view.covers(s["path"]) for s in splits.values())
        seen = splits if tested else {"train": splits["train"]}
        cut[view.name] = {name: view_split(split, view) for name, split in seen.items()}
    return cut


def open_teachers(settings: FDSettings, split: Any) -> list[ViewTeacher]:
    """Open the teachers of the settings' views, in that order, frozen and on the accelerator if there is one.

    Raises:
        ReIDError: if a view has no teacher, or teachers were trained on different identities.
    """
    teachers: list[ViewTeacher] = []
    for view in settings.chosen:
        if view.name not in settings.teachers.teacher:
            raise ReIDError(f"view {view.name!r} has no teacher: give one, or train it with examples/fd_teachers.py")
        folder = settings.teachers.teacher[view.name]
        model = on_accelerator(open_model(folder).requires_grad_(False).eval(), settings.recipe.arg)
        teachers.append(ViewTeacher(model, view, split, identities=known_identities(folder)))
    known = {teacher.view.name: teacher.identities for teacher in teachers if teacher.identities is not None}
    for name, identities in known.items():
        first = next(iter(known))
        if identities != known[first]:
            raise ReIDError(
                f"the teachers of views {first!r} and {name!r} were trained on different identities, "
                f"{len(known[first])} and {len(identities)}: {_SAME}"
            )
    return teachers


def make_cache(settings: FDSettings, **options: Any) -> Path:
    """Store the teachers' representations of the training images; returns the folder.

    Args:
        options: of `write_representations`.

    Raises:
        ReIDError: see `open_teachers` and `write_representations`.
    """
    for teacher in open_teachers(settings, load_splits(settings)["train"]):
        write_representations(settings.cache_dir, teacher, **options)
    return settings.cache_dir


def train_student(settings: FDSettings) -> RetrievalEvaluation | None:
    """Train the final student, starting from the initial student and its classifier.

    With alpha = beta = 0 this is a control that the paper lacks: the initial student, continued for as many epochs.

    Raises:
        ReIDError: if there is no initial student, or it does not match the teachers and the data.
    """
    settings.student_recipe()
    if settings.teachers.initial is None:
        raise ReIDError("the final student starts from an initial one: give the folder of its training")
    origin = settings.origin or ("fd" if settings.taught else "fd-control")
    out, cache = Path(settings.output.out) / "student", settings.cache_dir
    return TrainFDStudent(
        settings.but(out=out, cache=cache, model=settings.teachers.initial, init=None, origin=origin)
    ).run()


def _check_teachers(settings: FDSettings) -> None:
    views = {view.name: view for view in settings.chosen}
    for name in settings.teachers.teacher:
        lookup(views, name, "view of these teachers")


def _check_student(settings: FDSettings) -> None:
    """Reject a student that cannot be distilled, based on its initial model."""
    initial = settings.teachers.initial
    model = model_to_train(settings.earlier("initial") if initial is None else settings.but(model=initial))
    check_sees_all(model.config)
    if settings.student_recipe().options.get("alpha", 4.0):
        map_channels(model)


def _has_map(backbone: str, image_size: Sequence[int]) -> bool:
    """Whether a backbone is a variant with one feature map, not tokens or branches, as FD's pooling requires."""
    if is_checkpoint(backbone):
        return False
    with torch.device("meta"):
        model = new_model(backbone, image_size).eval()
        return "map" in model.backbone.gives and model.backbone(torch.zeros(1, 3, *image_size)).ndim == 4
