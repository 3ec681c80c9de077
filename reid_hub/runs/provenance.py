"""What models and results say of how they were made, and whether a folder holds the result that is asked for."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reid_hub.evaluation import Results, TrainingInfo
from reid_hub.hub.terms import datasets_of
from reid_hub.models import ReIDConfig
from reid_hub.runs.models import is_checkpoint
from reid_hub.training import RECIPES, Recipe, ReIDTrainer, override

if TYPE_CHECKING:
    from reid_hub.runs.train import TrainSettings


def note_step(config: ReIDConfig, settings: "TrainSettings", recipe: Recipe) -> None:
    """Note in a model's configuration the training that is about to begin, behind what its weights went through."""
    step = {"method": settings.origin or recipe.method, "recipe": settings.recipe}
    step |= {"epochs": epochs_of(settings, recipe), "dataset": settings.dataset_name or settings.data}
    config.lineage = [*(config.lineage or []), {**step, "init": first_weights(settings)}]


def epochs_of(settings: "TrainSettings", recipe: Recipe) -> float:
    """How many epochs a training has: the Trainer's argument goes before the option, the option before the recipe."""
    return settings.arguments.get("num_train_epochs", settings.epochs or recipe.epochs)


def note_teachers(config: ReIDConfig, teachers: Mapping[str | Path, ReIDConfig]) -> None:
    """Note in the step that is about to begin who teaches, and which data sets they learned from as far as is known."""
    saw = dict.fromkeys(name for teacher in teachers.values() for name in datasets_of(teacher.lineage))
    step = {**config.lineage[-1], "teachers": [public_source(name) for name in teachers], "teachers_saw": list(saw)}
    config.lineage = [*config.lineage[:-1], step]


def provenance(settings: "TrainSettings", recipe: Recipe, trainer: ReIDTrainer) -> TrainingInfo:
    """What results.json says of the training."""
    args = trainer.args
    return TrainingInfo(
        method=settings.origin or recipe.method,
        recipe=settings.recipe,
        changes=dict(settings.changes),
        epochs=args.num_train_epochs,
        weight_decay=args.weight_decay,
        seed=settings.seed,
        batch_size=args.train_batch_size * args.world_size * args.gradient_accumulation_steps,
        precision="bfloat16 autocast" if args.bf16 else "float16 autocast" if args.fp16 else "float32",
        identities=int(trainer.train_dataset.pids.max()) + 1,
        images=len(trainer.train_dataset),
        init=first_weights(settings),
        base_model=base_model(settings),
        **data_and_start(settings),
    )


def base_model(settings: "TrainSettings") -> str | None:
    """The repository of the Hub that a training starts from, if it does."""
    return settings.model if is_checkpoint(settings.model) and not Path(settings.model).is_dir() else None


def is_done(settings: "TrainSettings", about: Mapping[str, Any] | None = None) -> bool:
    """Whether a folder holds the result of these settings, and of what else `train` was told of them.

    Raises:
        ValueError: if it holds the result of others, naming them.
    """
    path = Path(settings.output_dir) / "results.json"
    if not path.is_file():
        return False
    results = Results.read(path)
    found = results.training.to_dict()
    epochs = settings.epochs or override(RECIPES[settings.recipe], settings.changes).epochs
    asked = {"recipe": settings.recipe, "epochs": epochs, "seed": settings.seed, "changes": dict(settings.changes)}
    # What an earlier version did not say of its data, start and teachers is not held against it.
    more = {**data_and_start(settings), "init": first_weights(settings), **(about or {})}
    asked |= {name: value for name, value in more.items() if name in found}
    found = {key: found.get(key) for key in asked}
    if settings.image_size is not None:
        asked["image_size"], found["image_size"] = list(settings.image_size), results.cost.image_size
    differing = [f"{key} {found[key]} instead of {asked[key]}" for key in asked if found[key] != asked[key]]
    if differing:
        raise ValueError(f"{settings.output_dir} was made with {', '.join(differing)}: give another output folder")
    return True


def first_weights(settings: "TrainSettings") -> str:
    """What a training starts from: weights or a model, or "random"."""
    return public_source(settings.init or (settings.model if is_checkpoint(settings.model) else "random"))


def public_source(source: str | Path) -> str:
    """Where weights came from, without the folders of this machine."""
    return Path(source).name if Path(source).exists() else str(source)


def data_and_start(settings: "TrainSettings") -> dict[str, Any]:
    """What else decides a result, as JSON reads it back and without the folders of this machine."""
    options = {
        name: Path(value).name if isinstance(value, str | Path) else value
        for name, value in settings.data_options.items()
    }
    made = {"dataset": settings.dataset_name or settings.data, "data_options": options}
    made |= {"validation": settings.validation, "keep_ids": settings.keep_ids}
    return json.loads(json.dumps({"model": Path(settings.model).name, **made}))
