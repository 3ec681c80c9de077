import copy
import json

import numpy as np
import pytest
import torch
import transformers

import reid_hub
from reid_hub.evaluation.metrics import evaluate_retrieval
from reid_hub.evaluation.results import (
    build_classification_results,
    build_results,
    check_results,
    public_command,
    read_results,
    write_results,
)


@pytest.fixture
def retrieval():
    rng = np.random.default_rng(0)
    return evaluate_retrieval(
        rng.standard_normal((20, 4)),
        rng.standard_normal((60, 4)),
        rng.integers(0, 5, 20),
        rng.integers(0, 5, 60),
        rng.integers(0, 3, 20),
        rng.integers(0, 3, 60),
    )


@pytest.fixture
def results(retrieval):
    return build_results(
        model="osnet-x0.25.supervised",
        dataset={
            "name": "market1501",
            "split": "test",
            "data_dir_counts": {"query": {"images": 20}, "gallery": {"images": 60}},
        },
        results=retrieval,
        cost={"parameters": 201_864, "macs": 82_314_880, "bytes_per_vector": 2048, "latency_ms": 9.5},
        training={"method": "supervised", "recipe": "bot", "epochs": 60, "seed": 1, "dataset": "market1501"},
        command=["/home/someone/.venv/bin/reid-hub", "evaluate", "runs/a", "--data-dir", "/data/people/market"],
    )


def test_results_hold_the_whole_schema(results, retrieval):
    assert sorted(results) == [
        "command", "cost", "dataset", "metrics", "model", "protocol", "training", "versions",
    ]  # fmt: skip
    assert results["metrics"] == {
        "mAP": retrieval.mAP,
        "rank1": retrieval.rank1,
        "rank5": retrieval.rank5,
        "rank10": retrieval.rank10,
        "mINP": retrieval.mINP,
    }
    assert results["protocol"]["metric"] == "cosine"
    assert results["protocol"]["num_queries"] == 20
    assert results["protocol"]["num_gallery"] == 60
    assert results["versions"]["torch"].startswith(torch.__version__.partition("+")[0])
    assert results["versions"]["transformers"] == transformers.__version__
    assert results["versions"]["reid_hub"] == reid_hub.__version__
    assert results["command"] == "reid-hub evaluate runs/a --data-dir market"


def test_written_results_are_read_back_and_the_file_is_stable(results, tmp_path):
    path = tmp_path / "deep" / "results.json"
    assert write_results(path, results) == path
    assert read_results(path) == results
    text = path.read_text()
    assert text.endswith("}\n")
    shuffled = dict(reversed([(key, value) for key, value in results.items()]))
    write_results(path, shuffled)
    assert path.read_text() == text
    assert [item.name for item in path.parent.iterdir()] == ["results.json"]


