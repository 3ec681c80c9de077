"""A memory between batches under the real trainer: it lasts an epoch, evaluations do not touch it, it resumes."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import TrainerCallback, dynamic_module_utils, set_seed

from reid_hub import ReIDConfig, ReIDForImageClassification, ReIDModel
from reid_hub.data.batch import Batch
from reid_hub.data.images import ImageDataset
from reid_hub.methods import ClassificationMethod, PTLMethod, STDMethod
from reid_hub.training import RECIPES, ReIDTrainer, override, training_arguments

RECIPE = override(RECIPES["ptl"], {"batch_size": 8, "augmentation.crop_scale": 1.0, "learning_rate": 0.05})
STEPS_PER_EPOCH = 6
TRUNK = {"model_type": "resnet", "embedding_size": 4, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
HEAD = {"head": "linear", "head_bias": True, "head_norm": False, "embedding_dim": 16, "neck": "none"}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    import datasets

    rng, rows = np.random.default_rng(0), []
    for number in range(50):  # six batches of eight, and two pictures too many
        pixels = np.clip(rng.integers(40, 216, 3) + rng.normal(0, 20, (32, 16, 3)), 0, 255).astype(np.uint8)
        rows.append({"image": Image.fromarray(pixels), "pid": number % 10, "camid": 0, "path": f"{number}.jpg"})
    features = {"image": datasets.Image(), "pid": datasets.Value("int64"), "camid": datasets.Value("int64")}
    features = datasets.Features({**features, "path": datasets.Value("string")})
    rows = datasets.Dataset.from_list(rows, features=features)
    return ImageDataset(rows, (32, 16), cache_dir=tmp_path_factory.mktemp("pixels"), progress=False)


def model(side):
    set_seed(3)
    return ReIDModel(ReIDConfig(backbone_config=TRUNK, image_size=(32, 16), side=side, **HEAD))


def trainer(folder, dataset, *, side=None, method=PTLMethod, parts=None, **options) -> ReIDTrainer:
    for_trainer = {name: options.pop(name) for name in ("evaluator", "callbacks", "channels_last") if name in options}
    options = {"use_cpu": True, "seed": 5, "disable_tqdm": True, "save_strategy": "no", **options}
    built = method(model(side or {"cell": "v1"}), 10, **(parts or {}), hidden=(8, 8))
    arguments = training_arguments(RECIPE, folder, num_train_epochs=3, **options)
    return ReIDTrainer(built, RECIPE, arguments, dataset, **for_trainer)


def weights(trainer):
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def same(first, second):
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


class Watch(TrainerCallback):
    """The memory's size before every batch."""

    def __init__(self):
        self.seen = []

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self.seen.append(len(model.carried()))


@pytest.mark.parametrize("cell", ["v1", "v2"])
def test_the_memory_lasts_an_epoch_and_moves_the_weights(dataset, tmp_path, cell):
    watch, runs = Watch(), {}
    for memory in (True, False):
        runs[memory] = trainer(
            tmp_path / str(memory), dataset, side={"cell": cell, "memory": memory}, callbacks=[watch]
        )
        runs[memory].train()
    tensors = len(runs[True].model.carried())
    assert tensors > 0
    assert watch.seen == [0, *[tensors] * 5] * 3 + [0] * 18
    assert not same(weights(runs[True]), weights(runs[False]))


