"""A data set of coloured people, a model trained on it, and the command line's complaints about wrong input."""

import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from reid_hub import ReIDConfig, ReIDModel
from reid_hub.cli import app, main


@pytest.fixture
def complaint(monkeypatch, capsys) -> Callable[[list], str]:
    """`complaint(words)`: run the command, which must stop with exit code 2, and return its one line."""

    def run(words: list) -> str:
        monkeypatch.setattr(sys, "argv", ["reid-hub", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith("Error: ")
        return said

    return run


@pytest.fixture(scope="session")
def short() -> list[str]:
    """Options of a training of seconds."""
    return ["--set", "batch_size=8", "--set", "num_instances=2", "--epochs", "2", "--validation", "0"]


@pytest.fixture(scope="session")
def people(tmp_path_factory):
    """Twelve people by their colour, in Market-1501's layout: eight to train on, four to search for."""
    root, rng = tmp_path_factory.mktemp("people"), np.random.default_rng(0)
    for pid in range(1, 13):
        colour = rng.integers(40, 216, 3)
        for camera in (1, 2):
            for number in (1, 2):
                test = "query" if camera == 1 and number == 1 else "bounding_box_test"
                folder = root / (test if pid > 8 else "bounding_box_train")
                folder.mkdir(exist_ok=True)
                pixels = np.clip(colour + rng.normal(0, 25, (32, 16, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{pid:04}_c{camera}s1_{number:06}_00.jpg", "PNG")
    return ["--data", "market_layout", "--data-dir", root, "--dataset-name", "coloured"]


@pytest.fixture(scope="session")
def teacher(people, short, tmp_path_factory):
    start, out = tmp_path_factory.mktemp("start"), tmp_path_factory.mktemp("teacher")
    torch.manual_seed(0)
    backbone = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    backbone["model_type"] = "resnet"
    ReIDModel(ReIDConfig(backbone_config=backbone, image_size=(32, 16))).save_pretrained(start)
    words = ["train", *people, *short, "--model", start, "--out", out]
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == 0, result.output
    return out
