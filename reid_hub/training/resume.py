"""Which run a checkpoint belongs to, so that only that run goes on from it."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from reid_hub.data.augmentation_options import Augmentation
from reid_hub.errors import ReIDError
from reid_hub.files import atomic_file
from reid_hub.records import RunRecord
from reid_hub.training.recipe import Recipe

RUN_FILE = "run.json"  # in a checkpoint
_ARGUMENTS = (
    "learning_rate", "weight_decay", "num_train_epochs", "max_steps", "per_device_train_batch_size",
    "gradient_accumulation_steps", "max_grad_norm", "seed", "bf16", "fp16",
)  # fmt: skip


def describe_run(
    recipe: Recipe, args: TrainingArguments, num_images: int, origin: Mapping[str, Any] | None = None
) -> RunRecord:
    """All that decides the weights of a run; `origin` says what it starts and learns from."""
    values = {name: value for name, value in asdict(recipe).items() if name != "source"}
    arguments = {**{name: getattr(args, name) for name in _ARGUMENTS}, "num_processes": args.world_size}
    return RunRecord("training", {**values, **arguments, "num_images": num_images, "origin": origin or {}})


def check_same_run(checkpoint: str | Path, run: RunRecord) -> None:
    """Refuse to continue from a checkpoint of a run with other settings.

    Raises:
        ReIDError: naming what differs.
    """
    before = RunRecord.read(checkpoint, RUN_FILE)
    if before is None:
        raise ReIDError(f"{checkpoint} does not say which run it belongs to ({RUN_FILE} is missing): remove it")
    # What an augmentation can do now and could not do when the run began, it does not do.
    augmentation = {**asdict(Augmentation()), **before.key.get("augmentation", {})}
    replace(before, key={**before.key, "augmentation": augmentation}).check(run, checkpoint)


def write_carried(checkpoint: str | Path, process: int, state: dict[str, Tensor]) -> None:
    """Write what a process's last batch left for its next (`Method.carried`) beside the weights of a checkpoint."""
    if state:
        with atomic_file(Path(checkpoint, f"carried-{process}.safetensors")) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in state.items()}, temporary)


def read_carried(checkpoint: str | Path, process: int) -> dict[str, Tensor]:
    """What `write_carried` wrote for a process; nothing where no process had anything.

    Raises:
        ValueError: if other processes had something, so that the run was of fewer.
    """
    path, others = Path(checkpoint, f"carried-{process}.safetensors"), list(Path(checkpoint).glob("carried-*"))
    if path.is_file():
        return load_file(path)
    if others:
        raise ReIDError(
            f"{checkpoint} holds the memory of {len(others)} process(es), and this is number {process + 1}: resume "
            "with as many as the run had"
        )
    return {}


def check_fresh(output_dir: str | Path) -> None:
    """Refuse to start anew among the checkpoints of an earlier run, which a later resume would take for its own.

    Raises:
        ValueError: if there are any.
    """
    last = get_last_checkpoint(str(output_dir)) if Path(output_dir).is_dir() else None
    if last is not None:
        raise ReIDError(
            f"{output_dir} holds the checkpoints of an earlier run, up to {Path(last).name}: resume it, train into "
            "another folder, or remove them"
        )
