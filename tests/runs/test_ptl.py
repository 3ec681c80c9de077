"""PTL as runs and as commands: its arms, distillation with several weights, and transfer over several data sets."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from reid_hub import ReIDConfig, ReIDForImageClassification, ReIDModel, load_reid_dataset
from reid_hub.cli import app
from reid_hub.data.images import ImageDataset
from reid_hub.methods.state import known_identities, read_state
from reid_hub.runs.models import open_model
from reid_hub.runs.ptl import (
    STDSettings,
    TransferSettings,
    classification_arm,
    distill,
    side_network,
    transfer,
    with_changes,
)
from reid_hub.runs.settings import TrainSettings
from reid_hub.runs.surface import draw_surfaces, training_loss
from reid_hub.runs.train import train
from reid_hub.training import RECIPES, override

BACKBONE = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 16],
    "depths": [1, 1],
    "layer_type": "basic",
}
HEAD = {"head": "linear", "head_bias": True, "head_norm": False, "embedding_dim": 6, "neck": "none"}
CHANGES = {"batch_size": 8, "options.hidden": [8]}


def saved(folder, side=None, seed=0, **changes) -> str:
    torch.manual_seed(seed)
    ReIDModel(
        ReIDConfig(backbone_config=BACKBONE, image_size=(32, 16), side=side, **{**HEAD, **changes})
    ).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def settings(people, plain):
    return STDSettings.of(
        data="market_layout", data_dir=str(people[3]), dataset_name="coloured", model=plain, validation=0, epochs=2,
        set=CHANGES, arg={"use_cpu": True, "disable_tqdm": True},
    )  # fmt: skip


@pytest.fixture(scope="module")
def teacher(settings, tmp_path_factory):
    """A network with a memory, trained by PTL."""
    out = tmp_path_factory.mktemp("ptl")
    shared = ("data", "data_dir", "dataset_name", "validation", "epochs", "set", "arg")
    fields = {name: settings.values()[name] for name in shared}
    start = saved(tmp_path_factory.mktemp("start"), side={"cell": "v1"})
    train(TrainSettings.of(out=out, model=start, recipe="ptl-demo", **fields))
    return str(out)


@pytest.fixture(scope="module")
def made(settings, teacher, tmp_path_factory):
    settings = settings.but(out=tmp_path_factory.mktemp("std"), teacher=teacher, lam=(0.0, 0.8))
    return settings, distill(settings)


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}


def built(arm: dict, classes: int | None = None):
    """The model of an arm, without memory for its weights."""
    recipe = override(RECIPES["ptl"], arm["set"])
    with torch.device("meta"):
        config = ReIDConfig.from_variant(arm["model"], **recipe.config, **({"num_labels": classes} if classes else {}))
        return ReIDForImageClassification(config) if classes else ReIDModel(config)


def count(model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_documented_numbers_of_parameters_are_those_of_the_arms():
    page = (Path(__file__).parents[2] / "docs" / "ptl.md").read_text()
    rows = re.findall(r"^\| `(\S+)` \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$", page, re.MULTILINE)
    assert len(rows) == 5
    for backbone, *numbers in rows:
        general = backbone.startswith("densenet-bc")
        for cell, number in zip(("none", "v1", "v2"), numbers, strict=True):
            arm = classification_arm(backbone, cell, augment=True) if general else side_network(backbone, cell)
            assert count(built(arm, classes=10 if general else None)) == int(number.replace(",", "")), (backbone, cell)


@pytest.mark.parametrize("backbone", ["res50", "densenet161", "mgn", "res18-x0.25"])
def test_the_arms_differ_only_in_what_they_compare(backbone):
    """Memory on and forgotten: the same weights; plain: as many; none: no side network, and features as long."""
    arms = {name: built(side_network(backbone, *how)) for name, how in {
        "memory": ("v1",), "forgets": ("v1", False), "v2": ("v2",), "plain": ("plain",), "none": ("none",),
    }.items()}  # fmt: skip
    assert arms["none"].side is None
    assert len({arms[name].feature_dim for name in arms}) == 1
    assert count(arms["memory"]) == count(arms["forgets"]) == count(arms["plain"]) < count(arms["v2"])
    assert arms["memory"].config.side["memory"]
    assert not arms["forgets"].config.side["memory"]
    assert arms["v2"].config.side["cell"] == "v2"


def test_the_arms_for_general_images():
    """The paper's 0.8 million without cells; two linear layers with them; dropout where nothing is augmented."""
    none = built(classification_arm("densenet-bc-100", "none", augment=True), classes=10)
    assert count(none) == 769_162
    arm = classification_arm("densenet-bc-100", "v2")
    model = built(arm, classes=10)
    assert [tuple(layer.weight.shape) for layer in model.classifier if hasattr(layer, "weight")] == [
        (342, 342), (10, 342),
    ]  # fmt: skip
    assert model.config.backbone_config.dropout == 0.2
    recipe = override(RECIPES["cifar"], arm["set"])
    assert (recipe.augmentation.flip, recipe.augmentation.pad) == (0.0, 0)
    augmented = classification_arm("densenet-bc-100", "v2", augment=True)
    assert built(augmented, classes=10).config.backbone_config.dropout == 0
    changed = with_changes(arm, {"config.backbone_config": {"blocks": [2, 2, 2]}, "config.side": {"memory": False}})
    backbone = built(changed, classes=10).config.backbone_config
    assert (backbone.blocks, backbone.dropout, backbone.growth) == ([2, 2, 2], 0.2, 12)
    assert changed["set"]["config.side"] == {"cell": "v2", "memory": False}
    assert override(RECIPES["cifar"], augmented["set"]).augmentation == RECIPES["cifar"].augmentation


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("res51",), "did you mean 'res50'"),
        (("res50", "v3"), "unknown cell 'v3'"),
        (("vit-s",), "backbone with a side"),
    ],
)
def test_unknown_arms_are_named(words, message):
    with pytest.raises(ValueError, match=message):
        side_network(*words)


