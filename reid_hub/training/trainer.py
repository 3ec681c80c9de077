"""`transformers.Trainer` for re-identification methods: recipe, batches, exact resume, exported models."""

import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints
from transformers.utils import SAFE_WEIGHTS_NAME

from reid_hub.compat.trainer import TrainerHooks, use_one_gpu
from reid_hub.data.augmentation import BatchTransform
from reid_hub.data.batch import Batch
from reid_hub.errors import ReIDError, RunError
from reid_hub.methods import Method
from reid_hub.methods.state import write_state
from reid_hub.models import ReIDModel
from reid_hub.records import RunRecord
from reid_hub.training.arguments import BEST, check_arguments
from reid_hub.training.optimizers import build_optimizer, build_scheduler
from reid_hub.training.recipe import Recipe
from reid_hub.training.resume import (
    RUN_FILE,
    check_fresh,
    check_same_run,
    describe_run,
    read_carried,
    write_carried,
)
from reid_hub.training.sampling import build_sampler


class ReIDTrainer(TrainerHooks):
    """Trains a `Method` as a recipe says.

    Writes to `args.output_dir`: the exported model (on `save_model`), the exported model of the best evaluation in
    best/, and checkpoint-N to resume from. A resumed run continues the same sequence of batches, augmentations and
    random numbers; on a CPU its weights equal those of an uninterrupted run bit for bit.

    Args:
        method: what is trained.
        recipe: optimiser, schedule, sampler and augmentation.
        args: see `training_arguments`; they decide the learning rate, decay, epochs and batch size.
        train_dataset: `pids`, a length, `__getitems__` and `collate`, which gives uint8 batches (see `ImageDataset`).
        evaluator: called with the exported model in evaluation mode on every process; gives metrics, "mAP" among them.
        evaluate_every: with eval_strategy="epoch", epochs between two evaluations; the last epoch always has one.
        publisher: called with the exported model by `push_to_hub`.
        channels_last: memory format of images and convolutions; faster for CNNs in half precision.
        origin: what the run starts and learns from, as JSON; a checkpoint of a run from elsewhere is not gone on with.

    Raises:
        ValueError: if the arguments ask for an evaluation or a push that nobody can do.
    """

    loss_is_scaled_for_ga = False  # the loss is a mean over the batch; the Trainer divides it by the accumulated steps

    def __init__(
        self,
        method: Method,
        recipe: Recipe,
        args: TrainingArguments,
        train_dataset: Any,
        *,
        evaluator: Callable[[ReIDModel], Mapping[str, float]] | None = None,
        evaluate_every: int = 1,
        publisher: Callable[[ReIDModel], Any] | None = None,
        channels_last: bool = False,
        origin: Mapping[str, Any] | None = None,
        callbacks: Sequence[TrainerCallback] = (),
    ):
        check_arguments(args, evaluator, publisher)
        use_one_gpu(args)  # several need accelerate launch
        config = method.model.config
        self.recipe, self.evaluator, self.publisher, self.origin = recipe, evaluator, publisher, origin
        self.transform = BatchTransform(
            recipe.augmentation, config.image_mean, config.image_std, tuple(config.image_size)
        )
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.sampler: Sampler | None = None
        self._parts: dict[str, Tensor] = {}
        self._parts_count = 0
        self._run_dir: Path | None = None
        self._resumed: str | None = None
        super().__init__(
            model=method.to(memory_format=self.memory_format),
            args=args,
            data_collator=train_dataset.collate,
            train_dataset=train_dataset,
            eval_dataset=evaluator,  # only so that the Trainer sees that there is something to evaluate with
            callbacks=[_Epochs(self, evaluate_every), *callbacks],
        )

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train, or with `resume_from_checkpoint` (a checkpoint, or True for the last one) go on.

        Raises:
            ValueError: if the checkpoint is of a run with other settings, or the folder has one and none is to be used.
        """
        if not resume_from_checkpoint:
            check_fresh(self.args.output_dir)
        output = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        share_buffers(self.model)  # the processes evaluate together what the first of them saves
        return output

    def _start_epoch(self, epoch: float) -> None:
        """Tell sampler and method that an epoch begins, or goes on where a checkpoint was made in its middle."""
        # The Trainer's sum of whole epochs and a fraction is exact at the whole ones, and between two of them nowhere.
        whole = int(epoch)
        self.sampler.set_epoch(whole)
        self.model.start_epoch(whole)
        if self._resumed and epoch > whole:
            self.model.restore_carried(read_carried(self._resumed, self.args.process_index))
        self._resumed = None

    # Batches

    def train_sampler(self, dataset: Any) -> Sampler:
        processes = {"seed": self.args.seed, "num_processes": self.args.world_size}
        self.sampler = build_sampler(self.recipe, dataset.pids, batch_size=self.args.train_batch_size, **processes)
        return self.sampler

    def prepare_batch(self, inputs: Batch) -> Batch:
        """Move the bytes to the device and augment them there, as a function of the seed and the step alone."""
        epoch, crops = self.state.epoch or 0.0, self.model.crops
        self.model.set_progress(self.state.global_step, self.state.max_steps, epoch)
        step = int(epoch) % crops if crops else self.state.global_step
        batch = super().prepare_batch(inputs)
        batch = self.transform.augment(batch, seed=self.args.seed, step=step, by_position=not crops)
        batch["pixel_values"] = batch["pixel_values"].contiguous(memory_format=self.memory_format)
        return batch

    # Loss and optimisation

    def compute_loss(self, model: nn.Module, inputs: Batch, return_outputs: bool = False, **kwargs: Any):
        outputs = model(inputs)
        for name, value in outputs.items():
            if name != "loss":
                self._parts[name] = self._parts.get(name, 0) + value.detach()
        self._parts_count += 1
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = build_optimizer(
                self.model if model is None else model,
                self.recipe.optimizer,
                lr=self.args.learning_rate,
                weight_decay=self.args.weight_decay,
                bias_lr_factor=self.recipe.bias_lr_factor,
                options=self.recipe.optimizer_options,
            )
        return self.optimizer

    def make_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None) -> LambdaLR:
        rates = {"total_steps": num_training_steps, "lr": self.args.learning_rate}
        return build_scheduler(optimizer, self.recipe.schedule, **rates)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the mean of each part of the loss since the last time.

        Raises:
            RuntimeError: if the loss is not finite any more.
        """
        if "loss" in logs and self._parts:
            means = torch.stack([value.float() for value in self._parts.values()]) / self._parts_count
            means = self.accelerator.reduce(means, reduction="mean").tolist()
            logs = {**logs, **{f"loss_{name}": mean for name, mean in zip(self._parts, means, strict=True)}}
            self._parts, self._parts_count = {}, 0
        super().log(logs, start_time)
        if not math.isfinite(logs.get("loss", 0.0)):
            raise RunError(
                f"the loss is {logs['loss']} at step {self.state.global_step}: lower the learning rate, or train in "
                f"float32 if this was half precision; the checkpoints in {self.args.output_dir} are from before"
            )

    # Evaluation

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Metrics of the exported model, by the evaluator; the training's weights and random state are left alone."""
        if self.evaluator is None:
            raise ReIDError("there is nothing to evaluate with: give ReIDTrainer an evaluator")
        share_buffers(self.model)
        start, was_training = time.perf_counter(), self.model.training
        self.model.eval()
        try:
            with torch.random.fork_rng([self.args.device] if self.args.device.type == "cuda" else []), torch.no_grad():
                metrics = self.evaluator(self.model.export().eval())
        finally:
            self.model.train(was_training)
        metrics = {f"{metric_key_prefix}_{name}": float(value) for name, value in metrics.items()}
        metrics[f"{metric_key_prefix}_runtime"] = round(time.perf_counter() - start, 4)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def on_best(self) -> None:
        self.write_export(Path(self.args.output_dir, BEST))

    # Writing

    def write_export(self, folder: Path) -> None:
        """Write the exported model as a Hub checkpoint."""
        if self.args.should_save:
            self.model.export().save_pretrained(folder)
            write_state(folder, self.model.training_state(), getattr(self.train_dataset, "identities", ()))

    def write_checkpoint(self, folder: Path) -> None:
        """Write the method's whole state for resuming; without training_args.bin, which is a pickle."""
        if self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            state = {name: tensor.contiguous() for name, tensor in self.model.state_dict().items()}
            save_file(state, folder / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})
            self._run().write(folder, RUN_FILE)

    def _run(self) -> RunRecord:
        return describe_run(self.recipe, self.args, len(self.train_dataset), self.origin)

    def before_resume(self, checkpoint: str) -> None:
        check_same_run(checkpoint, self._run())
        self._resumed = checkpoint

    def checkpoint_parent(self) -> Path:
        return self._run_dir or super().checkpoint_parent()

    def save_checkpoint(self, save: Callable[[], None]) -> None:
        """As the Trainer does, except that a folder checkpoint-N is complete or absent, whenever the run is killed."""
        output_dir = Path(self.args.output_dir)
        final = output_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(output_dir / ".incomplete", ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._run_dir = output_dir / ".incomplete"
        try:
            save()
            write_carried(self._run_dir / final.name, self.args.process_index, self.model.carried())
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                shutil.rmtree(final, ignore_errors=True)
                os.replace(self._run_dir / final.name, final)
                shutil.rmtree(self._run_dir)
                rotate_checkpoints(str(output_dir), save_total_limit=self.args.save_total_limit)
            self.accelerator.wait_for_everyone()
        finally:
            self._run_dir = None

    def check_loaded(self, missing: list[str], unexpected: list[str]) -> None:
        if missing or unexpected:
            raise RunError(
                f"the checkpoint is of another method or model: missing {missing[:4]}, not used {unexpected[:4]}; "
                "resume with the arguments it was made with"
            )

    # Publishing

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """Hand the exported model to the publisher; weights, code, card and results go in one commit."""
        if self.publisher is None:
            raise ReIDError("there is nobody to publish with: give ReIDTrainer a publisher")
        return self.publisher(self.model.export()) if self.is_world_process_zero() else None

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the card is written with the model, from results.json."""


def share_buffers(model: nn.Module) -> None:
    """Give every process the running statistics of the first: behind a step each has those of its own batches."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


class _Epochs(TrainerCallback):
    """What the Trainer does not do by the epoch: tell sampler and method for certain, and evaluate every so often.

    On several processes accelerate does not tell the sampler which epoch it is when an epoch is resumed in its middle.
    """

    def __init__(self, trainer: ReIDTrainer, evaluate_every: int):
        self.trainer, self.evaluate_every = trainer, evaluate_every

    def on_epoch_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._start_epoch(state.epoch or 0.0)

    def on_epoch_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        if round(state.epoch) % self.evaluate_every and state.global_step < state.max_steps:
            control.should_evaluate = False
