"""Factorized Distillation as runs and as a command: the three steps, resuming, and stages that do not fit together."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel
from typer.testing import CliRunner

from reid_hub import ReIDConfig, ReIDModel, evaluate_model, load_reid_dataset
from reid_hub.cli import app
from reid_hub.data.views import View, choose_views, view_split
from reid_hub.methods.fd import attention_maps
from reid_hub.methods.state import known_identities, read_state
from reid_hub.runs import fd
from reid_hub.runs.fd import FDSettings, distill, train_student
from reid_hub.runs.models import open_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """Folder of a network with total stride 4, for small images."""
    folder = tmp_path_factory.mktemp("backbone")
    torch.manual_seed(0)
    network = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    config = {"pooling": "stabilised_max", "head": "linear", "embedding_dim": 6, "neck": "none", "image_size": (64, 32)}
    ReIDModel(ReIDConfig(backbone_config={**network, "layer_type": "basic"}, **config)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def settings(people, backbone):
    changes = {"batch_size": 8, "num_instances": 2}
    return FDSettings.of(
        data="market_layout", data_dir=str(people[3]), dataset_name="coloured", model=backbone, backbone=backbone,
        image_size=(64, 32), view_size=(48, 48), validation=0, epochs=2, teacher_epochs=2, set=changes,
        set_teacher=changes, view=["Hol", "Dn1"], arg={"use_cpu": True, "disable_tqdm": True},
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(settings, tmp_path_factory):
    """All three steps, done once."""
    settings = settings.but(out=tmp_path_factory.mktemp("fd"))
    distill(settings)
    return settings


def results_of(folder):
    return json.loads((Path(folder) / "results.json").read_text())


def files(folder: Path, pattern: str) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob(pattern)}


def test_a_batch_size_for_the_machine_reaches_initial_student_and_teachers():
    given = FDSettings.of(arg="per_device_train_batch_size=8", set_teacher="num_instances=2", push="alice/m")
    for stage in (given.earlier("initial"), given.earlier("teachers/Up1", part=True, set={"config.neck": "none"})):
        assert (stage.recipe.resolved.batch_size, stage.recipe.resolved.num_instances) == (8, 2)
        assert stage.output.push is None
    own = given.but(set_teacher={"batch_size": 32}).earlier("initial")
    assert own.recipe.resolved.batch_size == 32


def test_the_student_is_a_plain_model_with_its_results(made):
    out, splits = Path(made.output.out), load_reid_dataset("market_layout", made.data.data_dir)
    results = results_of(out / "student")
    assert results["training"]["method"] == "fd"
    assert results["training"]["views"] == ["Hol", "Dn1"]
    assert results["protocol"]["flip"] is True
    code = (
        f"import sys; from transformers import AutoModel; m = AutoModel.from_pretrained({str(out / 'student')!r}, "
        "trust_remote_code=True); print(sum(p.numel() for p in m.parameters()), 'reid_hub' in sys.modules)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=out, env=environment)
    initial = open_model(out / "initial")
    assert said.stdout.split() == [str(sum(p.numel() for p in initial.parameters())), "False"], said.stderr
    model = AutoModel.from_pretrained(out / "student").eval()
    assert evaluate_model(model, splits, flip=True).mAP == pytest.approx(results["metrics"]["mAP"])
    assert {"classifier.weight", "fmfb.Dn1.select.0.weight", "rfb.Hol.embed.fc.weight"} <= read_state(
        out / "student"
    ).keys()


def test_teachers_see_their_views_at_full_resolution(made):
    out, splits = Path(made.output.out), load_reid_dataset("market_layout", made.data.data_dir)
    for view in made.chosen:
        folder = out / "teachers" / view.name
        teacher = open_model(folder)
        assert tuple(teacher.config.image_size) == ((64, 32) if view.name == "Hol" else (48, 48))
        cut = {name: view_split(split, view) for name, split in splits.items()}
        assert evaluate_model(teacher, cut, flip=True).mAP == pytest.approx(results_of(folder)["metrics"]["mAP"])
        assert known_identities(folder) == known_identities(out / "student")
    assert cut["train"][0]["image"].size == (16, 8)  # a quarter of 32x16, not of what a network is shown


def test_resuming_repeats_nothing(made, capsys):
    out = Path(made.output.out)
    before = files(out, "*.safetensors")
    assert distill(made.but(resume=True)).to_dict() == results_of(out / "student")
    assert files(out, "*.safetensors") == before
    with pytest.raises(ValueError, match=r"views was \['Hol', 'Dn1'\] and is \['Hol'\]"):
        train_student(made.but(resume=True, initial=str(out / "initial"), view=["Hol"]))
    with pytest.raises(ValueError, match="seed was 0 and is 1"):
        distill(made.but(resume=True, seed=1))


def test_finished_stages_must_have_the_same_views_teachers_and_start(made, tmp_path):
    out = Path(made.output.out)
    again = made.but(resume=True, initial=str(out / "initial"))
    ready = {view.name: str(out / "teachers" / view.name) for view in made.chosen}
    legs = again.but(cut=(made.chosen[0], replace(made.chosen[1], rows=("1/2", 1))))
    with pytest.raises(ValueError, match=r"view.* was .*3/4.* and is .*1/2"):
        fd.train_teachers(legs)
    shutil.copytree(out / "teachers", tmp_path / "cut" / "teachers")
    (tmp_path / "cut" / "teachers" / "Dn1" / "results.json").unlink()  # as if killed behind its last checkpoint
    with pytest.raises(ValueError, match=r"view.* was .*3/4.* and is .*1/2"):
        fd.train_teachers(legs.but(out=tmp_path / "cut"))
    with pytest.raises(ValueError, match=r"init was None and is 'other.pth'"):
        distill(made.but(resume=True, init="other.pth"))
    shutil.copytree(ready["Dn1"], tmp_path / "initial")  # of the same name
    with pytest.raises(ValueError, match=r"initial was '\w+' and is '\w+'"):
        train_student(again.but(initial=str(tmp_path / "initial")))
    with pytest.raises(ValueError, match=r"teachers.Dn1 was '\w+' and is"):
        train_student(again.but(online=True, teacher={**ready, "Dn1": ready["Hol"]}))
    with pytest.raises(ValueError, match=r"Dn1.* belongs to another run: teacher was"):
        train_student(again.but(teacher={**ready, "Dn1": ready["Hol"]}))
    with pytest.raises(FileNotFoundError, match="no representations"):
        train_student(again.but(cache=str(tmp_path / "nothing")))


def test_online_teachers_teach_the_same(made, tmp_path):
    """Gradients of the first steps come from equal targets: the weights agree to rounding."""
    out = Path(made.output.out)
    ready = {view.name: str(out / "teachers" / view.name) for view in made.chosen}
    online = made.but(out=tmp_path, online=True, teacher=ready, initial=str(out / "initial"))
    distill(online)
    assert not (tmp_path / "cache").exists()
    first, second = (load_file(folder / "student" / "model.safetensors") for folder in (out, tmp_path))
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-3, atol=1e-4)


def test_the_control_of_equal_length_needs_no_teachers(made, tmp_path):
    initial = str(Path(made.output.out) / "initial")
    changes = {**made.recipe.set, "options.alpha": 0, "options.beta": 0}
    results = distill(made.but(out=tmp_path, initial=initial, set=changes)).to_dict()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["student"]
    assert results["training"]["method"] == "fd-control"
    assert results["training"]["epochs"] == 2


def test_it_starts_from_the_initial_student_with_its_classifier(made, tmp_path):
    initial = Path(made.output.out) / "initial"
    changes = {**made.recipe.set, "learning_rate": 1e-12}
    train_student(made.but(out=tmp_path, cache=str(made.cache_dir), initial=str(initial), set=changes))
    before, after = (load_file(folder / "model.safetensors") for folder in (initial, tmp_path / "student"))
    for name in before:
        if "running" not in name and "tracked" not in name:
            torch.testing.assert_close(after[name], before[name])
    classifier = [read_state(folder)["classifier.weight"] for folder in (initial, tmp_path / "student")]
    torch.testing.assert_close(*classifier)


def test_an_annotated_region_is_a_view_like_any_other(made, tmp_path):
    """Also if only the training images are annotated; its teacher is then not evaluated."""
    out, splits = Path(made.output.out), load_reid_dataset("market_layout", made.data.data_dir)
    boxes = dict.fromkeys(splits["train"]["path"], (0.25, 0.5, 0.75, 1.0))
    views = (made.chosen[0], View("bag", region=boxes.__getitem__, image_size=(48, 48), dim=4))
    ready = {"Hol": str(out / "teachers" / "Hol")}
    again = made.but(out=tmp_path, initial=str(out / "initial"), cut=views, teacher=ready, resume=True)
    results = distill(again).to_dict()
    assert results["training"]["views"] == ["Hol", "bag"]
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["Hol", "bag"]
    assert not (tmp_path / "teachers" / "bag" / "results.json").exists()
    before = files(tmp_path / "cache", "*"), open_model(tmp_path / "teachers" / "bag").fingerprint()
    assert distill(again).to_dict() == results
    assert (files(tmp_path / "cache", "*"), open_model(tmp_path / "teachers" / "bag").fingerprint()) == before
    others = dict.fromkeys(boxes, (0.0, 0.0, 0.5, 0.5))
    with pytest.raises(ValueError, match=r"teachers/bag belongs to another run: view.regions was"):
        distill(again.but(cut=(views[0], replace(views[1], region=others.__getitem__))))
    boxes.popitem()
    with pytest.raises(ValueError, match="view 'bag' has no region for image bounding_box_train/"):
        distill(again.but(out=tmp_path / "new", initial=None))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"view": ["up1"]}, "did you mean 'Up1'"),
        ({"view": ["Hol", "Legs=1/2:2"]}, "a band of your own is"),
        ({"view": ["Hol", "Hat=0:1/70"]}, "too small for view 'Hat'"),
        ({"model": "res18-x0.25", "set_teacher": {"config.resize_shortest": 64}}, "shown the middle alone"),
        # SqueezeNet's map of 7x3 is large enough for this window, so that what is wrong is the view.
        (
            {"model": "squeezenet", "image_size": (128, 64), "set_teacher": {"config.pooling_window": 3},
             "view": ["Hol", "Hat=0:1/70"]},
            "too small for view 'Hat'",
        ),
    ],
)  # fmt: skip
def test_impossible_distillations_are_refused_before_any_training(settings, tmp_path, changes, reason):
    with pytest.raises(ValueError, match=reason):
        distill(settings.but(out=tmp_path / "new", **changes))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("variant", "changes", "expected"),
    [
        ("res18-x0.25", {"config.pooling": "avg", "config.embedding_dim": 5}, ("avg", "linear", 5)),
        ("vit-s-s1", {}, ("part_tokens", "none", None)),  # of tokens there is no window to take the mean of
    ],
)
def test_a_teacher_has_the_head_that_is_asked_for_and_that_fits(settings, tmp_path, variant, changes, expected):
    short = {"teacher_epochs": 0.25, "arg": {**settings.recipe.arg, "save_strategy": "no"}}
    changes = {**settings.teachers.set_teacher, **changes}
    made = settings.but(out=tmp_path, backbone=variant, set_teacher=changes, view=["Hol"], **short)
    config = open_model(fd.train_teachers(made)["Hol"]).config
    assert (config.pooling["name"], config.embedding["name"], config.embedding.get("dim")) == expected


def test_stages_that_do_not_fit_together_are_refused(made, settings, tmp_path):
    out = Path(made.output.out)
    ready = {view.name: str(out / "teachers" / view.name) for view in made.chosen}
    base = made.but(out=tmp_path, initial=str(out / "initial"), cache=str(made.cache_dir))
    for changes, reason in (
        ({"validation": 0.3}, "trained on 8 identities|was trained on 8"),
        ({"view": ["Hol+G1"]}, "Mid1 has no representations|Up1 has no representations"),
        ({"initial": None}, "starts from an initial one"),
        ({"recipe": "demo", "set": {}}, "recipe of the method 'fd'"),
        ({"set": {"augmentation.pad": 4}}, "pad 0, crop_scale 1, rotation 0 and no resized_area, got 4"),
        ({"set": {"augmentation.resized_area": (0.1, 0.5)}}, r"no resized_area, got .* and \(0.1, 0.5\)"),
        ({"cache": str(tmp_path / "nothing")}, "no representations"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=reason):
            train_student(base.but(**changes))
    with pytest.raises(ValueError, match="'Dn1' has no teacher"):
        fd.make_cache(base.but(teacher={"Hol": ready["Hol"]}))
    with pytest.raises(ValueError, match="unknown view of these teachers 'Dn2'"):
        fd.train_teachers(base.but(teacher={"Dn2": ready["Hol"]}))
    with pytest.raises(ValueError, match="belongs to another run: teacher was"):
        fd.make_cache(base.but(teacher={**ready, "Dn1": ready["Hol"]}))
    with pytest.raises(ValueError, match="a map of at least 4x4, got 2x1"):
        distill(settings.but(out=tmp_path / "small", image_size=(16, 8)))
    assert not (tmp_path / "small").exists()
    few = base.but(out=tmp_path / "few", validation=0.3, cache=None)
    others = {**ready, **fd.train_teachers(few.but(view=["Hol"]))}
    with pytest.raises(ValueError, match=r"'Hol' and 'Dn1' were trained on different identities, \d and 8"):
        fd.make_cache(few.but(teacher=others))


def test_the_command_takes_bands_and_ready_teachers(made, people, tmp_path):
    out = Path(made.output.out)
    words = [
        "distill", "fd", *people, "--out", tmp_path, "--initial", out / "initial", "--teacher",
        f"Hol={out / 'teachers' / 'Hol'}", "--view", "Hol", "--view", "Legs=1/2:1",
        "--backbone", made.teachers.backbone,
        "--image-size", 64, 32, "--view-size", 48, 48, "--epochs", 1, "--teacher-epochs", 1, "--validation", 0,
        "--set", "batch_size=8", "--set", "num_instances=2", "--set-teacher", "batch_size=8",
        "--set-teacher", "num_instances=2", "--arg", "use_cpu=true",
    ]  # fmt: skip
    result = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    assert f"model: {tmp_path / 'student'}" in result.stdout
    assert sorted(path.name for path in (tmp_path / "teachers").iterdir()) == ["Legs"]
    assert results_of(tmp_path / "student")["training"]["views"] == ["Hol", "Legs"]
    assert choose_views(["Legs=1/2:1"])[0].box((32, 16)) == (16, 0, 32, 16)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["initial", "teachers/Dn1", "student"])
def test_killed_in_any_stage_and_resumed_gives_the_same_bits(stage, made, people, tmp_path):
    words = [
        "distill", "fd", *people, "--out", tmp_path, "--model", made.model.model,
        "--backbone", made.teachers.backbone, "--view", "Hol", "--view", "Dn1",
        "--image-size", 64, 32, "--view-size", 48, 48, "--epochs", 2, "--teacher-epochs", 2,
        "--validation", 0, "--set", "batch_size=8", "--set", "num_instances=2", "--set-teacher", "batch_size=8",
        "--set-teacher", "num_instances=2", "--arg", "use_cpu=true", "--resume",
    ]  # fmt: skip
    command = [sys.executable, "-m", "reid_hub.cli", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (tmp_path / stage / "checkpoint-4").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "student" / "results.json").exists()
    finished = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-4000:]
    first, second = (load_file(Path(out) / "student" / "model.safetensors") for out in (made.output.out, tmp_path))
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_attention_is_where_features_are_long(made, tmp_path):
    """By hand: 1x1 convolution, batch norm of evaluation, ReLU, and the root of the summed squares at each place."""
    folder = Path(made.output.out) / "student"
    model, heads = open_model(folder).eval(), read_state(folder)
    pixels = torch.randn(3, 3, 64, 32, generator=torch.Generator().manual_seed(0))
    maps = attention_maps(model, heads, pixels)
    assert list(maps) == ["student", "Hol", "Dn1"]
    with torch.no_grad():
        features = model(pixels).feature_map
    torch.testing.assert_close(maps["student"], (features**2).sum(1).sqrt())
    name = "fmfb.Dn1.select."
    mixed = torch.einsum("oc,bchw->bohw", heads[f"{name}0.weight"][:, :, 0, 0], features)
    mean, var, weight, bias = (
        heads[f"{name}1.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
    )
    selected = (((mixed - mean) / (var + 1e-5).sqrt()) * weight + bias).clamp(min=0)
    torch.testing.assert_close(maps["Dn1"], (selected**2).sum(1).sqrt(), rtol=1e-4, atol=1e-5)
    words = ["distill", "attention", folder, "--data", "market_layout", "--data-dir", made.data.data_dir, "--count", 2]
    out = tmp_path / "attention.png"
    result = CliRunner().invoke(app, [*map(str, words), "--out", str(out)])
    assert result.exit_code == 0, result.output
    with Image.open(out) as image:
        assert len(image.convert("RGB").getcolors(2**20)) > 100
    with pytest.raises(ValueError, match="no branches on the feature map"):
        attention_maps(model, {"classifier.weight": torch.zeros(2, 2)}, pixels)
