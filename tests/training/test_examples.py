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
ON_CPU = ("--arg", "use_cpu=true", "per_device_train_batch_size=8")

TWO_PROCESSES = (
    "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
    "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
)  # fmt: skip


def data_options(options: dict[str, int]) -> list[str]:
    return ["--data-option", *(f"{name}={value}" for name, value in options.items())]


def launch(*words: str | Path, launcher: tuple[str, ...] = ()) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, *map(str, words)]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, cwd=ROOT)
    assert finished.returncode == 0, finished.stderr[-4000:]
    return finished.stdout


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_every_example_is_a_page(example):
    assert len(example.read_text().splitlines()) < 100


@pytest.mark.slow
def test_the_plain_loop_trains_the_same_model_as_the_trainer(tmp_path):
    plain, trainer = tmp_path / "plain", tmp_path / "trainer"
    launch("examples/train_plain_loop.py", "--ids", "12", "--epochs", "2", "--out", plain)
    launch(
        "examples/train_supervised.py", "--epochs", "2", "--validation", "0", "--out", trainer,
        "--data-option", "num_train_ids=12", "--arg", "use_cpu=true",
    )  # fmt: skip
    first, second = load_file(plain / "model.safetensors"), load_file(trainer / "model.safetensors")
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].equal(second[name]), name


