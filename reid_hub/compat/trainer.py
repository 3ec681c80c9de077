"""transformers' Trainer with public names for its private hooks. Written for transformers 5.23."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Sampler
from transformers import Trainer, TrainingArguments


def use_one_gpu(args: TrainingArguments) -> None:
    """Train on one GPU even if there are several: torch's DataParallel would split every batch."""
    if args.n_gpu > 1:
        args._n_gpu = 1


class TrainerHooks(Trainer):
    """A Trainer to subclass: override its public methods."""

    def train_sampler(self, dataset: Any) -> Sampler | None:
        """The sampler of the training data."""
        return super()._get_train_sampler(dataset)

    def prepare_batch(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Move a batch to the device, in front of the model."""
        return super()._prepare_inputs(inputs)

    def make_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None) -> LambdaLR:
        """The learning rate schedule of one call of `train`."""
        raise NotImplementedError

    def write_export(self, folder: Path) -> None:
        """Write the model for users; called by `save_model`."""
        raise NotImplementedError

    def write_checkpoint(self, folder: Path) -> None:
        """Write the model of a checkpoint, without the pickled arguments."""
        raise NotImplementedError

    def on_best(self) -> None:
        """Called after the best evaluation so far."""

    def before_resume(self, checkpoint: str) -> None:
        """Called before a checkpoint is loaded."""

    def check_loaded(self, missing: list[str], unexpected: list[str]) -> None:
        """Called after loading a checkpoint, with its missing and unexpected names."""

    def checkpoint_parent(self) -> Path:
        """The folder that checkpoint-N folders are created in."""
        return Path(self.args.output_dir or ".")

    def save_checkpoint(self, save: Callable[[], None]) -> None:
        """Write checkpoint-N by calling `save`; override to add work before or after."""
        save()

    # Called by the Trainer.

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LambdaLR:
        if self.lr_scheduler is None:
            self.lr_scheduler = self.make_scheduler(num_training_steps, optimizer or self.optimizer)
            self._created_lr_scheduler = True  # so that the next call of `train` creates a new one
        return self.lr_scheduler

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the model for users (default: to `args.output_dir`)."""
        folder = Path(output_dir or self.args.output_dir or ".")
        if _internal_call and output_dir is not None:
            self.write_checkpoint(folder)
        else:
            self.write_export(folder)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        return self.train_sampler(self.train_dataset if train_dataset is None else train_dataset)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return self.prepare_batch(inputs)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        is_best = super()._determine_best_metric(metrics, trial)
        self.state.best_global_step = (
            None  # otherwise the Trainer keeps, and looks for, the whole checkpoint of that step
        )
        if is_best:
            self.on_best()
        return is_best

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self.before_resume(resume_from_checkpoint)
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        self.check_loaded(list(load_result.missing_keys), list(load_result.unexpected_keys))

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.checkpoint_parent())

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.save_checkpoint(partial(super()._save_checkpoint, model, trial))
