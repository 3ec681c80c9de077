import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import reid_hub
from reid_hub.evaluation.metrics import evaluate_retrieval
from reid_hub.evaluation.results import ClassificationEvaluation, Results, RetrievalEvaluation, public_command
from reid_hub.evaluation.sections import (
    ClassificationMetrics,
    ClassificationProtocol,
    Cost,
    DatasetInfo,
    RetrievalMetrics,
    RetrievalProtocol,
    TrainingInfo,
)

ROOT = Path(__file__).resolve().parents[2]
RECORDED = [
    path
    for folder in ("benchmarks", "model_cards")
    for path in sorted((ROOT / folder).rglob("results.json"))
    if "metrics" in json.loads(path.read_text())  # others are timings, of a form of their own
]


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
    return RetrievalEvaluation(
        model="osnet-x0.25.supervised",
        dataset=DatasetInfo(
            name="market1501",
            split="test",
            data_dir_counts={"query": {"images": 20}, "gallery": {"images": 60}},
        ),
        protocol=RetrievalProtocol.of(retrieval),
        metrics=RetrievalMetrics.of(retrieval),
        cost=Cost(parameters=201_864, macs=82_314_880, bytes_per_vector=2048, latency_ms=9.5),
        training=TrainingInfo(method="supervised", recipe="bot", epochs=60, seed=1, dataset="market1501"),
        command=public_command(
            ["/home/someone/.venv/bin/reid-hub", "evaluate", "runs/a", "--data-dir", "/data/people/market"]
        ),
    )


@pytest.fixture
def content(results):
    """What JSON holds of them."""
    return results.to_dict()


def test_results_hold_the_whole_schema(content, retrieval):
    assert sorted(content) == [
        "command", "cost", "dataset", "metrics", "model", "protocol", "training", "versions",
    ]  # fmt: skip
    assert content["metrics"] == {
        "mAP": retrieval.mAP,
        "rank1": retrieval.rank1,
        "rank5": retrieval.rank5,
        "rank10": retrieval.rank10,
        "mINP": retrieval.mINP,
    }
    assert content["protocol"]["metric"] == "cosine"
    assert content["protocol"]["num_queries"] == 20
    assert content["protocol"]["num_gallery"] == 60
    assert content["versions"]["torch"].startswith(torch.__version__.partition("+")[0])
    assert content["versions"]["transformers"] == transformers.__version__
    assert content["versions"]["reid_hub"] == reid_hub.__version__
    assert content["command"] == "reid-hub evaluate runs/a --data-dir market"


def test_written_results_are_read_back_and_the_file_is_stable(results, tmp_path):
    path = tmp_path / "deep" / "results.json"
    assert results.write(path) == path
    assert Results.read(path) == results
    text = path.read_text()
    assert text.endswith("}\n")
    shuffled = dict(reversed([(key, value) for key, value in results.to_dict().items()]))
    Results.from_dict(shuffled).write(path)
    assert path.read_text() == text
    assert [item.name for item in path.parent.iterdir()] == ["results.json"]


def test_command_defaults_to_that_of_the_process(results, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/x/y/train.py", "--out", "/tmp/a b/run 1", "--lr", "1e-3"])
    parts = {name: getattr(results, name) for name in ("model", "dataset", "protocol", "metrics", "cost", "training")}
    assert RetrievalEvaluation(**parts).command == "train.py --out 'run 1' --lr 1e-3"


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
def test_missing_key_is_named(content, key):
    del content[key]
    with pytest.raises(ValueError, match=rf"lack '{key}'"):
        Results.from_dict(content)


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
    path = results.write(tmp_path / "results.json")
    before = path.read_text()
    wrong = copy.deepcopy(results.to_dict())
    target = wrong
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = value
    with pytest.raises(ValueError, match=message):
        Results.from_dict(wrong).write(path)
    assert path.read_text() == before


@pytest.mark.parametrize(
    ("group", "key"), [("dataset", "split"), ("metrics", "mINP"), ("cost", "macs"), ("training", "seed")]
)
def test_missing_part_is_named(content, group, key):
    del content[group][key]
    with pytest.raises(ValueError, match=rf"'{group}' lacks {key}"):
        Results.from_dict(content)


def test_reading_names_the_file_that_is_wrong(results, tmp_path):
    path = tmp_path / "results.json"
    with pytest.raises(FileNotFoundError, match="reid-hub evaluate"):
        Results.read(path)
    path.write_text(json.dumps(results.to_dict())[:-20])
    with pytest.raises(ValueError, match=r"results\.json: .*"):
        Results.read(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"results\.json: results must be a mapping, got list"):
        Results.read(path)


def test_a_classifier_has_metrics_and_costs_of_its_own(results, tmp_path):
    parts = {name: getattr(results, name) for name in ("model", "dataset", "training")}
    metrics = {"top1": 0.91, "top5": 0.99, "top1_best": 0.92, "best_epoch": 150.0}
    protocol = ClassificationProtocol(
        num_images=9, image_size=[32, 32], resize_shortest=None, evaluations=3, best_chosen_on="the test set"
    )
    cost = replace(results.cost, bytes_per_vector=None)
    of_a_classifier = ClassificationEvaluation(
        **parts, metrics=ClassificationMetrics(**metrics), protocol=protocol, cost=cost
    )
    path = of_a_classifier.write(tmp_path / "results.json")
    assert Results.read(path) == of_a_classifier
    with pytest.raises(ValueError, match="results of classification, not of retrieval"):
        RetrievalEvaluation.read(path)
    classified = of_a_classifier.to_dict()
    assert classified["protocol"]["resize_shortest"] is None
    for changes, message in (
        ({"metrics": {**metrics, "top1": 91.0}}, "metric top1 must be a fraction"),
        ({"metrics": {"top1": 0.9}}, "'metrics' lacks top5, top1_best, best_epoch"),
        ({"metrics": {**metrics, "best_epoch": -1}}, "metric best_epoch must be"),
        ({"task": "classifying"}, "unknown task 'classifying'"),
        ({"task": "retrieval"}, "'metrics' lacks mAP"),
    ):
        with pytest.raises(ValueError, match=message):
            Results.from_dict({**classified, **changes})
    with pytest.raises(ValueError, match="'cost' lacks bytes_per_vector"):
        Results.from_dict({**results.to_dict(), "cost": cost.to_dict()})


@pytest.mark.parametrize("path", RECORDED, ids=[str(path.parent.relative_to(ROOT)) for path in RECORDED])
def test_every_recorded_file_is_written_as_it_was_read(path, tmp_path):
    assert Results.read(path).write(tmp_path / "results.json").read_bytes() == path.read_bytes()


def test_what_is_not_known_is_kept_and_absent_is_not_null(content):
    content["copies"] = {"same_row": 1.0}
    content["training"] |= {"loss_from_state": {"zeros": 0.5}, "basis": None, "init": None}
    read = Results.from_dict(content)
    assert read.to_dict() == content
    assert read.extra == {"copies": {"same_row": 1.0}}
    assert (read.training.init, read.training.images) == (None, None)
    assert "images" not in read.to_dict()["training"]
    more = read.training.with_extra({"images": 7, "views": ["Hol"]})
    assert (more.images, more.extra["views"], more.extra["basis"]) == (7, ["Hol"], None)