def test_a_student_for_every_weight_and_a_table_of_them(made, plain):
    settings, results = made
    out = Path(settings.output.out)
    assert list(results) == [out / "lam-0", out / "lam-0.8"]
    lines = (out / "table.md").read_text().splitlines()
    for line, (folder, result) in zip(lines[2:], results.items(), strict=True):
        measured = json.loads((folder / "results.json").read_text())
        assert measured == result.to_dict()
        numbers = [f"{100 * getattr(result.metrics, name):.2f}" for name in ("mAP", "rank1")]
        assert [cell.strip() for cell in line.strip("|").split("|")] == [folder.name[4:], "coloured", *numbers]
        assert load_file(folder / "model.safetensors").keys() == load_file(Path(plain) / "model.safetensors").keys()
        checkpoint = load_file(next(folder.glob("checkpoint-*")) / "model.safetensors")
        assert not any("side" in name or "teacher" in name for name in checkpoint)
    assert results[out / "lam-0.8"].training.method == "std-0.8"
    assert results[out / "lam-0"].training.extra["teacher"] is None
    assert results[out / "lam-0.8"].training.extra["teacher"] == open_model(settings.std.teacher).fingerprint()


def test_weight_0_is_the_baseline_to_the_last_bit(made, settings, tmp_path):
    shared = ("data", "data_dir", "model", "validation", "epochs", "set", "arg")
    fields = {name: settings.values()[name] for name in shared}
    train(TrainSettings.of(out=tmp_path, recipe="ptl-demo", **fields))
    first, second = (load_file(Path(folder) / "model.safetensors")
                     for folder in (tmp_path, Path(made[0].output.out) / "lam-0"))  # fmt: skip
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_distilling_brings_the_features_nearer_to_the_teachers(made, teacher):
    settings, results = made
    split = load_reid_dataset("market_layout", settings.data.data_dir)["train"]
    images = [row["image"] for row in split]
    taught = open_model(teacher).encode(images, flip=False)
    gaps = [abs(open_model(folder).encode(images, flip=False) - taught).mean() for folder in results]
    assert gaps[1] < 0.95 * gaps[0]  # after eight steps