def test_command_defaults_to_that_of_the_process(retrieval, results, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/x/y/train.py", "--out", "/tmp/a b/run 1", "--lr", "1e-3"])
    parts = {name: results[name] for name in ("model", "dataset", "cost", "training")}
    assert build_results(results=retrieval, **parts)["command"] == "train.py --out 'run 1' --lr 1e-3"


@pytest.mark.parametrize(
    ("word", "public"),
    [
        ("/home/me/bin/reid-hub", "reid-hub"),
        ("--data-dir=/data/market/", "--data-dir=market"),
        ("~/runs/1", "1"),
        ("~me/runs/1", "1"),
        ("C:\\Users\\me\\run", "run"),
        ("file:///home/me/q.jpg", "q.jpg"),
        ("a=/x/y:/z/w,/k/l", "a=y:w,l"),
        ("//server/share/x", "x"),
        ("@/home/me/arguments", "@arguments"),
        ("runs/a/results.json", "runs/a/results.json"),
        ("https://hub.example/a/b", "https://hub.example/a/b"),
        ("timm/resnet18", "timm/resnet18"),
        ("1/2", "1/2"),
        ("--lr=1e-3", "--lr=1e-3"),
    ],
)
def test_command_names_no_folder_of_the_machine(word, public):
    assert public_command([word]) == public


def test_command_can_be_pasted_into_a_shell():
    assert public_command(["reid-hub", "train", "--set", '{"a": "/home/me/x y"}', ""]) == (
        """reid-hub train --set '{"a": "x y"}' ''"""
    )


@pytest.mark.parametrize("key", ["model", "dataset", "protocol", "metrics", "cost", "training", "command", "versions"])
def test_missing_key_is_named(results, key, tmp_path):
    del results[key]
    with pytest.raises(ValueError, match=rf"lack '{key}'"):
        write_results(tmp_path / "results.json", results)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("metrics", "mAP"), 45.2, r"mAP must be a fraction between 0 and 1 \(not percent\), got 45.2"),
        (("metrics", "rank1"), -0.1, "rank1 must be a fraction"),
        (("metrics", "mINP"), float("nan"), "mINP must be a fraction"),
        (("metrics", "rank5"), None, "rank5 must be a fraction"),
        (("metrics", "rank5"), True, "rank5 must be a fraction"),
        (("cost", "macs"), -1, "macs must be a finite number"),
        (("cost", "latency_ms"), float("inf"), "latency_ms must be a finite number"),
        (("model",), "", "'model' must be a non-empty str"),
        (("model",), {"name": "x"}, "'model' must be a non-empty str"),
        (("dataset",), "market1501", "'dataset' must be a non-empty mapping"),
        (("protocol", "threshold"), float("nan"), "plain finite numbers"),
        (("training", "model"), torch.zeros(1), "plain finite numbers"),
    ],
)
def test_wrong_value_is_named_and_an_earlier_file_stays(results, place, value, message, tmp_path):
    path = write_results(tmp_path / "results.json", results)
    before = path.read_text()
    wrong = copy.deepcopy(results)
    target = wrong
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = value
    with pytest.raises(ValueError, match=message):
        write_results(path, wrong)
    assert path.read_text() == before


@pytest.mark.parametrize(
    ("group", "key"), [("dataset", "split"), ("metrics", "mINP"), ("cost", "macs"), ("training", "seed")]
)
def test_missing_part_is_named(results, group, key):
    wrong = copy.deepcopy(results)
    del wrong[group][key]
    with pytest.raises(ValueError, match=rf"'{group}' lacks {key}"):
        write_results("never-written.json", wrong)


def test_reading_names_the_file_that_is_wrong(results, tmp_path):
    path = tmp_path / "results.json"
    with pytest.raises(FileNotFoundError, match="reid-hub evaluate"):
        read_results(path)
    path.write_text(json.dumps(results)[:-20])
    with pytest.raises(ValueError, match=r"results\.json: .*"):
        read_results(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"results\.json: results must be a mapping, got list"):
        read_results(path)


def test_a_classifier_has_metrics_and_costs_of_its_own(results, tmp_path):
    parts = {name: results[name] for name in ("model", "dataset", "training")}
    cost = {name: value for name, value in results["cost"].items() if name != "bytes_per_vector"}
    metrics = {"top1": 0.91, "top5": 0.99, "top1_best": 0.92, "best_epoch": 150.0}
    classified = build_classification_results(**parts, metrics=metrics, protocol={"num_images": 9}, cost=cost)
    assert read_results(write_results(tmp_path / "results.json", classified)) == classified
    for changes, message in (
        ({"metrics": {**metrics, "top1": 91.0}}, "metric top1 must be a fraction"),
        ({"metrics": {"top1": 0.9}}, "'metrics' lacks top5, top1_best, best_epoch"),
        ({"metrics": {**metrics, "best_epoch": -1}}, "metric best_epoch must be"),
        ({"task": "classifying"}, "unknown task 'classifying'"),
        ({"task": "retrieval"}, "'metrics' lacks mAP"),
    ):
        with pytest.raises(ValueError, match=message):
            check_results({**classified, **changes})
    without = {key: value for key, value in results["cost"].items() if key != "bytes_per_vector"}
    with pytest.raises(ValueError, match="'cost' lacks bytes_per_vector"):
        check_results({**results, "cost": without})