@pytest.mark.parametrize("when", [{"eval_strategy": "steps", "eval_steps": 1}, {"eval_strategy": "epoch"}])
@pytest.mark.parametrize("cell", ["v1", "v2"])
def test_evaluating_in_the_middle_of_training_never_changes_the_trajectory(dataset, tmp_path, cell, when):
    """In the released training the first evaluation switched the memory off for all that followed."""
    asked = []

    def evaluator(exported):
        assert not exported.training
        batch = torch.randn(3, 3, 32, 16, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():  # batches of other lengths, other pictures, other sizes; and again
            first = exported(batch).embeddings
            exported(torch.randn(11, 3, 48, 24))
            alone = torch.cat([exported(picture[None]).embeddings for picture in batch])
        torch.testing.assert_close(first, alone, rtol=1e-5, atol=1e-6)
        exported.encode([np.zeros((32, 16, 3), np.uint8)])
        asked.append(len(exported.memory()))
        return {"mAP": 0.5}

    watch = Watch()
    undisturbed = trainer(tmp_path / "plain", dataset, side={"cell": cell})
    undisturbed.train()
    evaluated = trainer(tmp_path / "seen", dataset, side={"cell": cell}, evaluator=evaluator, callbacks=[watch], **when)
    evaluated.train()
    assert len(asked) == (18 if "eval_steps" in when else 3)
    assert all(asked)  # the memory was there all the while
    assert same(weights(undisturbed), weights(evaluated))
    assert watch.seen == [0, *[watch.seen[1]] * 5] * 3
    for name, tensor in undisturbed.model.carried().items():
        assert torch.equal(tensor, evaluated.model.carried()[name])


@pytest.mark.parametrize(
    ("cell", "options"), [("v1", {}), ("v2", {}), ("v1", {"channels_last": True}), ("v2", {"bf16": True}),
                          ("v1", {"gradient_accumulation_steps": 4})],
)  # fmt: skip
def test_a_run_resumed_in_mid_epoch_has_the_same_bits(dataset, tmp_path, cell, options):
    steps = 1 if "gradient_accumulation_steps" in options else 4
    whole = trainer(tmp_path / "whole", dataset, side={"cell": cell}, **options)
    whole.train()

    class Interrupt(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == steps + 1:
                raise KeyboardInterrupt

    options = {**options, "side": {"cell": cell}, "save_strategy": "steps", "save_steps": steps}
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "cut", dataset, callbacks=[Interrupt()], **options).train()
    checkpoint = tmp_path / "cut" / f"checkpoint-{steps}"
    assert not any("memory" in name for name in load_file(checkpoint / "model.safetensors"))
    assert all(tensor.any() for tensor in load_file(checkpoint / "carried-0.safetensors").values())
    resumed = trainer(tmp_path / "cut", dataset, **options)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert same(weights(whole), weights(resumed))
    resumed.save_model()
    exported = ReIDModel.from_pretrained(tmp_path / "cut")
    assert exported.memory() == []
    assert not list((tmp_path / "cut").glob("carried*"))


def test_with_frozen_weights_every_epoch_begins_like_the_first(dataset):
    """The first loss of the second epoch equals that of the first on the same batch; the second batch's differs."""
    method = PTLMethod(model({"cell": "v2"}), 10).train()
    batch = dataset.__getitems__(range(8))
    pixels, pids = batch["pixel_values"].float() / 100, batch["pids"]
    with torch.no_grad():
        epochs = []
        for epoch in range(2):
            method.start_epoch(epoch)
            epochs.append([method(Batch(pixel_values=pixels, pids=pids))["loss"].item() for _ in range(3)])
    assert epochs[0] == epochs[1]
    assert len(set(epochs[0])) == 3


def test_a_teacher_with_a_memory_says_the_same_in_every_step(dataset):
    """Its state is zero for every batch, whatever the student's epoch has seen."""
    teacher = model({"cell": "v1"})
    batch = dataset.__getitems__(range(8))
    pixels, pids = batch["pixel_values"].float() / 100, batch["pids"]
    teacher.train()(pixels)  # it comes with a memory of its training
    assert teacher.memory()
    method = STDMethod(model(None), 10, teacher=teacher, lam=1.0).train()
    first, second = (method(Batch(pixel_values=pixels, pids=pids))["feature"].item() for _ in range(2))
    assert first == second
    teacher.reset_memory()
    expected = (method.model(pixels).features - teacher.eval()(pixels).features).abs().mean().item()
    assert first == pytest.approx(expected, rel=1e-5)
    assert method.carried() == {}  # the teacher's is no part of what goes on


def test_classifiers_of_general_pictures_forget_and_carry_alike(dataset):
    set_seed(3)
    fields = {**HEAD, "side": {"cell": "v1"}, "num_labels": 10, "classifier_hidden": [16]}
    network = ReIDForImageClassification(ReIDConfig(backbone_config=TRUNK, image_size=(32, 16), **fields))
    method = ClassificationMethod(network, 10).train()
    batch = dataset.__getitems__(range(8))
    pixels, pids = batch["pixel_values"].float() / 100, batch["pids"]
    with torch.no_grad():
        first, kept = method(Batch(pixel_values=pixels, pids=pids))["loss"].item(), method.carried()
        second = method(Batch(pixel_values=pixels, pids=pids))["loss"].item()
        method.start_epoch(1)
        assert method.carried() == {}
        assert method(Batch(pixel_values=pixels, pids=pids))["loss"].item() == first != second
        method.restore_carried(kept)
        assert method(Batch(pixel_values=pixels, pids=pids))["loss"].item() == second


def test_mgn_trains_by_its_recipe_with_a_memory_and_without():
    """Eight vectors of one length, the first three compared; every parameter gets a gradient."""
    recipe = RECIPES["ptl-mgn"]
    trunk = {"backbone_config": {"model_type": "reid_mgn", "width": 4, "depths": [1, 1, 2, 1]}, "embedding_dim": 6}
    pixels = torch.randn(8, 3, 96, 32, generator=torch.Generator().manual_seed(0))
    for variant in ("mgn", "mgn-ptl"):
        set_seed(3)
        network = ReIDModel(ReIDConfig.from_variant(variant, **{**trunk, **recipe.config}, image_size=(96, 32)))
        method = PTLMethod(network, 4, **recipe.options).train()
        assert method.part_dims == (6,) * 8
        for _ in range(2):
            method(Batch(pixel_values=pixels, pids=torch.arange(8) // 2))["loss"].backward()
        assert all(parameter.grad is not None for parameter in method.parameters())
        assert bool(method.carried()) == (variant == "mgn-ptl")


def test_a_model_that_came_with_its_own_code_forgets_and_carries_too(tmp_path, monkeypatch):
    """Its cells are of another class than those of the package."""
    folder = str(tmp_path / "model")
    model({"cell": "v1"}).save_pretrained(folder)
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    travelled = dynamic_module_utils.get_class_from_dynamic_module("modeling_reid.ReIDModel", folder)
    method = PTLMethod(travelled.from_pretrained(folder), 10)
    assert not isinstance(method.model, ReIDModel)
    method.train()(Batch(pixel_values=torch.randn(4, 3, 32, 16), pids=torch.arange(4)))
    kept = method.carried()
    assert kept
    method.start_epoch(1)
    assert method.carried() == {}
    method.restore_carried(kept)
    assert same(method.carried(), kept)


def test_pictures_of_another_size_and_larger_batches_start_from_zeros(dataset):
    """Within an epoch: what fits no slot is as in the first batch, and nothing crashes."""
    method = PTLMethod(model({"cell": "v1"}), 10)
    method.model.train()
    for module in method.model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()  # else the sizes of batches would change the statistics
    generator = torch.Generator().manual_seed(0)
    small, large = torch.randn(4, 3, 32, 16, generator=generator), torch.randn(6, 3, 32, 16, generator=generator)
    other = torch.randn(4, 3, 48, 24, generator=generator)
    with torch.no_grad():
        fresh = method.model(large).features
        method.start_epoch(0)
        fresh_other = method.model(other).features
        method.start_epoch(0)
        method.model(small)
        after = method.model(large).features
        torch.testing.assert_close(after[4:], fresh[4:])
        assert not torch.allclose(after[:4], fresh[:4])
        torch.testing.assert_close(method.model(other).features, fresh_other)
