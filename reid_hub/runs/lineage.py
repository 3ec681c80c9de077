"""Lineage of weights: how models and results record their training history."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reid_hub.data import DATASETS
from reid_hub.evaluation import TrainingInfo
from reid_hub.hub.terms import datasets_of
from reid_hub.models import ReIDConfig
from reid_hub.records import canonical
from reid_hub.runs.models import is_checkpoint
from reid_hub.runs.settings import ModelArguments, RunSettings
from reid_hub.training import ReIDTrainer


def note_step(config: ReIDConfig, settings: RunSettings) -> None:
    """Append the training run about to start to the lineage in a model's configuration."""
    step = {"method": settings.method, "recipe": settings.recipe.recipe, "epochs": settings.epochs}
    step |= {"dataset": settings.data.name, "init": first_weights(settings.model)}
    config.lineage = [*(config.lineage or []), step]


def note_teachers(config: ReIDConfig, teachers: Mapping[str, ReIDConfig]) -> None:
    """Record the teachers of the step about to start and, as far as known, the data sets they were trained on."""
    saw = dict.fromkeys(name for teacher in teachers.values() for name in datasets_of(teacher.lineage))
    step = {**config.lineage[-1], "teachers": [public_source(name) for name in teachers], "teachers_saw": list(saw)}
    config.lineage = [*config.lineage[:-1], step]


def origin_of(settings: RunSettings) -> dict[str, Any]:
    """Data and initial weights of a training run, as recorded in its key and its results."""
    data, people = settings.data, getattr(settings, "people", None)
    defaults = DATASETS[data.data].options if data.data in DATASETS else {}
    options = {
        name: Path(value).name if isinstance(value, str) else value
        for name, value in data.data_option.items()
        if name not in defaults or defaults[name] != value
    }
    said = {"model": Path(settings.model.model).name, "dataset": data.name, "data_options": options}
    # Without identity labels, no identities are held out.
    said |= {"validation": people.validation if people else 0.0, "keep_ids": people.keep_ids if people else 1.0}
    return canonical(said)


def training_info(settings: RunSettings, trainer: ReIDTrainer) -> TrainingInfo:
    """The training section of results.json."""
    args, model = trainer.args, settings.model.model
    return TrainingInfo(
        method=settings.method,
        recipe=settings.recipe.recipe,
        changes=dict(settings.recipe.set),
        epochs=args.num_train_epochs,
        weight_decay=args.weight_decay,
        seed=settings.recipe.seed,
        batch_size=args.train_batch_size * args.world_size * args.gradient_accumulation_steps,
        precision="bfloat16 autocast" if args.bf16 else "float16 autocast" if args.fp16 else "float32",
        identities=int(trainer.train_dataset.pids.max()) + 1,
        images=len(trainer.train_dataset),
        init=first_weights(settings.model),
        base_model=model if is_checkpoint(model) and not Path(model).is_dir() else None,
        **origin_of(settings),
    )


def first_weights(model: ModelArguments) -> str:
    """Initial weights of a training run: weights or a model, or "random"."""
    return public_source(model.init or (model.model if is_checkpoint(model.model) else "random"))


def public_source(source: str | Path) -> str:
    """The source of weights, without local folders."""
    return Path(source).name if Path(source).exists() else str(source)
