"""A recipe as `transformers.TrainingArguments`."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy, IntervalStrategy

from reid_hub.errors import ReIDError
from reid_hub.registry import lookup
from reid_hub.training.recipe import Recipe

BEST = "best"  # folder of the model of the best evaluation


# Ours in place of the library's, of arguments that decide weights.
_DECIDING = {"max_grad_norm": 0.0}  # no published recipe clips


def training_arguments(recipe: Recipe, output_dir: str | Path, **overrides: Any) -> TrainingArguments:
    """Arguments for `ReIDTrainer`: what the recipe says, and defaults that suit this work where it is silent.

    `learning_rate`, `weight_decay`, `num_train_epochs` and `per_device_train_batch_size` are the recipe's unless they
    are overridden, and the trainer obeys the arguments. A run of another number of epochs walks through the recipe's
    schedule in proportion (`Schedule.rate_at`).

    Raises:
        ValueError: for an unknown argument (the nearest name is offered), or no epochs.
    """
    if overrides.get("num_train_epochs", 1) <= 0:
        raise ReIDError(
            f"the number of epochs must be above 0, got {overrides['num_train_epochs']}; a weight chain that is only "
            "clustered lies in the folder `clustered` of a refinement, or comes from WeightChain.from_teacher"
        )
    known = {field.name: None for field in fields(TrainingArguments) if field.init}
    for name in overrides:
        lookup(known, name, "training argument")
    values = {
        "output_dir": str(output_dir),
        "num_train_epochs": recipe.epochs,
        "learning_rate": recipe.learning_rate,
        "weight_decay": recipe.weight_decay,
        "per_device_train_batch_size": recipe.batch_size,
        **_DECIDING,
        "logging_strategy": "epoch",
        "logging_nan_inf_filter": False,  # it would hide a diverged run; the trainer stops instead
        "save_strategy": "epoch",
        "save_total_limit": 2,
        "metric_for_best_model": "mAP",
        "greater_is_better": True,
        "remove_unused_columns": False,
        "report_to": "none",
        # Said explicitly, else transformers refuses bfloat16 on a CPU and pins memory for a GPU that is not there.
        "use_cpu": not torch.accelerator.is_available(),
        "dataloader_pin_memory": torch.accelerator.is_available(),
        "trackio_static_space_id": False,  # else Trackio makes a public Space when the model is pushed
        "hub_strategy": "end",
        **overrides,
    }
    return TrainingArguments(**values)


# Arguments that change what is seen, kept and published of a run, and nothing in its weights.
_HARMLESS = (
    "dataloader_", "disable_tqdm", "eval_", "greater_is_better", "hub_", "log_", "logging_", "metric_for_best_model",
    "push_to_hub", "report_to", "run_name", "save_", "trackio_", "use_cpu",
)  # fmt: skip


def deciding_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the arguments that decide a run's weights; one at its default says nothing.

    Raises:
        ReIDError: for an unknown argument; the nearest is offered.
    """
    known = {field.name: field for field in fields(TrainingArguments) if field.init}
    return {
        name: value
        for name, value in arguments.items()
        if _DECIDING.get(name, lookup(known, name, "training argument").default) != value
        and not name.startswith(_HARMLESS)
    }


def check_arguments(args: TrainingArguments, evaluator: Any, publisher: Any) -> None:
    """Refuse arguments that ask the trainer for what it does not offer, or nobody can do.

    Raises:
        ValueError: naming what is missing.
    """
    if args.eval_strategy != IntervalStrategy.NO and evaluator is None:
        raise ReIDError(
            f"eval_strategy={IntervalStrategy(args.eval_strategy).value!r} needs an evaluator, a callable "
            "(ReIDModel) -> metrics"
        )
    if args.load_best_model_at_end:
        raise ReIDError(f"load_best_model_at_end is not offered: the best model is exported to output_dir/{BEST}")
    if args.push_to_hub and publisher is None:
        raise ReIDError("push_to_hub needs a publisher, a callable (ReIDModel) -> commit")
    if args.push_to_hub and args.hub_strategy != HubStrategy.END:
        raise ReIDError(
            f"hub_strategy must be 'end', got {HubStrategy(args.hub_strategy).value!r}: a push in mid-training would "
            "leave out the model's code"
        )
