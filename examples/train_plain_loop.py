"""The method, recipe and data of `train_supervised.py` in a custom loop, on Accelerate.

Without arguments it trains on synthetic people, in minutes on two CPU cores:

    accelerate launch examples/train_plain_loop.py
"""

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from tqdm import tqdm

from reid_hub import ReIDConfig, ReIDModel, evaluate_model, load_reid_dataset
from reid_hub.cli.errors import run
from reid_hub.cli.examples import SMALL, LoopSettings, parse
from reid_hub.data.augmentation import BatchTransform
from reid_hub.data.images import ImageDataset
from reid_hub.methods import METHODS
from reid_hub.registry import lookup
from reid_hub.training import RECIPES, build_optimizer, build_sampler, build_scheduler, share_buffers


def main() -> None:
    options = parse(LoopSettings, __doc__).loop
    accelerator, recipe = Accelerator(), lookup(RECIPES, options.recipe, "recipe")
    set_seed(options.seed)
    splits = load_reid_dataset("synthetic", num_train_ids=options.ids)
    images = ImageDataset(splits["train"], SMALL, interpolation=recipe.interpolation)
    model = ReIDModel(ReIDConfig.from_variant(options.model, image_size=SMALL, **recipe.config))
    method = METHODS[recipe.method](model, options.ids, **recipe.options).train()  # type: ignore[call-arg]

    batch_size, processes = recipe.batch_size, accelerator.num_processes
    counters = {"seed": options.seed, "num_processes": processes}
    sampler = build_sampler(recipe, images.pids, batch_size=batch_size, **counters)
    loader = torch.utils.data.DataLoader(images, batch_size, sampler=sampler, collate_fn=images.collate)
    transform = BatchTransform(recipe.augmentation, model.config.image_mean, model.config.image_std)
    rates = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay, "bias_lr_factor": recipe.bias_lr_factor}
    optimizer = build_optimizer(method, recipe.optimizer, **rates, options=recipe.optimizer_options)
    method, optimizer, loader = accelerator.prepare(method, optimizer, loader)
    # Not prepared: accelerate would step it once per process
    scheduler = build_scheduler(optimizer, recipe.schedule, options.epochs * len(loader), recipe.learning_rate)

    step = 0
    for epoch in range(options.epochs):
        accelerator.unwrap_model(method).start_epoch(epoch)
        bar = tqdm(loader, desc=f"epoch {epoch + 1}/{options.epochs}", disable=not accelerator.is_main_process)
        for batch in bar:  # accelerate tells the sampler the epoch
            outputs = method(transform.augment(batch, seed=options.seed, step=step))
            optimizer.zero_grad()
            accelerator.backward(outputs["loss"])
            optimizer.step()
            scheduler.step()
            step += 1
            bar.set_postfix({name: f"{value.item():.3f}" for name, value in outputs.items()})

    model = accelerator.unwrap_model(method).export()
    share_buffers(model)  # all processes evaluate the model that the main process saves
    results = evaluate_model(model, splits)
    if accelerator.is_main_process:
        model.save_pretrained(options.out)
        print(f"mAP {results.mAP:.1%}, rank-1 {results.rank1:.1%}; model: {options.out}")


if __name__ == "__main__":
    run(main)
