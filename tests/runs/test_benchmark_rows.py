"""Rows of the benchmarks run for real, on drawn people and drawn classes, one epoch each."""

import importlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
BATCH = {"batch_size": 8, "num_instances": 2}
SHORT = {
    "oskt": {
        "students": {"res50-s1": 8, "res50-s2": 8}, "image_size": (64, 32), "teacher_epochs": 1, "refine_epochs": 1,
        "student_epochs": 1,
    },
    "fd": {
        "initial_epochs": 1, "teacher_epochs": 1, "student_epochs": 1,
        "changes": BATCH,
    },
    "ptl": {
        "image_size": (64, 32), "epochs": 1, "changes": BATCH, "cifar_keep": 1.0, "cifar_epochs": 1,
        "cifar_blocks": (1, 1, 1),
    },
    "kdep": {
        "teacher": "res18-x0.25", "sizes": {"people": (64, 32), "cifar10": (32, 32)},
        "teacher_epochs": {"people": 1, "cifar10": 1}, "epochs": {"people": 1, "cifar10": 1},
        "tuning_epochs": {"people": (1,), "cifar10": (1,)}, "crops": 1, "pretraining": {},
        "networks": {"people": {"batch_size": 8}, "cifar10": {"batch_size": 8}},
    },
}  # fmt: skip
ROWS = {
    "oskt": ["res50-s1.oskt", "res50-s1.wtsel", "res50-s1.depgraph", "res50-s1.scratch", "res50-s2.oskt-own"],
    "fd": ["res18-x0.25.control", "res18-x0.25.hol-g1"],
    "ptl": ["res18-x0.25.none", "res18-x0.25.std", "cifar10.memory"],
    "kdep": ["people.scratch-100", "people.pre-relu-100", "people.supervised-slow-100", "cifar10.supervised-100",
             "cifar10.pre-relu-100"],
}  # fmt: skip


@pytest.fixture(scope="session")
def classes(tmp_path_factory):
    """A folder of three classes by colour, laid out as CIFAR-10 in folders: 24 images each to train on, 3 to test."""
    root, rng = tmp_path_factory.mktemp("classes"), np.random.default_rng(0)
    for name in ("ape", "cat", "dog"):
        colour = rng.integers(40, 216, 3)
        for split, count in (("train", 24), ("test", 3)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(colour + rng.normal(0, 25, (32, 32, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.jpg", "PNG")
    return root


@pytest.fixture
def load(monkeypatch):
    """`load(name)`: a module of the benchmarks."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture
def run_rows(load, people, tmp_path):
    """`run_rows(module, wanted, **own)`: run these rows and write the page."""

    def run(module, wanted, **own):
        runner = load("runner")
        folders = {"work": tmp_path / "work", "out": tmp_path / "out", "data_dir": str(people[3])}
        options = load("experiment").Options(**folders, dataset_name="coloured", own=own)
        rows = {row.name: row for row in module.BENCHMARK.rows(options)}
        left = runner.plan(rows.values(), options, wanted)
        assert {*wanted} <= left.keys()
        for row in left:
            runner.execute(rows[row], options)
        made = {name for row in left for name in rows[row].results}
        assert {path.parent.name for path in options.out.glob("*/results.json")} == made
        assert runner.plan(rows.values(), options, wanted) == {}
        runner.render(module.BENCHMARK, options.out)
        assert "coloured" in (options.out / "README.md").read_text()

    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_rows_run_and_their_page_is_written(name, load, run_rows, classes, monkeypatch):
    if name == "oskt":
        pytest.importorskip("torch_pruning")
    module = load(name)
    monkeypatch.setitem(module.SCALES, "small", replace(module.SCALES["small"], **SHORT[name]))
    for kind in ("people", "cifar10") if name == "kdep" else ():
        monkeypatch.setitem(module.SHARES, kind, (100,))  # few labels of eight people are none
    for changes in ("CLASSIFICATION", "OWN_RATE") if name == "oskt" else ():
        monkeypatch.setattr(module, changes, {**getattr(module, changes), **BATCH})
    run_rows(module, ROWS[name], cifar_dir=str(classes), people_teacher=None, cifar10_teacher=None)


@pytest.mark.slow
def test_rows_of_compression_run_and_their_page_is_written(load, run_rows, people, tmp_path, monkeypatch):
    from reid_hub.training import RECIPES

    monkeypatch.setitem(RECIPES, "compress-bot", replace(RECIPES["compress-bot"], **BATCH))
    model = tmp_path / "model"
    options = {"data": "market_layout", "data_dir": people[3], "model": "res18-x0.25", "image_size": (32, 16)}
    load("stages").run("train", out=model, **options, recipe="bot", epochs=1, set=BATCH)
    variant, full = load("stages").describe(str(model))
    wanted = [f"{variant}.{row}" for row in ("none", "random-int8", "matryoshka", f"slice-{full}", "binary+int8")]
    heads = ["none", "random", "matryoshka", "slice"]
    run_rows(load("compression"), wanted, model=str(model), epochs=1, heads=heads)
