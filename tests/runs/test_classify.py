"""Classifiers as a run and as a command: what is measured, best and last, few shots, resumed, refused."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torchvision import transforms
from transformers import AutoModelForImageClassification, TrainerCallback

from reid_hub import ReIDConfig, ReIDForImageClassification, ReIDModel, load_reid_dataset
from reid_hub.data.batch import Batch
from reid_hub.evaluation import topk_accuracy
from reid_hub.hub.folder import checkpoint_files
from reid_hub.methods import ClassificationMethod
from reid_hub.runs.classify import Classify, ClassifySettings, classify, new_classifier

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Three classes of noise around a colour, 8 to train on and 4 to test."""
    root, rng = tmp_path_factory.mktemp("classes"), np.random.default_rng(0)
    for name in ("ant", "bee", "cat"):
        colour = rng.integers(40, 216, 3)
        for part, count in (("train", 8), ("test", 4)):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(colour + rng.normal(0, 60, (16, 16, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> str:
    """A tiny model by its folder."""
    folder = tmp_path_factory.mktemp("start")
    torch.manual_seed(0)
    backbone = {"model_type": "resnet", "embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1]}
    ReIDModel(
        ReIDConfig(backbone_config={**backbone, "layer_type": "basic"}, image_size=(16, 16), neck="none")
    ).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def settings(images, start) -> ClassifySettings:
    return ClassifySettings.of(
        data="cifar10", data_dir=str(images), dataset_name="colours", model=start, epochs=3,
        set={"batch_size": 8, "learning_rate": 0.02}, arg={"use_cpu": True, "disable_tqdm": True},
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(settings, tmp_path_factory) -> tuple[ClassifySettings, dict, list[float]]:
    """One run, with the metrics of a loop over the images after each epoch."""
    settings, measured = settings.but(out=tmp_path_factory.mktemp("run")), []

    class Watch(TrainerCallback):
        def __init__(self, method):
            self.method = method

        def on_epoch_end(self, args, state, control, **kwargs):
            measured.append(accuracy_by_hand(self.method.model, settings.data.data_dir))

    class Watched(Classify):
        def callbacks(self, method):
            return [Watch(method)]

    return settings, Watched(settings).run().to_dict(), measured


def accuracy_by_hand(model: ReIDForImageClassification, root: str) -> float:
    """One image at a time through torchvision's transforms."""
    config, right, training = model.config, [], model.training
    steps = [transforms.Resize(config.resize_shortest or config.image_size), transforms.CenterCrop(config.image_size)]
    steps.append(transforms.ToTensor())
    transform = transforms.Compose([*steps, transforms.Normalize(config.image_mean, config.image_std)])
    model.eval()
    for path in sorted(Path(root, "test").glob("*/*.png")):
        with torch.no_grad():
            logits = model(transform(Image.open(path))[None]).logits[0].tolist()
        right.append(config.id2label[logits.index(max(logits))] == path.parent.name)
    model.train(training)
    return sum(right) / len(right)


def test_last_and_best_are_what_a_loop_measures(made):
    settings, results, measured = made
    assert len(measured) == 3
    assert results["metrics"]["top1"] == pytest.approx(measured[-1])
    assert results["metrics"]["top1_best"] == pytest.approx(max(measured))
    assert results["metrics"]["best_epoch"] == measured.index(max(measured)) + 1
    assert results["metrics"]["top5"] == 1.0  # of three classes
    assert results == json.loads(Path(settings.output.out, "results.json").read_text())
    assert results["task"] == "classification"
    assert results["dataset"]["data_dir_counts"]["train"] == {"images": 24, "classes": 3}
    assert results["protocol"]["best_chosen_on"] == "the test set"
    assert "bytes_per_vector" not in results["cost"]


def test_the_folder_is_the_model_that_was_measured(made):
    settings, results, _ = made
    last = AutoModelForImageClassification.from_pretrained(settings.output.out)
    best = AutoModelForImageClassification.from_pretrained(Path(settings.output.out, "best"))
    assert accuracy_by_hand(last, settings.data.data_dir) == pytest.approx(results["metrics"]["top1"])
    assert accuracy_by_hand(best, settings.data.data_dir) == pytest.approx(results["metrics"]["top1_best"])
    assert last.config.id2label == {0: "ant", 1: "bee", 2: "cat"}
    card = Path(settings.output.out, "README.md").read_text()
    assert "pipeline_tag: image-classification" in card
    assert f"| colours | test | {100 * results['metrics']['top1']:.1f} | 100.0 |" in card
    assert f"The best epoch was {results['metrics']['best_epoch']:g}." in card
    assert {"config.json", "model.safetensors", "classification_reid.py"} <= checkpoint_files(
        Path(settings.output.out)
    ).keys()  # fit to be published
    for wrong in ("person", "gallery", "surveillance"):
        assert wrong not in card.partition("# ")[2].partition("```bibtex")[0].lower()


def test_loss_of_a_worked_example():
    """Two classes, logits by the bias alone: -log softmax, and with smoothing 0.2 the target (0.9, 0.1)."""
    config = ReIDConfig.from_variant("res18-x0.25", image_size=(32, 32), neck="none", num_labels=2)
    model = ReIDForImageClassification(config)
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([math.log(3), 0.0]))
    pixels, labels = torch.zeros(2, 3, 32, 32), torch.tensor([0, 1])
    plain = ClassificationMethod(model, 2)(Batch(pixel_values=pixels, pids=labels))["loss"].item()
    assert plain == pytest.approx(-(math.log(0.75) + math.log(0.25)) / 2, rel=1e-6)
    smooth = ClassificationMethod(model, 2, label_smoothing=0.2)(Batch(pixel_values=pixels, pids=labels))["loss"].item()
    first, second = (-(p * math.log(0.75) + (1 - p) * math.log(0.25)) for p in (0.9, 0.1))
    assert smooth == pytest.approx((first + second) / 2, rel=1e-6)
    assert model(pixels, labels=labels).loss.item() == pytest.approx(plain)
    with pytest.raises(ValueError, match=r"3 classes needs a ReIDForImageClassification of as many, got .* of 2"):
        ClassificationMethod(model, 3)


def test_top_k_against_a_loop():
    random = np.random.default_rng(0)
    logits, labels = random.integers(0, 6, (200, 9)).astype(np.float32), random.integers(0, 9, 200)  # many ties
    measured = topk_accuracy(logits, labels, (1, 3, 9))
    for k in (1, 3, 9):
        hits = 0
        for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
            hits += label in sorted(range(9), key=lambda c, row=row: (-row[c], c))[:k]
        assert measured[f"top{k}"] == hits / 200
    assert measured["top1"] == (logits.argmax(1) == labels).mean()
    with pytest.raises(ValueError, match=r"labels must be in 0\.\.8"):
        topk_accuracy(logits, labels + 1)


def test_few_shots_of_every_class(settings, tmp_path):
    results = classify(settings.but(out=tmp_path, keep=0.4, epochs=1, evaluate_every=5)).to_dict()
    assert results["training"]["images"] == 9  # 3.2 of 8, rounded down, of three classes
    assert results["training"]["keep"] == 0.4
    assert results["protocol"]["evaluations"] == 1  # the last epoch always has one
    assert results["metrics"]["top1_best"] == results["metrics"]["top1"]


def test_the_backbone_starts_from_a_classifier_of_other_classes(made, settings, tmp_path, images):
    before = load_file(Path(made[0].output.out, "model.safetensors"))
    (tmp_path / "two").mkdir()
    for part in ("train", "test"):
        (tmp_path / "two" / part).mkdir()
        for name in ("ant", "cat"):
            (tmp_path / "two" / part / name).symlink_to(images / part / name)
    tiny = settings.but(
 data_dir=str(tmp_path / "two"), out=tmp_path / "run", init=str(made[0].output.out), epochs=1,
        set={**settings.recipe.set, "learning_rate": 1e-12},
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"knows 3 classes \(ant, bee, cat\.\.\.\), not the 2 of the data"):
        classify(tiny.but(model=str(made[0].output.out), init=None))
    classify(tiny)
    after = load_file(tmp_path / "run" / "model.safetensors")
    assert after["classifier.weight"].shape == (2, 8)
    for name in before:
        if name.endswith("weight") and name.startswith("reid."):
            torch.testing.assert_close(after[name], before[name])


def test_transfer_by_crops_of_the_originals(settings, tmp_path):
    """The recipe at another image size in training, with the paper's transform in the test."""
    changes = {"batch_size": 8, "config.image_size": [28, 28], "config.resize_shortest": 32}
    transfer = settings.but(out=tmp_path, model="res18-x0.25", recipe="transfer", set=changes, epochs=1)
    results = classify(transfer).to_dict()
    assert results["metrics"]["top1"] == pytest.approx(
        accuracy_by_hand(AutoModelForImageClassification.from_pretrained(tmp_path), settings.data.data_dir)
    )
    assert results["protocol"]["resize_shortest"] == 32
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["size"] == {"shortest_edge": 32}


def test_a_backbone_gets_the_recipe_s_crop_and_the_variant_s_structure(settings, tmp_path):
    """A re-identification model has a neck and its own normalisation, and a variant the stride of re-identification."""
    torch.manual_seed(1)
    backbone = ReIDModel(ReIDConfig.from_variant("res18-x0.25", image_size=(32, 32), last_stride=None)).eval()
    backbone.save_pretrained(tmp_path / "backbone")
    changes = {"config.image_size": [28, 28], "config.resize_shortest": 36, "config.image_std": [0.5, 0.5, 0.5]}
    tuned = settings.but(out=tmp_path / "out")

    def begin(model: str, recipe: str = "transfer", **more):
        return new_classifier(tuned.but(model=model, set={**changes, **more}, recipe=recipe), ["a", "b"])

    plain, begun = begin("res18-x0.25"), begin(str(tmp_path / "backbone"))
    of_a_file = ("_name_or_path", "auto_map", "dtype", "lineage")
    ours, theirs = (
        {name: value for name, value in made.config.to_dict().items() if name not in of_a_file}
        for made in (begun, plain)
    )
    assert ours == theirs
    assert (ours["neck"], ours["last_stride"], ours["resize_shortest"]) == ({"name": "none"}, None, 36)
    assert (ours["image_mean"], ours["image_std"]) == ([0.0] * 3, [0.5] * 3)
    for name, tensor in begun.reid.backbone.state_dict().items():
        assert torch.equal(tensor, backbone.backbone.state_dict()[name]), name
    assert begun.state_dict().keys() == plain.state_dict().keys()
    with pytest.raises(ValueError, match=r"config\.last_stride=1 comes too late"):
        begin(str(tmp_path / "backbone"), **{"config.last_stride": 1})
    assert begin(str(tmp_path / "backbone"), recipe="kdep-supervised").config.neck == {
        "name": "none"
    }  # which names no neck
    kept = begin(str(tmp_path / "backbone"), **{"config.neck": "bnneck"})
    assert torch.equal(kept.reid.neck.weight, backbone.neck.weight)


def test_a_number_of_images_per_class_and_the_weight_decay_of_the_budget(settings, tmp_path, monkeypatch):
    monkeypatch.setattr("reid_hub.training.recipe.BUDGET_DECAYS", {6: 0.125, 600: 0.25})
    small = {"batch_size": 4, "config.image_size": [16, 16], "config.resize_shortest": 18}
    short = settings.but(recipe="kdep-supervised", set=small, model="res18-x0.25", per_class=2, epochs=1)
    results = classify(short.but(out=tmp_path / "few")).to_dict()
    assert (results["training"]["images"], results["training"]["per_class"]) == (6, 2)
    assert results["training"]["weight_decay"] == 0.125
    given = short.but(out=tmp_path / "given", set={**small, "weight_decay": 0.0})
    assert classify(given).training.weight_decay == 0
    with pytest.raises(ValueError, match="in place of keep"):
        short.but(keep=0.5)


def test_what_cannot_be_trained_is_refused(settings, tmp_path, people):
    tiny = settings.but(out=tmp_path / "out")
    for changes, reason in (
        ({"data": people[1], "data_dir": str(people[3])}, "train and test"),
        ({"recipe": "demo", "set": {}}, "recipe of the method 'classification'"),
        ({"recipe": "nothing"}, "unknown recipe"),
        ({"keep": 0.0}, r"share of each class must be in \(0, 1\]"),
    ):
        with pytest.raises(ValueError, match=reason):
            classify(tiny.but(**changes))
    for field, value in (("validation", 0.1), ("keep_ids", 0.5), ("flip", True), ("evaluate_every", 0)):
        with pytest.raises(ValueError, match=field):
            tiny.but(**{field: value})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["x", "y"])})
    rows = {"image": [np.zeros((4, 4, 3), np.uint8)] * 3, "label": [0, 1, -1]}
    splits = dict.fromkeys(("train", "test"), datasets.Dataset.from_dict(rows, features=features))
    with pytest.raises(ValueError, match="1 images of train have a label below 0"):
        classify(tiny, splits=splits)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_killed_and_resumed_gives_the_same_bits_and_the_same_best(made, images, tmp_path):
    settings, results, _ = made
    words = [
        "classify", "--data", "cifar10", "--data-dir", images, "--dataset-name", "colours", "--model", settings.model,
        "--epochs", 3, "--set", "batch_size=8", "--set", "learning_rate=0.02", "--arg", "use_cpu=true",
        "--out", tmp_path, "--resume",
    ]  # fmt: skip
    command = [sys.executable, "-m", "reid_hub.cli", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (tmp_path / "checkpoint-6").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "results.json").exists()
    finished = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-4000:]
    first, second = (load_file(Path(out) / "model.safetensors") for out in (settings.output.out, tmp_path))
    for name in first:
        assert torch.equal(first[name], second[name]), name
    assert json.loads((tmp_path / "results.json").read_text())["metrics"] == results["metrics"]


def test_shapes_are_drawn_the_same_and_differ():
    small = {"train_per_class": 2, "test_per_class": 1}
    first = load_reid_dataset("shapes", **small)
    more = load_reid_dataset("shapes", train_per_class=3, test_per_class=1)
    assert first["train"].features["label"].names == ["circle", "cross", "half", "square", "star", "triangle"]
    drawn = [np.asarray(row["image"]) for split in first.values() for row in split]
    assert len({image.tobytes() for image in drawn}) == 18
    assert np.array_equal(np.asarray(more["train"][4]["image"]), np.asarray(first["train"][3]["image"]))
    with pytest.raises(ValueError, match="'shapes' is generated and takes no data_dir"):
        load_reid_dataset("shapes", "folder")
