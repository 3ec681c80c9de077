"""KDEP as runs and as a command: basis, pre-training and fine-tuning, resuming, and settings that do not fit."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel
from typer.testing import CliRunner

from reid_hub import ReIDConfig, ReIDModel
from reid_hub.cli import app
from reid_hub.methods.kdep import Basis, power_temperature_scale
from reid_hub.records import RunRecord
from reid_hub.runs import teachers
from reid_hub.runs.classify import ClassifySettings, classify
from reid_hub.runs.kdep import PretrainSettings, make_basis, pretrain
from reid_hub.runs.models import open_model
from reid_hub.runs.settings import TrainSettings
from reid_hub.runs.train import train

CHANGES = {"batch_size": 8}


def network(folder, *channels) -> str:
    torch.manual_seed(0)
    backbone = {"model_type": "resnet", "embedding_size": 4, "hidden_sizes": list(channels), "layer_type": "basic"}
    backbone["depths"] = [1] * len(channels)
    ReIDModel(ReIDConfig(backbone_config=backbone, image_size=(32, 16))).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return network(tmp_path_factory.mktemp("student"), 6, 8)


@pytest.fixture(scope="module")
def settings(people, teacher, student):
    return PretrainSettings.of(
        data="market_layout", data_dir=str(people[3]), dataset_name="coloured", model=student, teacher=str(teacher),
        epochs=3, set=CHANGES, arg={"use_cpu": True, "disable_tqdm": True},
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(settings, tmp_path_factory):
    settings = settings.but(out=tmp_path_factory.mktemp("kdep"))
    pretrain(settings)
    return settings


@pytest.fixture(scope="module")
def words(people, teacher, student):
    return [
        "pretrain", *people, "--teacher", teacher, "--model", student, "--set", "batch_size=8", "--epochs", "1",
        "--arg", "use_cpu=true",
    ]  # fmt: skip


def elsewhere(folder, copy):
    """The same number of other images."""
    shutil.copytree(folder, copy)
    for path in (copy / "bounding_box_train").iterdir():
        path.rename(path.with_name(path.name.replace("s1_", "s2_")))
    return copy


def results_of(folder):
    return json.loads((Path(folder) / "results.json").read_text())


def test_the_student_is_a_plain_model_with_its_results(made, student):
    out, results = Path(made.output.out), results_of(made.output.out)
    training = results["training"]
    assert training["method"] == "kdep"
    assert (training["images"], training["skipped"], training["align"]) == (32, 0, "svd+pts")
    assert training["teacher_fingerprint"] == open_model(made.features.teacher).fingerprint()
    assert training["basis_features"] == 32
    assert "identities" not in training
    assert results["metrics"]["mAP"] > 0  # the data set has a query and a gallery
    before, after = open_model(student).state_dict(), AutoModel.from_pretrained(out).state_dict()
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.startswith("backbone.") for name in moved)
    assert "he2022kdep" in (out / "README.md").read_text()
    assert {path.name for path in (out / "training").glob("[!.]*")} == {"basis.safetensors", "run.json"}


def test_a_new_pair_has_targets_of_size_1_and_the_loss_of_a_classification(made):
    """Over the first crops, computed here from the basis and the stored features; a weight that is given is w alone."""
    out = Path(made.output.out)
    stored = made.but(out=out / "stored", crops=1, basis=str(out / "training" / "basis.safetensors"))
    pretrain(stored)
    (file,) = (out / "stored" / "features" / "round-0").glob("*.safetensors")
    x, basis = load_file(file)["representations"].double(), Basis.load(stored.features.basis)
    assert torch.allclose(x.mean(0), basis.mean, atol=1e-5)  # the basis is of the same crops
    target = power_temperature_scale((x - basis.mean) @ basis.vectors[:, :8])
    training = results_of(out / "stored")["training"]
    assert training["weight"] == pytest.approx(np.log(1000))
    assert training["scale"] ** 2 * float((target**2).mean()) == pytest.approx(1, rel=1e-3)
    assert training["scale"] == pytest.approx(results_of(out)["training"]["scale"], rel=1e-3)
    pretrain(stored.but(out=out / "given", weight="sp-res50/res18"))
    training = results_of(out / "given")["training"]
    assert (training["weight"], training["scale"]) == (20, 1)
    shared = stored.but(cache=str(out / "stored" / "features"), epochs=1)
    before = file.stat().st_mtime_ns
    for align in ("cs.var", "post-relu"):
        pretrain(shared.but(out=out / align, align=align))
    assert file.stat().st_mtime_ns == before
    (behind,) = (out / "stored" / "features" / "post-relu" / "round-0").glob("*.safetensors")
    assert (load_file(behind)["representations"] >= 0).all()


def test_resuming_repeats_nothing_and_refuses_other_settings(made, teacher, student, tmp_path):
    out = Path(made.output.out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert pretrain(made.but(resume=True)).to_dict() == results_of(out)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path in before} == before
    for other, said in (
        ({"teacher": network(tmp_path, 8, 16)}, "teacher"),
        ({"share": 0.9}, "images was 32 and is 29"),
        ({"align": "svd"}, r"align was 'svd\+pts' and is 'svd'"),
        ({"weight": 3.0}, "asked_weight was None and is 3.0"),
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"model": network(tmp_path / "narrow", 4, 6)}, "model was .* and is 'narrow'"),
        ({"init": student}, "init was None and is"),
        ({"data_dir": str(elsewhere(made.data.data_dir, tmp_path / "copy"))}, "pictures was .* and is"),
    ):
        with pytest.raises(ValueError, match=said):
            pretrain(made.but(resume=True, **other))
    with pytest.raises(ValueError, match="holds the checkpoints of an earlier run"):
        pretrain(made)


def cut(folder, checkpoint):
    """A run as it is when killed: without results, its last checkpoint the given one."""
    (folder / "results.json").unlink()
    replace(RunRecord.read(folder), done=False).write(folder)
    for path in folder.glob("checkpoint-*"):
        if path.name != checkpoint:
            shutil.rmtree(path)


def test_an_interrupted_run_resumes_only_with_the_same_basis(made, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(made.output.out, out)
    own = Basis.load(out / "training" / "basis.safetensors")
    other = Basis(own.vectors.flip(1), own.mean, own.singular_values, own.count, own.about)
    other.save(tmp_path / "other.safetensors")
    again = made.but(out=out, resume=True)
    with pytest.raises(ValueError, match="basis was"):
        pretrain(again.but(basis=str(tmp_path / "other.safetensors")))
    steps = sorted(int(path.name[11:]) for path in out.glob("checkpoint-*"))
    cut(out, f"checkpoint-{steps[0]}")
    with pytest.raises(ValueError, match="basis was"):
        pretrain(again.but(basis=str(tmp_path / "other.safetensors")))
    assert pretrain(again).metrics.to_dict() == results_of(made.output.out)["metrics"]
    weights = [load_file(Path(folder) / "model.safetensors") for folder in (out, made.output.out)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def test_a_basis_made_alone_serves_several_students(settings, tmp_path):
    file = tmp_path / "basis.safetensors"
    assert make_basis(settings.but(out=tmp_path / "any", basis=str(file))) == file
    written = file.stat().st_mtime_ns
    for align in ("sm", "overhaul"):
        results = pretrain(settings.but(out=tmp_path / align, basis=str(file), align=align, epochs=1)).to_dict()
        assert results["training"]["align"] == align
    assert file.stat().st_mtime_ns == written
    results = pretrain(settings.but(out=tmp_path / "interp", align="interp", epochs=1)).to_dict()
    assert results["training"]["basis_features"] is None
    assert not (tmp_path / "interp" / "training" / "basis.safetensors").exists()


def test_impossible_settings_are_refused_before_any_image_is_opened(settings, tmp_path):
    here = settings.but(out=tmp_path / "out", data_dir=str(tmp_path / "no such folder"))
    other = network(tmp_path / "other", 8, 16)
    made = settings.but(teacher=other, out=tmp_path / "any", basis=str(tmp_path / "other.safetensors"))
    make_basis(made)
    for wrong, said in (
        ({"teacher": "nosuch"}, "a teacher is a trained model"),
        ({"align": "nosuch"}, "unknown alignment 'nosuch'"),
        ({"model": network(tmp_path / "wide", 8, 20)}, "student's feature has 20 channels"),
        ({"basis": made.features.basis}, "is the basis of another teacher"),
    ):
        with pytest.raises(ValueError, match=said):
            pretrain(here.but(**wrong))
    with pytest.raises(FileNotFoundError, match="no such folder"):
        pretrain(here)
    for wrong, said in (
        ({"tap": "nosuch"}, "unknown tap 'nosuch'"),
        ({"epochs": -1}, "epochs must be above 0 and finite, got -1"),
        ({"epochs": 0}, "epochs must be above 0 and finite, got 0"),
        ({"epochs": float("inf")}, "epochs must be above 0 and finite, got inf"),
        ({"basis": str(tmp_path)}, "the basis is one file, got the folder"),
        ({"basis": "."}, "the basis is one file, got the folder"),
    ):
        with pytest.raises(ValueError, match=said):
            here.but(**wrong)


def test_a_start_that_fails_leaves_the_folder_to_another(settings, tmp_path):
    here = settings.but(out=tmp_path / "out", resume=True, epochs=1)
    with pytest.raises(ValueError, match="32 images make no batch of 512"):
        pretrain(here.but(align="sn", set={"batch_size": 512}))
    assert not (tmp_path / "out").exists()
    make_basis(here.but(share=0.9))
    with pytest.raises(ValueError, match="was made of other images"):
        pretrain(here.but(align="svd"))
    (tmp_path / "out" / "training" / "basis.safetensors").unlink()
    assert pretrain(here.but(align="svd")).training.extra["align"] == "svd"


def test_weight_decay_follows_the_images_shown_unless_it_is_given(settings, monkeypatch, tmp_path):
    monkeypatch.setattr("reid_hub.training.recipe.BUDGET_DECAYS", {32: 0.125, 320: 0.25})
    short = settings.but(align="interp", resume=True)
    for epochs, changes, expected in ((1, {}, 0.125), (20, {}, 0.25), (1, {"weight_decay": 0.5}, 0.5)):
        steps = {**settings.recipe.arg, "max_steps": 1}
        made = short.but(out=tmp_path / f"{expected}", epochs=epochs, arg=steps)
        results = pretrain(made.but(set={**CHANGES, **changes})).to_dict()
        assert results["training"]["weight_decay"] == expected


def test_random_channels_are_those_of_the_seed(settings, monkeypatch, tmp_path):
    drawn = []

    def record(method, *_, **options):
        drawn.append(method.alignment.indices.tolist())
        raise KeyboardInterrupt

    monkeypatch.setattr("reid_hub.runs.train.ReIDTrainer", record)
    for seed in (0, 1):
        with pytest.raises(KeyboardInterrupt):
            pretrain(settings.but(out=tmp_path / "out", align="cs.rand", seed=seed))
        generator = torch.Generator().manual_seed(seed)
        assert drawn[-1] == sorted(torch.randperm(16, generator=generator)[:8].tolist())
    assert drawn[0] != drawn[1]


def test_a_mobilenet_has_its_published_rate(settings):
    kdep = settings.but(recipe="kdep", model="mobilenetv2", set={})
    assert kdep.pretraining_recipe().learning_rate == 0.1
    assert kdep.but(set={"learning_rate": 0.2}).pretraining_recipe().learning_rate == 0.2
    assert kdep.but(model="res18", set={}).pretraining_recipe().learning_rate == 0.3


def test_a_batch_size_for_the_machine_reaches_the_small_teacher(monkeypatch, tmp_path):
    stages = []
    monkeypatch.setattr(teachers.Train, "done", lambda stage: stages.append(stage) is None)
    settings = PretrainSettings.of(
        out=tmp_path, model="res18", recipe="kdep", init="f.pth", push="alice/m", seed=3, epochs=9,
        arg=["per_device_train_batch_size=8", "use_cpu=true"],
    )  # fmt: skip
    assert settings.with_teacher().features.teacher == str(tmp_path / "teacher")
    made = stages[0].settings
    assert (made.recipe.resolved.batch_size, made.recipe.resolved.config["embedding_dim"]) == (8, 256)
    assert (made.recipe.recipe, made.epochs, made.recipe.seed) == ("demo", 3, 3)
    assert dict(made.recipe.arg) == {"use_cpu": True}
    assert (made.model.model, made.model.init, made.output.push) == ("res18-x0.25", None, None)


def test_a_power_that_is_no_whole_number(settings):
    recipe = settings.but(set={**CHANGES, "options.power": 2.5}).pretraining_recipe()
    assert recipe.options["power"] == 2.5


def test_a_pretrained_folder_is_fine_tuned_with_few_labels(made, tmp_path):
    tuned = TrainSettings.of(
        out=tmp_path, data=made.data.data, data_dir=made.data.data_dir, model=str(made.output.out),
        validation=0, keep_ids=0.5, epochs=1, set={"batch_size": 4, "num_instances": 2},
        arg={"use_cpu": True, "disable_tqdm": True},
    )  # fmt: skip
    results = train(tuned).to_dict()
    assert results["training"]["identities"] == 4
    assert results["training"]["init"] == Path(made.output.out).name
    first, second = open_model(tmp_path).config.lineage
    taught = {"teachers": [Path(made.features.teacher).name], "teachers_saw": ["coloured"]}
    assert first == {
        "method": "kdep",
        "recipe": "kdep-demo",
        "epochs": 3,
        "dataset": "coloured",
        "init": "student0",
        **taught,
    }
    assert (second["method"], second["dataset"], second["epochs"]) == ("supervised", "market_layout", 1)
    card = (tmp_path / "README.md").read_text()
    assert "he2022kdep" in card
    assert "teachers saw coloured\n2. method supervised, recipe demo" in card


def test_classes_pretrain_and_then_train_a_classifier(settings, tmp_path):
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for label, colour in (("dark", 60), ("light", 180)):
            (tmp_path / "classes" / split / label).mkdir(parents=True)
            for number in range(14):
                pixels = (colour + rng.integers(-30, 31, (32, 16, 3))).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / "classes" / split / label / f"{number}.png")
    data = {"data": "class_folder", "data_dir": str(tmp_path / "classes"), "dataset_name": None}
    results = pretrain(settings.but(out=tmp_path / "first", per_class=12, **data)).to_dict()
    assert (results["training"]["images"], results["task"]) == (24, "pretraining")
    tuned = ClassifySettings.of(
        out=tmp_path / "tuned", model=str(tmp_path / "first"), epochs=4, set={"batch_size": 4, "augmentation.pad": 0},
        arg={"use_cpu": True, "disable_tqdm": True}, **data,
    )  # fmt: skip
    assert classify(tuned).metrics.top1 > 0.9
    # Their paths are numbers, so it is by their content that others are told.
    for path in (tmp_path / "classes" / "train" / "dark").iterdir():
        Image.new("RGB", (16, 32), (10, 10, 10)).save(path)
    with pytest.raises(ValueError, match=r"pictures was .* and is"):
        pretrain(settings.but(out=tmp_path / "first", per_class=12, resume=True, **data))
    pretrained, classifier = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "tuned"))
    behind = {"classifier.weight", "classifier.bias"}  # a new layer, and no neck
    assert {f"reid.{name}" for name in pretrained if not name.startswith("neck.")} == classifier.keys() - behind


def test_a_data_set_without_a_training_split_is_evaluated(settings, people, tmp_path):
    shutil.copytree(people[3], tmp_path / "market", ignore=shutil.ignore_patterns("bounding_box_train"))
    test = {"data_dir": str(tmp_path / "market"), "split": "gallery", "epochs": 1, "align": "pre-relu"}
    results = pretrain(settings.but(out=tmp_path / "out", **test)).to_dict()
    assert 0 < results["metrics"]["mAP"] <= 1


def test_a_folder_with_broken_images_is_trained_on(settings, tmp_path):
    """Without query and gallery there is no evaluation; the run is recorded all the same."""
    folder, rng = tmp_path / "pictures", np.random.default_rng(0)
    folder.mkdir()
    for number in range(30):
        Image.fromarray(rng.integers(0, 256, (32, 16, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    (folder / "3.png").write_bytes(b"")
    (folder / "7.png").write_bytes((folder / "7.png").read_bytes()[:50])
    unlabelled = settings.but(out=tmp_path / "out", data="pictures", data_dir=str(folder), dataset_name=None)
    with pytest.warns(UserWarning, match="2 of 30 images cannot be read"):
        results = pretrain(unlabelled).to_dict()
    assert (results["training"]["images"], results["training"]["skipped"]) == (28, 2)
    assert results["task"] == "pretraining"
    assert results["metrics"] == {}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "has not been evaluated" in card
    assert "kdep" in card
    assert results_of(tmp_path / "out") == results
    with pytest.raises(ValueError, match="give a teacher"):
        pretrain(unlabelled.but(out=tmp_path / "none", teacher=None))


def test_the_command_does_the_same(words, made, tmp_path):
    for command in (words, [words[0], "basis", *words[1:], "--basis", tmp_path / "alone.safetensors"]):
        ran = CliRunner().invoke(app, [*map(str, command), "--out", str(tmp_path / "out")])
        assert ran.exit_code == 0, ran.output
    assert results_of(tmp_path / "out")["training"]["epochs"] == 1
    alone, beside = (
        load_file(path) for path in (tmp_path / "alone.safetensors", tmp_path / "out/training/basis.safetensors")
    )
    assert torch.equal(alone["V"], beside["V"])


def test_wrong_input_is_reported_in_one_line(words, complaint, tmp_path, teacher):
    out = ["--out", tmp_path / "out"]
    wide = network(tmp_path / "wide", 8, 20)
    for options, said in (
        (["--model", wide], "student's feature has 20 channels, the teacher's only 16"),
        (
            ["--share", "0.4"],
            "basis of 16 dimensions needs more features than that, much more to be a good one; got 13",
        ),
        (["--recipe", "demo"], "pre-training needs a recipe of the method 'kdep'"),
        (["--align", "svd-pts"], "did you mean 'svd"),
        (["--weight", "res50/res18"], "unknown pair 'res50/res18'"),
        (["--weight", "0"], "the weight of the loss must be above 0 and finite, got 0.0"),
        (["--teacher", "res18"], "a teacher is a trained model"),
        (["--tap", "logits"], "unknown tap 'logits'"),
        (["--seed", "3", "--arg", "seed=7"], "seed is 3 and the argument seed is 7"),
        (["--crops", "-1"], "crops must be at least 0, got -1"),
        (["--share", "2"], "must be in (0, 1], got 2"),
        (["--streaming"], "give a limit"),
    ):
        assert said in complaint([*words, *out, *options]), options
    assert not (tmp_path / "out").exists()
    other = network(tmp_path / "other", 8, 16)
    CliRunner().invoke(app, list(map(str, [*words, "--out", tmp_path / "others", "--teacher", other])))
    file = tmp_path / "others" / "training" / "basis.safetensors"
    assert "is the basis of another teacher" in complaint([*words, "--out", tmp_path / "new", "--basis", file])
    # a teacher with channels that are always the same
    flat = open_model(teacher)
    last = flat.backbone.model.encoder.stages[1].layers[0]
    for conv in (last.layer[1], last.shortcut):
        torch.nn.init.zeros_(conv.normalization.weight[:3].data)
    flat.save_pretrained(tmp_path / "flat")
    constant = ["--teacher", tmp_path / "flat", "--model", network(tmp_path / "same", 8, 16), "--align", "sn"]
    assert "3 of the first 16 components of this teacher's features are constant" in complaint(
        [*words, "--out", tmp_path / "constant", *constant]
    )
    assert "--data, --tap must stand behind 'basis'" in complaint(
        ["pretrain", "--data", "pictures", "--tap", "map", "basis"]
    )
    with pytest.raises(ValueError, match="unknown option 'keep_ids'"):
        PretrainSettings.of(keep_ids=0.1)
