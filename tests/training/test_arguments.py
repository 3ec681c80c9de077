"""Defaults of the examples: the demo's on drawn data, the published experiment's on all others."""

import runpy
import sys
from pathlib import Path

import pytest

from reid_hub.cli import examples

EXAMPLES = Path(__file__).parents[2] / "examples"


def settings(monkeypatch, example, *words):
    """The settings with which an example would begin its work."""
    seen, parse = [], examples.parse

    def note(*args, **options):
        seen.append(parse(*args, **options))
        return seen[-1]

    monkeypatch.setattr(examples, "parse", note)
    monkeypatch.setattr(sys, "argv", [example, *words])
    # There is no such folder, so that each stops at its data, and says so in a line.
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(EXAMPLES / f"{example}.py"), run_name="__main__")
    assert stopped.value.code == 2
    return seen[-1] if seen else None


def options(monkeypatch, example, *words):
    return settings(monkeypatch, example, *words).values()


@pytest.mark.parametrize(
    ("example", "words", "expected"),
    [
        ("fd_teachers", [], {"recipe": "fd-student", "view": ["all"], "image_size": [256, 128], "backbone": "res101"}),
        ("fd_teachers", ["--view", "Hol", "--recipe", "fd-demo"], {"recipe": "fd-demo", "view": ["Hol"]}),
        ("ptl_finetune", [], {"backbone": "res50", "recipe": "ptl", "image_size": [256, 128]}),
        ("ptl_finetune", ["--backbone", "mgn"], {"recipe": "ptl-mgn", "image_size": [384, 128]}),
        ("kdep_pretrain", ["--teacher", "nowhere"], {"recipe": "kdep", "model": "res18", "image_size": [224, 224]}),
        ("kdep_pretrain", ["--teacher", "nowhere", "--recipe", "kdep-people"], {"image_size": [256, 128]}),
        ("kdep_transfer", ["--model", "res18"], {"recipe": "bot", "keep_ids": 1.0, "image_size": [256, 128]}),
    ],
)
def test_with_data_of_its_own_an_example_is_the_published_experiment(monkeypatch, tmp_path, example, words, expected):
    monkeypatch.chdir(tmp_path)
    found = options(monkeypatch, example, "--data", "market1501", "--data-dir", "nowhere", *words)
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("example", "words", "expected"),
    [
        ("ptl_cifar", ["--data", "cifar100"], {"backbone": "densenet-bc-100", "recipe": "cifar", "image_size": None}),
        (
            "kdep_transfer",
            ["--data", "dtd", "--task", "classification", "--model", "res18"],
            {"recipe": "transfer", "evaluate_every": 5},
        ),
        ("ptl_transfer", ["--order", "duke", "market"], {"backbone": "densenet161", "recipe": "ptl"}),
    ],
)
def test_general_images_and_several_data_sets_are_the_published_experiment(
    monkeypatch, tmp_path, example, words, expected
):
    monkeypatch.chdir(tmp_path)
    found = options(monkeypatch, example, "--data-dir", "nowhere", *words)
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], {"data": "synthetic", "recipe": "demo", "keep_ids": 0.1, "image_size": [128, 64], "model": None}),
        (["--keep-ids", "0.5"], {"keep_ids": 0.5}),
        (["--task", "classification"], {"data": "shapes", "recipe": "classify-demo", "keep_ids": 1.0}),
    ],
)
def test_on_drawn_data_an_example_is_the_demo(monkeypatch, words, expected):
    monkeypatch.setattr(sys, "argv", ["kdep_transfer", *words])
    example = runpy.run_path(str(EXAMPLES / "kdep_transfer.py"))
    demo = {"model": None, "image_size": examples.SMALL}
    found = examples.parse(example["TuneSettings"], None, example["published"], example["drawn"], **demo).values()
    assert {name: found[name] for name in expected} == expected


def test_values_of_a_recipe_add_up_and_options_of_another_task_are_refused(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    found = options(
        monkeypatch, "kdep_pretrain", "--data", "pictures", "--data-dir", "nowhere", "--teacher", "nowhere", "--set",
        "learning_rate=0.01", "weight_decay=0", "--set", "batch_size=8", "--arg", "bf16=true", "--arg", "use_cpu=true",
        "--seed", "1", "--seed", "2", "--image-size", "1", "2", "--image-size", "64", "32",
    )  # fmt: skip
    assert (found["arg"], found["seed"], found["image_size"]) == ({"bf16": True, "use_cpu": True}, 2, [64, 32])
    assert found["set"] == {"learning_rate": 0.01, "weight_decay": 0, "batch_size": 8}
    assert "Error: a teacher is a trained model" in capsys.readouterr().err
    for words, said in (
        (["--task", "classification", "--keep-ids", "0.3"], "--keep-ids does not belong to --task classification"),
        (["--keep", "0.2"], "--keep does not belong to --task reid"),
        (["--evaluate-every", "2"], "--evaluate-every does not belong to --task reid"),
        (["--views", "Hol"], "unrecognized arguments: --views Hol"),
        (["--set", "learning_rate"], "argument --set: "),
    ):
        settings(monkeypatch, "kdep_transfer", "--data", "dtd", "--data-dir", "nowhere", *words)
        assert said in capsys.readouterr().err


def test_the_data_sets_of_a_transfer_are_those_of_its_order(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    for words in (["--data", "market1501"], ["--dataset-name", "mine"], ["--data-option", "camera=c"]):
        settings(monkeypatch, "ptl_transfer", "--order", "duke", *words)
        assert "the data sets are those of --order" in capsys.readouterr().err
