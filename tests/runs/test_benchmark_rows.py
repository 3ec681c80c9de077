"""Rows of the benchmarks run for real, on coloured people and for an epoch each."""

import importlib
from dataclasses import replace
from pathlib import Path

import pytest

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
    "ptl": {"image_size": (64, 32), "epochs": 1, "changes": BATCH},
    "kdep": {
        "teacher": "res18-x0.25", "sizes": {"people": (64, 32)}, "teacher_epochs": {"people": 1},
        "epochs": {"people": 1}, "tuning_epochs": {"people": (1,)}, "crops": 1, "pretraining": {},
        "networks": {"people": {"batch_size": 8}},
    },
}  # fmt: skip
ROWS = {
    "oskt": ["res50-s1.oskt", "res50-s1.wtsel", "res50-s1.scratch", "res50-s2.oskt-own"],
    "fd": ["res18-x0.25.control", "res18-x0.25.hol-g1"],
    "ptl": ["res18-x0.25.none", "res18-x0.25.std"],
    "kdep": ["people.scratch-100", "people.pre-relu-100", "people.supervised-slow-100"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_rows_run_and_their_page_is_written(name, people, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module, runner = importlib.import_module(name), importlib.import_module("runner")
    monkeypatch.setitem(module.SCALES, "small", replace(module.SCALES["small"], **SHORT[name]))
    if name == "kdep":
        monkeypatch.setitem(module.SHARES, "people", (100,))  # few labels of eight people are none
    for changes in ("CLASSIFICATION", "OWN_RATE") if name == "oskt" else ():
        monkeypatch.setattr(module, changes, {**getattr(module, changes), **BATCH})
    options = importlib.import_module("experiment").Options(
        tmp_path / "work", tmp_path / "out", data_dir=str(people[3]), dataset_name="coloured",
        own={"cifar_dir": None, "people_teacher": None},
    )  # fmt: skip
    rows = {row.name: row for row in module.BENCHMARK.rows(options)}
    left = runner.plan(rows.values(), options, ROWS[name])
    assert {*ROWS[name]} <= left.keys()
    for row in left:
        runner.execute(rows[row], options)
    assert {path.parent.name for path in options.out.glob("*/results.json")} == left.keys()
    assert runner.plan(rows.values(), options, ROWS[name]) == {}
    runner.render(module.BENCHMARK, options.out)
    assert "coloured" in (options.out / "README.md").read_text()