def test_resuming_repeats_nothing_and_refuses_other_settings(made, plain, tmp_path):
    settings, results = made
    before = times(Path(settings.output.out))
    assert distill(settings.but(resume=True)) == results
    assert times(Path(settings.output.out)) == before
    with pytest.raises(ValueError, match="teacher was"):
        distill(settings.but(resume=True, teacher=plain))
    with pytest.raises(ValueError, match="seed was 0 and is 1"):
        distill(settings.but(resume=True, seed=1))
    other = saved(tmp_path / "other")
    for change, said in (
        ({"model": other}, "model was .* and is 'other'"),
        ({"dataset_name": "others"}, "dataset was 'coloured' and is 'others'"),
        ({"keep_ids": 0.5}, "keep_ids was 1.0 and is 0.5"),
        ({"validation": 0.5}, "validation was 0 and is 0.5"),
    ):
        with pytest.raises(ValueError, match=said):
            distill(settings.but(resume=True, **change))


def test_an_interrupted_run_resumes_only_with_the_same_teacher_and_student(made, plain, tmp_path):
    settings, _ = made
    out = tmp_path / "std"
    shutil.copytree(Path(settings.output.out), out)
    (out / "lam-0.8" / "results.json").unlink()
    for path in sorted((out / "lam-0.8").glob("checkpoint-*"), key=lambda path: int(path.name[11:]))[1:]:
        shutil.rmtree(path)
    settings = settings.but(out=out, lam=(0.8,), resume=True)
    before = times(out)
    for change, word in (
        ({"teacher": plain}, "teacher was"),
        ({"model": saved(tmp_path / "student")}, "model was"),
        ({"model": saved(tmp_path / Path(plain).name, seed=1)}, "start_weights was"),
    ):
        with pytest.raises(ValueError, match=word):
            distill(settings.but(**change))
    assert times(out) == before
    resumed = distill(settings)
    assert resumed[out / "lam-0.8"].metrics == made[1][Path(made[0].output.out) / "lam-0.8"].metrics


