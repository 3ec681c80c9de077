"""Compressed models as runs and as commands: every reduction, resumed, evaluated, pushed nowhere half-made."""

import json
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi
from transformers import AutoModel
from typer.testing import CliRunner

from reid_hub import evaluate_model, load_reid_dataset
from reid_hub.cli import app
from reid_hub.evaluation import embed
from reid_hub.methods.state import read_state
from reid_hub.runs.models import open_model


@pytest.fixture(scope="module")
def compress(people, short, teacher):
    """Run `reid-hub compress` on the teacher and return its output."""

    def run(*words) -> str:
        result = CliRunner().invoke(app, list(map(str, ["compress", "--model", teacher, *people, *short, *words])))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.stdout

    return run


@pytest.fixture
def splits(people):
    return load_reid_dataset("market_layout", people[3])


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("head", ["slice", "low_rank", "matryoshka", "pca", "random"])
def test_each_size_is_an_evaluated_checkpoint(head, compress, splits, tmp_path):
    said = compress("--head", head, "--dim", 6, "--dim", 3, "--int8", "--out", tmp_path)
    for dim in (6, 3):
        folder, results = tmp_path / f"{head}-{dim}-int8", results_of(tmp_path / f"{head}-{dim}-int8")
        model = AutoModel.from_pretrained(folder).eval()
        assert model.encode([np.zeros((32, 16, 3), np.uint8)], precision="int8").shape == (1, dim)
        assert float(model.quantizer.peak) > 0
        assert results["cost"]["bytes_per_vector"] == dim
        assert results["training"]["method"] == f"{head}-{dim}-int8"
        assert evaluate_model(model, splits).mAP == pytest.approx(results["metrics"]["mAP"])
        assert f"bytes per vector: {dim}" in said


def test_pruning_is_one_chain_of_nested_sets_with_warm_starts(compress, teacher, splits, tmp_path):
    compress("--head", "prune", "--dim", 8, "--dim", 3, "--retrain", 0.5, "--out", tmp_path)
    kept = {dim: open_model(tmp_path / f"prune-{dim}").compression.kept.tolist() for dim in (8, 3)}
    assert set(kept[3]) < set(kept[8])
    lengths = np.linalg.norm(embed(open_model(teacher), splits["train"]).embeddings, axis=0)
    assert kept[8] == sorted(np.argsort(-lengths, kind="stable")[:8].tolist())
    lengths = np.linalg.norm(embed(open_model(tmp_path / "prune-8"), splits["train"]).embeddings, axis=0)
    assert kept[3] == [kept[8][i] for i in sorted(np.argsort(-lengths, kind="stable")[:3])]
    assert results_of(tmp_path / "prune-3")["training"]["epochs"] == 1


def test_int8_pruning_trains_the_full_length_first(compress, tmp_path):
    compress("--head", "prune", "--dim", 4, "--int8", "--retrain", 0.5, "--out", tmp_path)
    assert results_of(tmp_path / "prune-16-int8")["training"]["epochs"] == 2
    assert results_of(tmp_path / "prune-4-int8")["training"]["epochs"] == 1
    assert results_of(tmp_path / "prune-4-int8")["training"]["init"] == "prune-16-int8"


def test_no_head_is_the_model_itself_quantised_after_training(compress, teacher, splits, tmp_path):
    compress("--head", "none", "--int8", "--out", tmp_path)
    model, base = open_model(tmp_path / "none-16-int8"), open_model(teacher)
    exact = embed(base, splits["gallery"]).embeddings
    scale = np.abs(embed(base, splits["train"]).embeddings).max() / 127
    np.testing.assert_allclose(embed(model, splits["gallery"]).embeddings, np.rint(exact / scale) * scale, atol=1e-5)


def test_principal_directions_are_those_of_the_training_images(compress, teacher, splits, tmp_path):
    compress("--head", "pca", "--dim", 2, "--out", tmp_path)
    seen = embed(open_model(teacher), splits["train"]).embeddings.astype(np.float64)
    directions = np.linalg.svd(seen, full_matrices=False)[2][:2]
    found = open_model(tmp_path / "pca-2").compression.weight.detach().numpy()
    np.testing.assert_allclose(np.abs(found @ directions.T), np.eye(2), atol=1e-4)
    steps = open_model(tmp_path / "pca-2").config.lineage
    assert [step["method"] for step in steps] == ["supervised", "pca-2"]


def test_a_finished_size_is_not_trained_again(compress, tmp_path):
    words = ("--head", "slice", "--dim", 5, "--out", tmp_path)
    compress(*words)
    before = (tmp_path / "slice-5" / "model.safetensors").stat().st_mtime_ns
    compress(*words, "--resume")
    assert (tmp_path / "slice-5" / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="seed was 0 and is 1"):
        compress(*words, "--resume", "--seed", 1)


def test_results_of_other_settings_in_the_folder_are_refused(compress, tmp_path):
    words = ("--head", "matryoshka", "--dim", 8, "--dim", 3, "--int8", "--out", tmp_path)
    compress(*words)
    with pytest.raises(ValueError, match=r"prefixes was \[8, 3\] and is \[4\]"):
        compress("--head", "matryoshka", "--dim", 4, "--int8", "--resume", "--out", tmp_path)
    with pytest.raises(ValueError, match="granularity was 'tensor' and is 'dimension'"):
        compress(*words, "--resume", "--granularity", "dimension")
    assert not (tmp_path / "matryoshka-4-int8").exists()