@pytest.mark.slow
def test_two_launched_processes_train_evaluate_and_save(tmp_path):
    printed = launch(
        "examples/train_supervised.py", "--epochs", "2", "--validation", "0.3", "--out", tmp_path / "model",
        *data_options(SMALL), *ON_CPU,
        launcher=TWO_PROCESSES,
    )  # fmt: skip
    results = json.loads((tmp_path / "model" / "results.json").read_text())
    assert results["training"]["batch_size"] == 16
    assert json.loads(printed.strip().splitlines()[-1])["mAP"] == results["metrics"]["mAP"] > 0
    assert (tmp_path / "model" / "README.md").is_file()
    assert (tmp_path / "model" / "best" / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_chains_are_refined_and_students_expanded(tmp_path, processes):
    """Teacher, two chains that teach one another, two students: all of it in one launch each."""
    launcher = TWO_PROCESSES if processes == 2 else ()
    common = [
        "--epochs", "1", "--validation", "0", "--image-size", "64", "32", *data_options(SMALL),
        *ON_CPU,
    ]  # fmt: skip
    chains = tmp_path / "chain"
    refined = launch(
        "examples/oskt_refine.py", "--out", chains, "--width", "8", "12", "--progressive", *common,
        launcher=launcher,
    )  # fmt: skip
    measured = json.loads(refined.strip().splitlines()[-1])
    assert list(measured) == [str(chains / "width12"), str(chains / "width8")]
    expanded = launch(
        "examples/oskt_expand.py", "--chain", chains / "width8", "--student", "8", "10", "--out", tmp_path,
        *common, launcher=launcher,
    )  # fmt: skip
    measured = json.loads(expanded.strip().splitlines()[-1])
    assert list(measured) == [str(tmp_path / "student-8"), str(tmp_path / "student-10")]
    for folder in measured:
        results = json.loads((Path(folder) / "results.json").read_text())
        assert results["training"]["method"] == "oskt"
        assert results["training"]["batch_size"] == 8 * processes


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_heads_are_compressed_from_a_model_of_its_own(tmp_path, processes):
    printed = launch(
        "examples/compress_head.py", "--out", tmp_path, "--head", "prune", "--dim", "32", "8", "--int8",
        "--epochs", "1", "--validation", "0", "--image-size", "64", "32", *data_options(SMALL),
        *ON_CPU,
        launcher=TWO_PROCESSES if processes == 2 else (),
    )  # fmt: skip
    measured = json.loads(printed.strip().splitlines()[-1])
    assert [Path(folder).name for folder in measured] == ["prune-128-int8", "prune-32-int8", "prune-8-int8"]
    for folder, metrics in measured.items():
        results = json.loads((Path(folder) / "results.json").read_text())
        assert results["metrics"] == metrics
        assert results["training"]["batch_size"] == 8 * processes


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_networks_with_a_memory_are_trained_distilled_and_transferred(tmp_path, processes):
    launcher = TWO_PROCESSES if processes == 2 else ()
    shared = ["--epochs", "1", *ON_CPU]
    sized = [*shared, "--validation", "0", "--image-size", "64", "32"]
    common = [*sized, *data_options(SMALL)]
    for arm in (["--cell", "v2"], ["--no-memory"]) if processes == 1 else (["--cell", "v1"],):
        folder = tmp_path / "-".join(arm)
        printed = launch("examples/ptl_finetune.py", "--out", folder, *arm, *common, launcher=launcher)
        assert json.loads(printed.strip().splitlines()[-1])["mAP"] > 0
        assert json.loads((folder / "results.json").read_text())["training"]["batch_size"] == 8 * processes
    printed = launch("examples/ptl_distill.py", "--out", tmp_path / "std", *common, launcher=launcher)
    made = [tmp_path / "std" / name for name in ("lam-0", "lam-0.8")]
    assert list(json.loads(printed.strip().splitlines()[-1])) == list(map(str, made))
    printed = launch(
        "examples/ptl_transfer.py", "--out", tmp_path / "transfer", *sized,
        "--data-options", f"synthetic={json.dumps(SMALL)}", launcher=launcher,
    )  # fmt: skip
    steps = [tmp_path / "transfer" / name for name in ("1-synthetic", "2-synthetic")]
    assert list(json.loads(printed.strip().splitlines()[-1])) == list(map(str, steps))
    small = data_options({"train_per_class": 6, "test_per_class": 2})
    printed = launch(
        "examples/ptl_cifar.py", "--out", tmp_path / "shapes", *shared, *small,
        launcher=launcher,
    )  # fmt: skip
    assert json.loads(printed.strip().splitlines()[-1])["top5"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_teachers_cached_representations_and_a_student_in_three_launches(tmp_path, processes):
    launcher = TWO_PROCESSES if processes == 2 else ()
    common = [
        "--epochs", "1", "--teacher-epochs", "1", "--validation", "0", "--image-size", "128", "64",
        "--view-size", "64", "64", "--view", "Hol", "Up1", *data_options(SMALL), *ON_CPU,
    ]  # fmt: skip
    trained = launch("examples/fd_teachers.py", "--out", tmp_path, *common, launcher=launcher)
    teachers = json.loads(trained.strip().splitlines()[-1])
    assert teachers == {name: str(tmp_path / "teachers" / name) for name in ("Hol", "Up1")}
    launch(
        "examples/fd_cache.py", "--out", tmp_path, "--teachers", tmp_path / "teachers",
        "--shard-size", "20", *common, launcher=launcher,
    )  # fmt: skip
    assert len(list((tmp_path / "cache").glob("*/*.safetensors"))) == 2 * 5  # of 96 images
    printed = launch(
        "examples/fd_distill.py", "--out", tmp_path, "--cache", tmp_path / "cache", "--initial", teachers["Hol"],
        *common, launcher=launcher,
    )  # fmt: skip
    results = json.loads((tmp_path / "student" / "results.json").read_text())
    assert json.loads(printed.strip().splitlines()[-1])["mAP"] == results["metrics"]["mAP"] > 0
    assert results["training"]["views"] == ["Hol", "Up1"]
    assert results["training"]["batch_size"] == 8 * processes


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_classifier_in_one_launch(tmp_path, processes):
    printed = launch(
        "examples/classify.py", "--out", tmp_path / "model", "--epochs", "1", "--image-size", "32", "32",
        *data_options({"train_per_class": 8, "test_per_class": 3}),
        *ON_CPU,
        launcher=TWO_PROCESSES if processes == 2 else (),
    )  # fmt: skip
    results = json.loads((tmp_path / "model" / "results.json").read_text())
    assert results["training"]["batch_size"] == 8 * processes
    assert json.loads(printed.strip().splitlines()[-1])["top1"] == results["metrics"]["top1"]
    assert (tmp_path / "model" / "best" / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_basis_pretraining_and_fine_tuning_in_three_launches(tmp_path, processes):
    launcher, out = TWO_PROCESSES if processes == 2 else (), tmp_path / "kdep"
    common = [
        "--image-size", "64", "32", *data_options({**SMALL, "num_train_ids": 40}),
        "--arg", "use_cpu=true", "per_device_train_batch_size=16",
    ]  # fmt: skip
    made = launch("examples/kdep_basis.py", "--out", out, *common, launcher=launcher)
    basis = out / "training" / "basis.safetensors"
    assert json.loads(made.strip().splitlines()[-1]) == {"basis": str(basis)}
    written = basis.stat().st_mtime_ns
    printed = launch("examples/kdep_pretrain.py", "--out", out, "--epochs", "1", *common, launcher=launcher)
    assert basis.stat().st_mtime_ns == written
    results = json.loads((out / "results.json").read_text())
    assert json.loads(printed.strip().splitlines()[-1])["weight"] == results["training"]["weight"]
    assert results["training"]["batch_size"] == 16 * processes
    launch(
        "examples/kdep_transfer.py", "--model", out, "--out", tmp_path / "tuned", "--epochs", "1",
        "--keep-ids", "0.5", *common, launcher=launcher,
    )  # fmt: skip
    tuned = json.loads((tmp_path / "tuned" / "results.json").read_text())["training"]
    assert (tuned["identities"], tuned["init"]) == (20, "kdep")
