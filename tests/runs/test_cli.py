"""The command line on real files: a user's own folder of images, from training to an answer."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import torchvision
from huggingface_hub import HfApi
from PIL import Image
from typer.testing import CliRunner

from reid_hub import ReIDConfig, ReIDModel
from reid_hub.cli import app

COMMANDS = [[command.name or command.callback.__name__] for command in app.registered_commands]
COMMANDS += [
    [group.name, command.name]
    for group in app.registered_groups
    for command in group.typer_instance.registered_commands
]
COMMANDS += [[group.name] for group in app.registered_groups if group.typer_instance.registered_callback]
TINY = {"model_type": "resnet", "embedding_size": 4, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}


def run(*words, stream: str = "stdout") -> str:
    result = CliRunner().invoke(app, list(map(str, words)))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return getattr(result, stream)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """ROOT/<identity>/<image>: twelve people that differ by colour, without cameras."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for person in range(12):
        colour = rng.integers(40, 216, 3)
        (root / f"person{person:02}").mkdir()
        for number in range(6):
            pixels = np.clip(colour + rng.normal(0, 25, (40, 20, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / f"person{person:02}" / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    ReIDModel(ReIDConfig(backbone_config=TINY, image_size=(32, 16))).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example(command):
    text = " ".join(run(*command, "--help").split())
    assert f"Example: reid-hub {' '.join(command)}" in text


def test_train_evaluate_and_search_a_folder_of_images(images, model, tmp_path):
    out = tmp_path / "trained"
    common = ["--data", "image_folder", "--data-dir", images, "--dataset-name", "mine"]
    settings = ["--set", "batch_size=8", "--set", "num_instances=2", "--validation", "0", "--epochs", "2"]
    said = CliRunner().invoke(app, list(map(str, ["train", *common, "--model", model, "--out", out, *settings])))
    assert said.exit_code == 0, said.output
    assert "No test image has a camera id" in said.stderr
    assert "mine: mAP" in said.stdout
    trained = json.loads((out / "results.json").read_text())
    assert trained["dataset"]["name"] == trained["training"]["dataset"] == "mine"
    assert "camera id" in (out / "README.md").read_text()
    assert str(tmp_path) not in json.dumps(trained)

    run("evaluate", out, *common, "--flip", "--plots", tmp_path / "shown")
    evaluated = json.loads((out / "results.json").read_text())
    assert evaluated["training"] == trained["training"]
    assert evaluated["protocol"]["flip"]
    assert {path.name for path in (tmp_path / "shown").iterdir()} == {"rank_lists.png", "cmc.png", "embedding_map.png"}

    (images / "broken.jpg").write_bytes(b"not an image")
    said = run("index", "build", images, "--model", out, "--out", tmp_path / "index", stream="output")
    (images / "broken.jpg").unlink()
    assert "72 images, 72 of them new, 1 skipped" in said
    assert "broken.jpg" in said
    query = images / "person03" / "2.png"
    plot = ["--gallery", images, "--plot", tmp_path / "answer.png"]
    said = run("search", tmp_path / "index", query, "--model", out, "--top", "3", *plot)
    assert said.splitlines()[1].split() == ["1", "0.0000", "person03/2.png"]
    with Image.open(tmp_path / "answer.png") as image:
        assert image.width > image.height
    with pytest.raises(ValueError, match="was made with"):
        run("search", tmp_path / "index", query, "--model", model)


def test_an_interrupted_training_resumes_where_it_stopped(images, model, tmp_path):
    common = ["train", "--data", "image_folder", "--data-dir", images, "--model", model, "--validation", "0"]
    common += ["--set", "batch_size=8", "--set", "num_instances=2", "--epochs", "4"]
    run(*common, "--out", tmp_path / "whole")
    run(*common, "--out", tmp_path / "parts", "--arg", "save_total_limit=9")
    last = max((tmp_path / "parts").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    run(*common, "--out", tmp_path / "parts", "--resume")
    whole, parts = (tmp_path / name / "model.safetensors" for name in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes()


def test_a_training_publishes_what_it_made(images, model, tmp_path, hub):
    environment = hub.environment(tmp_path / "home")
    words = ["train", "--data", "image_folder", "--data-dir", images, "--model", model, "--validation", "0"]
    words += ["--set", "batch_size=8", "--set", "num_instances=2", "--epochs", "1", "--out", tmp_path / "out"]
    command = [sys.executable, "-m", "reid_hub.cli", *map(str, words), "--push", "alice/trained", "--private"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    api = HfApi(hub.url, token=environment["HF_TOKEN"])
    names = set(api.list_repo_files("alice/trained"))
    assert {"model.safetensors", "config.json", "README.md", "results.json", "modeling_reid.py"} <= names
    assert not any(name.startswith("checkpoint-") for name in names)
    assert api.model_info("alice/trained").private
    assert len(api.list_repo_commits("alice/trained")) <= 2  # the empty repository, and one commit with everything


def test_convert_reports_what_happened_to_the_tensors(tmp_path):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet18.pth")
    said = run("convert", tmp_path / "resnet18.pth", "--variant", "res18", "--out", tmp_path / "out")
    assert "120 tensors used; ignored: fc.bias, fc.weight" in said
    assert ReIDModel.from_pretrained(tmp_path / "out").config.variant == "res18"


def test_card_is_written_anew(model):
    (model / "README.md").unlink()
    assert "README.md" in run("card", model)
    assert "not been evaluated" in (model / "README.md").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--data", "market1502"], "did you mean 'market1501'"),
        (["train", "--data", "market1501"], "needs data_dir"),
        (["train", "--data", "market1501", "--data-dir", "nowhere"], "nowhere"),
        (["train", "--recipe", "bott"], "did you mean 'bot'"),
        (["train", "--set", "learning_rat=1"], "did you mean 'learning_rate'"),
        (["evaluate", "no/such/folder"], "no checkpoint folder no/such/folder"),
        (["search", "no-index", "q.jpg", "--model", "no/such/folder"], "no checkpoint folder"),
        (["push", "nowhere", "me/model"], "no folder nowhere"),
    ],
)
def test_wrong_input_is_reported_in_one_line(words, message, complaint):
    assert message in complaint(words)


def test_the_installed_command_stops_without_a_traceback():
    words = [sys.executable, "-m", "reid_hub.cli", "evaluate", "no/such/folder"]
    ran = subprocess.run(words, capture_output=True, text=True)
    assert ran.returncode == 2
    assert "no checkpoint folder no/such/folder" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_trained_model_s_configuration_is_not_changed(complaint, model, images, tmp_path):
    words = ["train", "--model", model, "--data", "image_folder", "--data-dir", images, "--out", tmp_path / "out"]
    said = complaint([*words, "--set", "config.pooling=max"])
    assert "config.pooling='max' comes too late for a trained model, whose pooling is 'avg'" in said
    assert not (tmp_path / "out").exists()
    same = ["--set", "config.pooling=avg", "--set", 'config.backbone_config={"depths": [1, 1]}', "--epochs", "1"]
    run(*words, *same, "--set", "batch_size=8", "--set", "num_instances=2")
    assert json.loads((tmp_path / "out" / "results.json").read_text())["training"]["changes"]["config.pooling"] == "avg"


def test_positions_of_a_checkpoint_do_not_fit_another_size(complaint, tmp_path):
    backbone = {"model_type": "reid_part_vit", "embed_dim": 8, "width": 8, "depth": 1, "heads": 2}
    config = ReIDConfig(backbone_config=backbone, pooling="part_tokens", neck="part_bnneck", image_size=(64, 32))
    ReIDModel(config).save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    said = complaint(["train", "--model", tmp_path / "model", "--image-size", "32", "32", "--out", out])
    assert "images of 64x32, got 32x32: leave the image size as it is" in said
    assert not out.exists()
