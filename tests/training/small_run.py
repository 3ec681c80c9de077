"""A training of seconds, for the tests beside this file; as a script for processes that are killed or come in pairs."""

import argparse
import json
import os
import signal
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import TrainerCallback, set_seed

from reid_hub import ReIDConfig, ReIDModel
from reid_hub.data.images import ImageDataset
from reid_hub.methods import SupervisedMethod
from reid_hub.training import RECIPES, ReIDTrainer, override, training_arguments

SEED = 5
RECIPE = override(
    RECIPES["bot"],
    {"batch_size": 8, "num_instances": 2, "augmentation.pad": 2, "schedule.epochs": 4, "schedule.warmup_epochs": 2,
     "schedule.milestones": [3, 4], "learning_rate": 0.01},
)  # fmt: skip
STEPS_PER_EPOCH = 6


class NoisyMethod(SupervisedMethod):
    """Draws from the global generator in every step, as dropout does."""

    def forward(self, batch):
        pixel_values = batch["pixel_values"]
        return super().forward({**batch, "pixel_values": pixel_values + 0.1 * torch.randn_like(pixel_values)})


def people(num_ids: int = 12, images_per_id: int = 4):
    """Images of one colour per identity, with a little noise."""
    import datasets

    rng = np.random.default_rng(0)
    colours, rows = rng.integers(40, 216, (num_ids, 3)), []
    for number in range(num_ids * images_per_id):
        pid, camid = divmod(number, images_per_id)
        pixels = np.clip(colours[pid] + rng.normal(0, 20, (32, 16, 3)), 0, 255).astype(np.uint8)
        rows.append({"image": Image.fromarray(pixels), "pid": pid, "camid": camid, "path": f"{number}.jpg"})
    features = {"image": datasets.Image(), "pid": datasets.Value("int64"), "camid": datasets.Value("int64")}
    return datasets.Dataset.from_list(rows, features=datasets.Features({**features, "path": datasets.Value("string")}))


def small_model(side: dict | None = None) -> ReIDModel:
    set_seed(SEED)
    backbone = {"model_type": "resnet", "embedding_size": 4, "hidden_sizes": [8, 16], "depths": [1, 1]}
    return ReIDModel(ReIDConfig(backbone_config={**backbone, "layer_type": "basic"}, image_size=(32, 16), side=side))


def small_trainer(output_dir, dataset, *, recipe=RECIPE, method=NoisyMethod, **options) -> ReIDTrainer:
    """A trainer of `RECIPE`; options go to the arguments, except those that the trainer itself takes."""
    for_trainer = ("evaluator", "evaluate_every", "publisher", "channels_last", "callbacks")
    trainer_options = {name: options.pop(name) for name in for_trainer if name in options}
    options = {"use_cpu": True, "seed": SEED, "disable_tqdm": True, "save_strategy": "no", **options}
    model = small_model(options.pop("side", None))
    args = training_arguments(recipe, output_dir, **options)
    return ReIDTrainer(method(model, 12, **recipe.options), recipe, args, dataset, **trainer_options)


class Recorder(TrainerCallback):
    """Records the images that every process saw, and kills the process at a given step."""

    def __init__(self, path: Path, kill_at: int | None = None):
        self.path, self.kill_at, self.seen = path, kill_at, []

    def watch(self, trainer: ReIDTrainer) -> None:
        prepare = trainer.prepare_batch

        def recorded(inputs):
            self.seen.append([trainer.state.global_step, inputs["indices"].tolist()])
            return prepare(inputs)

        trainer.prepare_batch = recorded

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_end(self, args, state, control, **kwargs):
        self.path.write_text(json.dumps(self.seen))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--kill-at", type=int)
    parser.add_argument("--save-steps", type=int, default=4)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--side", type=json.loads, help="a network beside the backbone, with a memory")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rank = int(os.environ.get("RANK", "0"))
    options.output_dir.mkdir(parents=True, exist_ok=True)
    recorder = Recorder(options.output_dir / f"seen-{rank}.json", options.kill_at)
    dataset = ImageDataset(people(), (32, 16), cache_dir=options.output_dir / "cache")
    saving = {"save_strategy": "steps", "save_steps": options.save_steps}
    trainer = small_trainer(options.output_dir, dataset, callbacks=[recorder], side=options.side, **saving)
    recorder.watch(trainer)
    trainer.train(resume_from_checkpoint=options.resume)
    save_file(trainer.model.state_dict(), options.output_dir / f"final-{rank}.safetensors")


if __name__ == "__main__":
    main()