def test_impossible_distillations_are_refused_before_any_training(settings, teacher, tmp_path):
    other = saved(tmp_path / "other", embedding_dim=7)
    grey = saved(tmp_path / "grey", image_mean=(0.5, 0.5, 0.5))
    base = settings.but(out=tmp_path / "out", teacher=teacher)
    for changes, reason in (
        ({"lam": (0.0, 1.5)}, r"lam must be from 0 .* to 1"),
        ({"lam": (0.5, 0.5)}, "different weights"),
        ({"lam": ()}, "at least one"),
        ({"set": {"options.lam": 0.3}}, "set by them alone; got .* and 0.3"),
        ({"teacher": None}, "give a teacher, or lam=0"),
        ({"teacher": other}, "features have 7 numbers, the student's 6"),
        ({"teacher": grey}, "image_mean is"),
        ({"teacher": str(tmp_path / "nothing/at/all")}, "no checkpoint folder"),
        ({"recipe": "ptl-demo"}, "recipe of the method 'std'"),
        ({"image_size": (48, 16)}, "image_size is"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=reason):
            distill(base.but(**changes))
    assert not (tmp_path / "out").exists()


def test_the_commands_report_wrong_input(complaint, teacher, people, short, plain):
    assert "`teacher` is required when lam > 0" in complaint(
        ["train", *people, "--recipe", "std-demo", "--model", plain, "--validation", 0]
    )
    tokens = ["--set", 'config.side={"cell": "v1"}', "--set", "config.pooling=avg", "--set", "config.neck=none"]
    assert "needs a backbone with stages" in complaint(["train", *people, *short, "--model", "vit-s", *tokens])
    assert "1.5" in complaint(["distill", "std", "--teacher", teacher, *people, "--model", plain, "--lam", 1.5])


def test_the_command_distills(teacher, people, plain, tmp_path):
    words = [
        "distill", "std", "--teacher", teacher, *people, "--model", plain, "--lam", 1, "--epochs", 1, "--validation", 0,
        "--set", "batch_size=8", "--set", "options.hidden=[8]", "--arg", "use_cpu=true", "--out", tmp_path,
    ]  # fmt: skip
    result = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    assert f"model: {tmp_path / 'lam-1'}" in result.stdout
    assert f"table: {tmp_path / 'table.md'}" in result.stdout


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Six more people in another folder, in the same layout."""
    root, rng = tmp_path_factory.mktemp("others"), np.random.default_rng(1)
    for pid in range(1, 9):
        colour = rng.integers(40, 216, 3)
        for camera in (1, 2):
            for number in (1, 2):
                test = "query" if camera == 1 and number == 1 else "bounding_box_test"
                folder = root / (test if pid > 6 else "bounding_box_train")
                folder.mkdir(exist_ok=True)
                pixels = np.clip(colour + rng.normal(0, 25, (32, 16, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{pid:04}_c{camera}s1_{number:06}_00.jpg", "PNG")
    return str(root)


@pytest.fixture(scope="module")
def journey(settings, people, others, tmp_path_factory):
    """First eight people in a layout of their own, then six others in Market-1501's."""
    start = saved(tmp_path_factory.mktemp("start"), side={"cell": "v1"})
    settings = TransferSettings.of(
        out=tmp_path_factory.mktemp("transfer"), model=start, validation=0, epochs=2, set=CHANGES,
        order=["market_layout", "market"], data_dirs={"market_layout": str(people[3]), "market": others},
        arg={"use_cpu": True, "disable_tqdm": True},
    )  # fmt: skip
    return settings, transfer(settings)


def test_every_step_continues_the_last_model_under_a_new_classifier(journey):
    settings, results = journey
    out = Path(settings.output.out)
    assert list(results) == [out / "1-market_layout", out / "2-market"]
    heads = [read_state(folder) for folder in results]
    assert [len(head["classifier.weight"]) for head in heads] == [8, 6]
    assert [known_identities(folder) for folder in results] == [list(range(8)), list(range(6))]
    assert not torch.equal(heads[0]["hidden.0.weight"], heads[1]["hidden.0.weight"])
    for number, (folder, result) in enumerate(results.items(), start=1):
        assert json.loads((folder / "results.json").read_text()) == result.to_dict()
        assert result.dataset.name == settings.order[number - 1]
        assert result.training.extra["order"] == settings.order[:number]
    assert results[out / "2-market"].training.init == "1-market_layout"
    assert [line.split("|")[1].strip() for line in (out / "table.md").read_text().splitlines()[2:]] == [
        "1-market_layout", "2-market",
    ]  # fmt: skip


def test_a_step_without_any_learning_keeps_the_model_of_the_one_before(journey, tmp_path):
    settings, _ = journey
    shutil.copytree(Path(settings.output.out) / "1-market_layout", tmp_path / "1-market_layout")
    slow = settings.but(out=tmp_path, resume=True, set={**CHANGES, "learning_rate": 1e-12})
    with pytest.raises(ValueError, match="learning_rate was"):
        transfer(slow)
    train(slow.step(2).but(resume=False))
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("1-market_layout", "2-market"))
    for name in first:
        if "running" not in name and "tracked" not in name:
            torch.testing.assert_close(first[name], second[name])


