from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerCallback, TrainingArguments, set_seed

from reid_hub import ReIDConfig, ReIDModel
from reid_hub.data.augmentation import BatchTransform
from reid_hub.data.samplers import IdentitySampler, ShuffleSampler
from reid_hub.methods import SupervisedMethod
from reid_hub.training import RECIPES, ReIDTrainer, build_sampler, override, training_arguments
from reid_hub.training.resume import RUN_FILE, check_same_run, describe_run, read_carried, write_carried

from .small_run import RECIPE, SEED, STEPS_PER_EPOCH, Recorder, small_model, small_trainer

# Renamed between transformers 5.17 and 5.23.
NAMES = [field.name for field in fields(TrainingArguments)]
CHECKPOINTING = "activation_checkpointing" if "activation_checkpointing" in NAMES else "gradient_checkpointing"


def weights_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_equal_weights(first, second, **tolerance):
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(
            first[name], second[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance
        )


def by_hand(dataset, epochs):
    """The recipe as a loop without any trainer: sampler, augmentation, Adam with L2, rate by epoch."""
    method = SupervisedMethod(small_model(), 12, **RECIPE.options).train()
    config = method.model.config
    transform = BatchTransform(RECIPE.augmentation, config.image_mean, config.image_std)
    sampler = IdentitySampler(dataset.pids, 4, 2, seed=SEED)
    optimiser = torch.optim.Adam(method.parameters(), lr=RECIPE.learning_rate, weight_decay=RECIPE.weight_decay)
    losses, step = [], 0
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        order = list(sampler)
        for group in optimiser.param_groups:
            group["lr"] = RECIPE.schedule.rate(epoch, RECIPE.learning_rate)
        for start in range(0, len(order), 8):
            batch = dataset.__getitems__(order[start : start + 8])
            pixels = transform(batch["pixel_values"], batch["indices"], seed=SEED, step=step)
            outputs = method({**batch, "pixel_values": pixels})
            optimiser.zero_grad()
            outputs["loss"].backward()
            optimiser.step()
            losses.append({name: value.item() for name, value in outputs.items()})
            step += 1
    return method, losses


def test_a_run_equals_the_recipe_written_as_a_loop(small_dataset, tmp_path):
    trainer = small_trainer(tmp_path, small_dataset, method=SupervisedMethod, num_train_epochs=4)
    trainer.train()
    method, losses = by_hand(small_dataset, epochs=4)
    assert len(losses) == trainer.state.global_step == 4 * STEPS_PER_EPOCH
    assert_equal_weights(weights_of(trainer.model), weights_of(method), rtol=1e-4, atol=1e-5)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 4
    for epoch, entry in enumerate(logs):
        mine = losses[epoch * STEPS_PER_EPOCH : (epoch + 1) * STEPS_PER_EPOCH]
        for logged, part in {"loss": "loss", "loss_identity": "identity", "loss_triplet": "triplet",
                             "loss_center": "center"}.items():  # fmt: skip
            assert entry[logged] == pytest.approx(sum(loss[part] for loss in mine) / STEPS_PER_EPOCH, rel=1e-3), logged
        assert entry["learning_rate"] == pytest.approx(RECIPE.schedule.rate(epoch, RECIPE.learning_rate), rel=1e-9)


def test_evaluation_changes_neither_weights_nor_random_numbers(small_dataset, tmp_path):
    seen = []

    def evaluator(model):
        assert isinstance(model, ReIDModel)
        assert not model.training
        torch.randn(7)
        with torch.no_grad():
            seen.append(model(torch.zeros(1, 3, 32, 16)).embeddings)
        return {"mAP": 1 / len(seen), "rank1": 0.5}

    plain = small_trainer(tmp_path / "plain", small_dataset, num_train_epochs=2)
    plain.train()
    evaluated = small_trainer(
        tmp_path / "evaluated",
        small_dataset,
        num_train_epochs=2,
        evaluator=evaluator,
        eval_strategy="steps",
        eval_steps=4,
    )
    evaluated.train()
    assert len(seen) == 3
    assert_equal_weights(weights_of(plain.model), weights_of(evaluated.model), rtol=0, atol=0)
    entries = [entry for entry in evaluated.state.log_history if "eval_mAP" in entry]
    assert [entry["eval_mAP"] for entry in entries] == [1, 1 / 2, 1 / 3]
    assert all(entry["eval_rank1"] == 0.5 for entry in entries)


def test_evaluations_can_be_epochs_apart_and_the_last_epoch_has_one(small_dataset, tmp_path):
    options = {"evaluator": lambda model: {"mAP": 0.5}, "eval_strategy": "epoch", "evaluate_every": 2}
    trainer = small_trainer(tmp_path, small_dataset, num_train_epochs=5, **options)
    trainer.train()
    assert [entry["epoch"] for entry in trainer.state.log_history if "eval_mAP" in entry] == [2, 4, 5]


def test_best_and_last_models_are_exported_as_hub_checkpoints(small_dataset, tmp_path):
    scores = iter([0.2, 0.9, 0.4])
    states = []

    def evaluator(model):
        states.append(weights_of(model))
        return {"mAP": next(scores)}

    trainer = small_trainer(
        tmp_path, small_dataset, num_train_epochs=3, evaluator=evaluator, eval_strategy="epoch", save_strategy="epoch"
    )
    trainer.train()
    trainer.save_model()
    best, last = ReIDModel.from_pretrained(tmp_path / "best"), ReIDModel.from_pretrained(tmp_path)
    assert_equal_weights(weights_of(best), states[1], rtol=0, atol=0)
    assert_equal_weights(weights_of(last), weights_of(trainer.model.model), rtol=0, atol=0)
    for folder in (tmp_path, tmp_path / "best"):
        names = {file.name for file in folder.iterdir()}
        assert {"model.safetensors", "config.json", "modeling_reid.py", "preprocessor_config.json"} <= names
        assert "training_args.bin" not in names
        assert not any(file.suffix in (".bin", ".pt", ".pth", ".pkl") for file in folder.iterdir())
    assert trainer.state.best_metric == 0.9
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-12", "checkpoint-18"]  # the last two
    saved = load_file(tmp_path / "checkpoint-18" / "model.safetensors")
    assert_equal_weights(saved, weights_of(trainer.model), rtol=0, atol=0)
    assert {"classifier.weight", "centers"} <= saved.keys()
    assert not list(tmp_path.glob(".*"))


def test_a_failed_save_leaves_the_earlier_checkpoint_and_none_of_its_own(small_dataset, tmp_path, monkeypatch):
    trainer = small_trainer(tmp_path, small_dataset, num_train_epochs=2, save_strategy="epoch")
    original = torch.save

    def full_disk(obj, path, *args, **kwargs):
        if "checkpoint-12" in str(path):
            raise OSError(28, "No space left on device")
        return original(obj, path, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        trainer.train()
    assert [p.name for p in tmp_path.glob("checkpoint-*")] == ["checkpoint-6"]
    monkeypatch.undo()
    again = small_trainer(tmp_path, small_dataset, num_train_epochs=2, save_strategy="epoch")
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 12
    assert not list(tmp_path.glob(".incomplete"))


def test_interrupted_by_the_user_the_last_checkpoint_resumes(small_dataset, tmp_path):
    class Interrupt(Recorder):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 9:
                raise KeyboardInterrupt

    whole = small_trainer(tmp_path / "whole", small_dataset, num_train_epochs=2)
    whole.train()
    trainer = small_trainer(
        tmp_path / "cut", small_dataset, num_train_epochs=2, save_strategy="steps", save_steps=4,
        callbacks=[Interrupt(tmp_path / "unused")],
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    resumed = small_trainer(tmp_path / "cut", small_dataset, num_train_epochs=2, save_strategy="steps", save_steps=4)
    resumed.train(resume_from_checkpoint=True)
    assert_equal_weights(weights_of(whole.model), weights_of(resumed.model), rtol=0, atol=0)


def test_only_the_run_that_made_a_checkpoint_resumes_from_it(small_dataset, tmp_path):
    small_trainer(tmp_path, small_dataset, num_train_epochs=1, save_strategy="epoch").train()
    other = override(RECIPE, {"options.center_weight": 0.0})
    with pytest.raises(ValueError, match=r"another run: options.center_weight was"):
        small_trainer(tmp_path, small_dataset, recipe=other, num_train_epochs=1).train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="num_train_epochs was 1 and is 2"):
        small_trainer(tmp_path, small_dataset, num_train_epochs=2).train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="earlier run, up to checkpoint-6: resume it"):
        small_trainer(tmp_path, small_dataset, num_train_epochs=1).train()
    trainer = small_trainer(tmp_path, small_dataset, num_train_epochs=1)
    trainer.model.extra = nn.Linear(1, 1)
    with pytest.raises(RuntimeError, match="another method or model"):
        trainer.train(resume_from_checkpoint=True)


def test_a_run_from_before_an_augmentation_existed_resumes(tmp_path):
    """Only augmentations that the recipe uses count as differences."""
    args = training_arguments(RECIPE, tmp_path, use_cpu=True)
    run = describe_run(RECIPE, args, 48)
    known = run.key["augmentation"].items()
    old = {name: value for name, value in known if name not in ("lighting", "resized_area")}
    replace(run, key={**run.key, "augmentation": old}).write(tmp_path, RUN_FILE)
    with pytest.raises(ValueError, match="num_processes was 1 and is 2"):
        check_same_run(tmp_path, replace(run, key={**run.key, "num_processes": 2}))
    check_same_run(tmp_path, run)
    lit = override(RECIPE, {"augmentation.lighting": 0.1})
    with pytest.raises(ValueError, match=r"augmentation\.lighting was 0\.0 and is 0\.1"):
        check_same_run(tmp_path, describe_run(lit, args, 48))


def test_a_run_that_diverges_stops_and_says_so(small_dataset, tmp_path):
    with pytest.raises(RuntimeError, match="lower the learning rate"):
        small_trainer(
            tmp_path, small_dataset, learning_rate=1e30, logging_strategy="steps", logging_steps=1, num_train_epochs=2
        ).train()


@pytest.mark.parametrize("options", [{"bf16": True}, {"channels_last": True}, {"bf16": True, "channels_last": True}])
def test_bfloat16_and_channels_last_train_like_float32(small_dataset, tmp_path, options):
    exact, other = (
        small_trainer(tmp_path / name, small_dataset, method=SupervisedMethod, num_train_epochs=2, **chosen)
        for name, chosen in (("exact", {}), ("other", options))
    )
    exact.train()
    other.train()
    first, second = (trainer.state.log_history[-2]["loss"] for trainer in (exact, other))
    assert second == pytest.approx(first, rel=0.1 if "bf16" in options else 1e-3)
    assert all(p.dtype == torch.float32 for p in other.model.parameters())
    other.save_model()
    assert_equal_weights(
        weights_of(ReIDModel.from_pretrained(tmp_path / "other")), weights_of(other.model.model), rtol=0, atol=0
    )


def test_a_transformer_trains_by_the_vit_recipe_and_checkpointing_changes_nothing(small_dataset, tmp_path):
    recipe = override(RECIPES["vit"], {"batch_size": 8, "num_instances": 2, "augmentation.pad": 2})
    backbone = {
        "model_type": "vit", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "image_size": [32, 16], "patch_size": 8, "hidden_dropout_prob": 0.1,
    }  # fmt: skip
    finals = []
    for checkpointing in (False, True):
        set_seed(SEED)
        model = ReIDModel(ReIDConfig(backbone_config=backbone, pooling="cls", image_size=(32, 16), **recipe.config))
        method = SupervisedMethod(model, 12, **recipe.options)
        before = weights_of(method)
        args = training_arguments(
            recipe, tmp_path / str(checkpointing), use_cpu=True, seed=SEED, num_train_epochs=3, disable_tqdm=True,
            save_strategy="no", **{CHECKPOINTING: checkpointing},
        )  # fmt: skip
        ReIDTrainer(method, recipe, args, small_dataset).train()
        after = weights_of(method)
        assert all(not torch.equal(before[name], after[name]) for name, _ in method.named_parameters())
        finals.append(after)
    assert_equal_weights(*finals, rtol=1e-5, atol=1e-7)


def test_batch_norm_backbones_refuse_checkpointing(small_dataset, tmp_path):
    with pytest.raises(ValueError, match="batch norm would update"):
        small_trainer(tmp_path, small_dataset, **{CHECKPOINTING: True}).train()


def test_accumulated_steps_average_their_gradients(small_dataset, tmp_path):
    """Two batches of one step give the mean of their gradients, seen through one step of SGD."""
    recipe = override(
        RECIPE, {"optimizer": "sgd", "optimizer_options": {}, "weight_decay": 0.0, "options.center_weight": 0.0}
    )
    options = {"method": SupervisedMethod, "recipe": recipe, "max_steps": 1}
    trainer = small_trainer(tmp_path, small_dataset, gradient_accumulation_steps=2, **options)
    before = weights_of(trainer.model)
    trainer.train()
    reference = SupervisedMethod(small_model(), 12, **recipe.options).train()
    assert_equal_weights(before, weights_of(reference), rtol=0, atol=0)
    order = list(IdentitySampler(small_dataset.pids, 4, 2, seed=SEED))
    transform = trainer.transform
    for start in (0, 8):
        batch = small_dataset.__getitems__(order[start : start + 8])
        pixels = transform(batch["pixel_values"], batch["indices"], seed=SEED, step=0)
        (reference({**batch, "pixel_values": pixels})["loss"] / 2).backward()
    rate = recipe.schedule.rate(0, recipe.learning_rate)
    for (name, after), parameter in zip(trainer.model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(after.detach(), before[name] - rate * parameter.grad, rtol=1e-4, atol=1e-6)


def test_the_publisher_gets_the_exported_model_once(small_dataset, tmp_path):
    published = []
    trainer = small_trainer(tmp_path, small_dataset, publisher=lambda model: published.append(model) or "commit")
    assert trainer.push_to_hub() == "commit"
    assert published == [trainer.model.model]
    trainer.create_model_card()
    assert not (tmp_path / "README.md").exists()


def test_impossible_trainings_are_refused(small_dataset, tmp_path):
    for options, message in [
        ({"eval_strategy": "epoch"}, "needs an evaluator"),
        ({"load_best_model_at_end": True}, "exported to output_dir/best"),
        ({"push_to_hub": True}, "needs a publisher"),
        ({"push_to_hub": True, "hub_strategy": "every_save", "publisher": print}, "must be 'end'"),
        ({"num_train_epoch": 3}, "did you mean 'num_train_epochs'"),
        ({"warmup_ratio": 0.1}, "did you mean 'warmup_steps'"),
    ]:
        with pytest.raises(ValueError, match=message):
            small_trainer(tmp_path, small_dataset, **{"eval_strategy": "no", **options})
    trainer = small_trainer(tmp_path, small_dataset)
    with pytest.raises(ValueError, match="give ReIDTrainer an evaluator"):
        trainer.evaluate()
    with pytest.raises(ValueError, match="give ReIDTrainer a publisher"):
        trainer.push_to_hub()


def test_the_arguments_are_the_recipes_until_they_are_overridden(tmp_path):
    plain = training_arguments(RECIPE, tmp_path, use_cpu=True)
    assert (plain.learning_rate, plain.weight_decay, plain.num_train_epochs) == (0.01, 5e-4, 4)
    assert (plain.per_device_train_batch_size, plain.max_grad_norm) == (8, 0)
    assert plain.trackio_static_space_id is False
    changed = training_arguments(RECIPE, tmp_path, use_cpu=True, learning_rate=1.0, num_train_epochs=9)
    assert (changed.learning_rate, changed.num_train_epochs) == (1.0, 9)


def test_the_sampler_is_the_recipes(small_dataset):
    assert isinstance(build_sampler(RECIPE, small_dataset.pids, batch_size=8, seed=0), IdentitySampler)
    shuffle = override(RECIPE, {"sampler": "shuffle"})
    assert isinstance(build_sampler(shuffle, small_dataset.pids, batch_size=7, seed=0), ShuffleSampler)
    with pytest.raises(ValueError, match="divisible"):
        build_sampler(RECIPE, small_dataset.pids, batch_size=7, seed=0)


@pytest.mark.parametrize("tracker", ["tensorboard", "trackio"])
def test_losses_and_metrics_reach_the_tracker(small_dataset, tmp_path, monkeypatch, tracker):
    pytest.importorskip(tracker)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trainer = small_trainer(
        tmp_path, small_dataset, num_train_epochs=1, report_to=tracker, project="people", run_name="first",
        evaluator=lambda model: {"mAP": 0.25}, eval_strategy="epoch",
    )  # fmt: skip
    trainer.train()
    logged = _tensorboard(tmp_path) if tracker == "tensorboard" else _trackio("people", "first")
    assert logged["eval/mAP"] == pytest.approx(0.25)
    expected = next(entry for entry in trainer.state.log_history if "loss" in entry)
    for name in ("loss", "loss_identity", "loss_triplet", "learning_rate"):
        assert logged[f"train/{name}"] == pytest.approx(expected[name], rel=1e-5)


def _tensorboard(folder: Path) -> dict[str, float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (run,) = (folder / "runs").iterdir()
    events = EventAccumulator(str(run))
    events.Reload()
    return {tag: events.Scalars(tag)[-1].value for tag in events.Tags()["scalars"]}


def _trackio(project: str, run: str) -> dict[str, float]:
    from trackio.sqlite_storage import SQLiteStorage

    merged: dict[str, float] = {}
    for entry in SQLiteStorage.get_logs(project, run):
        merged |= entry
    return merged


class Watcher(SupervisedMethod):
    """Keeps what it was given."""

    seen = ()

    def forward(self, batch):
        self.seen = [*self.seen, (batch["pixel_values"].clone(), batch["indices"], batch["erased_boxes"])]
        return super().forward(batch)


def test_a_method_gets_the_erased_boxes_before_the_flip(small_dataset, tmp_path):
    recipe = replace(RECIPE, augmentation=RECIPES["fd-student"].augmentation)
    trainer = small_trainer(tmp_path, small_dataset, recipe=recipe, method=Watcher, max_steps=4)
    trainer.train()
    plain = BatchTransform(None, trainer.model.model.config.image_mean, trainer.model.model.config.image_std)
    assert len(trainer.model.seen) == 4
    flipped = 0
    for pixel_values, indices, boxes in trainer.model.seen:
        expected = plain(small_dataset.__getitems__(indices)["pixel_values"])
        for image, whole, (y0, x0, y1, x1) in zip(pixel_values, expected, boxes.tolist(), strict=True):
            if y0 >= 0:
                whole[:, y0:y1, x0:x1] = 0
            if not torch.equal(image, whole):
                assert torch.equal(image.flip(2), whole)
                flipped += 1
    assert 6 <= flipped <= 26


class Remembering(SupervisedMethod):
    """Adds the mean of the last batch to the next: its weights depend on what an epoch has carried so far."""

    def start_epoch(self, epoch):
        self.last, self.epochs = torch.zeros(3, 1, 1), [*getattr(self, "epochs", []), epoch]

    def carried(self):
        return {"last": self.last}

    def restore_carried(self, state):
        self.last = state["last"]

    def forward(self, batch):
        moved = batch["pixel_values"] + self.last
        self.last = batch["pixel_values"].mean((0, 2, 3))[:, None, None]
        return super().forward({**batch, "pixel_values": moved})


@pytest.mark.parametrize(("save_steps", "accumulated"), [(4, 1), (6, 1), (1, 4)])
def test_state_between_batches_resumes_in_mid_epoch_and_restarts_with_each_epoch(
    small_dataset, tmp_path, save_steps, accumulated
):
    """Step 4 is within an epoch of six, step 6 at its end; with four batches to a step, step 1 is within one of two."""
    options = {"method": Remembering, "gradient_accumulation_steps": accumulated, "save_steps": save_steps}
    whole = small_trainer(tmp_path / "whole", small_dataset, num_train_epochs=2, **options)
    whole.train()
    assert whole.model.epochs == [0, 1]

    class Interrupt(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == save_steps:
                raise KeyboardInterrupt

    options = {**options, "num_train_epochs": 2, "save_strategy": "steps"}
    with pytest.raises(KeyboardInterrupt):
        small_trainer(tmp_path / "cut", small_dataset, callbacks=[Interrupt()], **options).train()
    folder = tmp_path / "cut" / f"checkpoint-{save_steps}"
    assert load_file(folder / "carried-0.safetensors")["last"].any()
    assert "last" not in load_file(folder / "model.safetensors")
    resumed = small_trainer(tmp_path / "cut", small_dataset, **options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.model.epochs == ([1] if save_steps == 6 else [0, 1])
    assert_equal_weights(weights_of(whole.model), weights_of(resumed.model), rtol=0, atol=0)


def test_a_process_without_state_in_the_checkpoint_refuses_it(tmp_path):
    assert read_carried(tmp_path, 1) == {}
    write_carried(tmp_path, 0, {"last": torch.arange(3)})
    assert read_carried(tmp_path, 0)["last"].tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match=r"memory of 1 process.*number 2: resume with as many as the run had"):
        read_carried(tmp_path, 1)