def test_training_starts_from_norm_and_classifier_of_the_model(compress, teacher, tmp_path):
    compress("--head", "slice", "--dim", 5, "--out", tmp_path, "--set", "learning_rate=1e-12")
    heads, old = read_state(tmp_path / "slice-5"), read_state(teacher)
    torch.testing.assert_close(heads["classifier.weight"], old["classifier.weight"][:, :5], rtol=1e-3, atol=1e-5)


def test_wrong_input_is_reported_in_one_line(complaint, people, teacher, tmp_path):
    cases = {
        ("--dim", 17): "different sizes from 1 to 16",
        ("--dim", 4, "--dim", 4): "different sizes",
        ("--recipe", "demo"): "a recipe of the method 'compression'",
        ("--head", "none", "--dim", 3): "keeps all dimensions",
        ("--head", "pca", "--keep-ids", 0.5): "neither init nor keep_ids",
        ("--granularity", "vector"): "give int8 too",
        ("--head", "prune", "--retrain", 0): "retrain must be above 0",
    }
    for words, reason in cases.items():
        assert reason in complaint(["compress", "--model", teacher, *people, *words, "--out", tmp_path / "out"])
    assert not (tmp_path / "out").exists()
    assert "no checkpoint folder" in complaint(["compress", "--model", tmp_path / "nothing", "--head", "pca", *people])


def test_the_paper_s_aerial_data_set_through_the_same_command(people, short, teacher, tmp_path):
    """PRAI-1581's own layout, made of the coloured people: its split decides who is trained on and searched for."""
    root = tmp_path / "PRAI-1581"
    (root / "images").mkdir(parents=True)
    parts = {name: sorted((people[3] / folder).glob("*.jpg")) for name, folder in (
        ("train", "bounding_box_train"), ("query", "query"), ("gallery", "bounding_box_test"),
    )}  # fmt: skip
    names = {}
    for part, paths in parts.items():
        names[part] = [f"{path.name[:4]}_{path.name[6]}_{part}{n}.jpg" for n, path in enumerate(paths)]
        for path, name in zip(paths, names[part], strict=True):
            shutil.copy(path, root / "images" / name)
    tests = names["query"] + names["gallery"]
    marks = [0] * len(names["query"]) + [1] * len(names["gallery"])
    partitions = {"trainval_im_names": names["train"], "test_im_names": tests, "test_marks": marks}
    (root / "partitions.pkl").write_bytes(pickle.dumps(partitions, protocol=2))
    words = [
        "compress",
        "--model",
        teacher,
        "--data",
        "prai1581",
        "--data-dir",
        tmp_path,
        *short,
        "--head",
        "slice",
        "--dim",
        4,
    ]
    result = CliRunner().invoke(app, list(map(str, [*words, "--out", tmp_path / "out"])))
    assert result.exit_code == 0, result.output
    counts = results_of(tmp_path / "out" / "slice-4")["dataset"]["data_dir_counts"]
    assert {part: count["images"] for part, count in counts.items()} == {part: len(p) for part, p in parts.items()}
    assert results_of(tmp_path / "out" / "slice-4")["protocol"]["num_valid_queries"] == len(parts["query"])


@pytest.mark.parametrize("head", ["low_rank", "pca"])
def test_compressed_models_are_published(head, people, short, teacher, tmp_path, hub):
    environment = hub.environment(tmp_path / "home")
    words = [
        "compress",
        "--model",
        teacher,
        *people,
        *short,
        "--head",
        head,
        "--dim",
        4,
        "--int8",
        "--out",
        tmp_path / "out",
    ]
    command = [sys.executable, "-m", "reid_hub.cli", *map(str, words), "--push", "alice/compressed"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    api = HfApi(hub.url, token=environment["HF_TOKEN"])
    names = set(api.list_repo_files("alice/compressed"))
    assert {"model.safetensors", "config.json", "README.md", "results.json", "quantization.py"} <= names
    assert not any("heads" in name or "checkpoint-" in name for name in names)


def test_a_compressed_model_is_only_pruned_further_and_only_alike(compress, complaint, people, short, tmp_path):
    compress("--head", "prune", "--dim", 8, "--int8", "--base", "--out", tmp_path)
    common = ["--model", tmp_path / "prune-8-int8", *people, *short, "--dim", 4, "--out", tmp_path / "on"]
    for words in (["--head", "slice"], ["--head", "prune"], ["--head", "prune", "--int8", "--granularity", "vector"]):
        assert "compressed already" in complaint(["compress", *common, *words])
    assert not (tmp_path / "on").exists()
    result = CliRunner().invoke(app, list(map(str, ["compress", *common, "--head", "prune", "--int8"])))
    assert result.exit_code == 0, result.output
    first, second = (
        set(open_model(f).compression.kept.tolist()) for f in (common[1], tmp_path / "on" / "prune-4-int8")
    )
    assert second < first