def test_an_interrupted_transfer_resumes_where_it_stopped(journey, tmp_path):
    settings, results = journey
    shutil.copytree(Path(settings.output.out) / "1-market_layout", tmp_path / "1-market_layout")
    before = times(tmp_path)
    again = transfer(settings.but(out=tmp_path, resume=True))
    assert times(tmp_path).items() >= before.items()
    whole, cut = (load_file(Path(folder) / "2-market" / "model.safetensors")
                  for folder in (settings.output.out, tmp_path))  # fmt: skip
    for name in whole:
        assert torch.equal(whole[name], cut[name]), name
    assert [r.metrics for r in again.values()] == [r.metrics for r in results.values()]
    with pytest.raises(ValueError, match=r"start was 'start\d' and is 'res18"):
        transfer(settings.but(out=tmp_path, resume=True, model="res18-x0.25-conv"))


def test_a_wrong_order_is_refused_before_its_first_step(journey, people, tmp_path):
    base = journey[0].but(out=tmp_path / "out")
    for changes, reason in (
        ({"order": ["market_layout", "markt1501"]}, "did you mean 'market1501'"),
        ({"order": ["market_layout", "duke"]}, "needs|folder|data_dir"),
        ({"order": []}, "no data set"),
        ({"data_dirs": {"markte": "x"}}, "data set of this order"),
    ):
        data_dirs = {"market_layout": str(people[3])}
        with pytest.raises((ValueError, FileNotFoundError), match=reason):
            transfer(base.but(**{"data_dirs": data_dirs, **changes}))
    assert not (tmp_path / "out").exists()


def test_drawn_people_are_others_in_every_step():
    settings = TransferSettings.of(order=("synthetic", "synthetic"), data_options={"synthetic": {"num_train_ids": 12}})
    steps = [settings.step(number) for number in (1, 2)]
    assert [step.data.data_option for step in steps] == [{"seed": n, "num_train_ids": 12} for n in (1, 2)]
    assert [Path(step.output.out).name for step in steps] == ["1-synthetic", "2-synthetic"]
    together = TransferSettings.of(order=("duke", "market-duke"), data_dir="root").step(2)
    data = together.data
    assert (data.data, data.data_dir, data.dataset_name) == ("market_duke", "root", "market-duke")


def test_surfaces_are_of_the_classification_of_training_images(made, teacher, people, tmp_path):
    """The loss in the middle, by hand: evaluation mode, images without augmentation, the classifier of the training."""
    settings, results = made
    split = load_reid_dataset("market_layout", settings.data.data_dir)["train"]
    student = next(iter(results))
    for folder in (teacher, student):
        method, loss = training_loss(folder, split, count=32)
        model, heads = open_model(folder).eval(), read_state(folder)
        images = ImageDataset(split, (32, 16))
        batch = images.__getitems__(range(32))
        mean, std = (torch.tensor(getattr(model.config, f"image_{n}")).view(3, 1, 1) for n in ("mean", "std"))
        with torch.no_grad():
            x = model((batch["pixel_values"] / 255 - mean) / std).embeddings
        x = F.relu(F.linear(x, heads["hidden.0.weight"], heads["hidden.0.bias"]))
        logits = F.linear(x, heads["classifier.weight"], heads["classifier.bias"])
        by_hand = F.cross_entropy(logits, torch.tensor(split["pid"][:])).item()
        assert loss() == pytest.approx(by_hand, rel=1e-5)
        assert not method.training
    words = ["surface", teacher, student, "--data", "market_layout", "--data-dir", people[3], "--points", 3]
    words += ["--count", 8, "--out", tmp_path / "surface.png"]
    result = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    assert str(tmp_path / "surface.png") in result.stdout
    with Image.open(tmp_path / "surface.png") as image:
        assert len(image.convert("RGB").getcolors(1 << 20)) > 100
    with pytest.raises(ValueError, match="each training is drawn once"):
        draw_surfaces([teacher, student, teacher], split, tmp_path / "twice.png")
