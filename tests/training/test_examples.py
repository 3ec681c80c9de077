"""The examples run as they are documented, and both train the same model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
SMALL = {"num_train_ids": 12, "num_test_ids": 4, "images_per_id": 8, "num_distractors": 0}


def launch(*words: str | Path, launcher: tuple[str, ...] = ()) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, *map(str, words)]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, cwd=ROOT)
    assert finished.returncode == 0, finished.stderr[-4000:]
    return finished.stdout


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("train_*.py")), ids=lambda path: path.stem)
def test_every_example_is_a_page(example):
    assert len(example.read_text().splitlines()) < 100


@pytest.mark.slow
def test_the_plain_loop_trains_the_same_model_as_the_trainer(tmp_path):
    plain, trainer = tmp_path / "plain", tmp_path / "trainer"
    launch("examples/train_plain_loop.py", "--ids", "12", "--epochs", "2", "--output-dir", plain)
    launch(
        "examples/train_supervised.py", "--epochs", "2", "--validation", "0", "--output-dir", trainer,
        "--data-options", json.dumps({"num_train_ids": 12}), "--args", json.dumps({"use_cpu": True}),
    )  # fmt: skip
    first, second = load_file(plain / "model.safetensors"), load_file(trainer / "model.safetensors")
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].equal(second[name]), name


@pytest.mark.slow
def test_two_launched_processes_train_evaluate_and_save(tmp_path):
    accelerate = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
                  "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0")  # fmt: skip
    printed = launch(
        "examples/train_supervised.py", "--epochs", "2", "--validation", "0.3", "--output-dir", tmp_path / "model",
        "--data-options", json.dumps(SMALL), "--args", json.dumps({"use_cpu": True, "per_device_train_batch_size": 8}),
        launcher=accelerate,
    )  # fmt: skip
    results = json.loads((tmp_path / "model" / "results.json").read_text())
    assert results["training"]["batch_size"] == 16
    assert json.loads(printed.strip().splitlines()[-1])["mAP"] == results["metrics"]["mAP"] > 0
    assert (tmp_path / "model" / "README.md").is_file()
    assert (tmp_path / "model" / "best" / "model.safetensors").is_file()
