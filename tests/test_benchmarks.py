"""Benchmarks: pages from kept results, plans of what to run, and the runner."""

import importlib
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PEOPLE, CIFAR = ("oskt", "fd", "compression"), ("ptl", "kdep")
SPEEDS = ("input_pipeline", "evaluation", "oskt_speed", "fd_speed", "ptl_speed", "kdep_speed", "index_search")


@pytest.fixture
def load(monkeypatch):
    """`load(name)`: a module of the benchmarks."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


# Pages.


@pytest.mark.parametrize("name", [*PEOPLE, *CIFAR])
def test_page_of_an_experiment_is_rendered_from_its_results(load, tmp_path, name):
    load("runner").render(load(name).BENCHMARK, BENCHMARKS / name, out=tmp_path)
    assert (tmp_path / "README.md").read_text() == (BENCHMARKS / name / "README.md").read_text()
    assert (tmp_path / "accuracy.png").stat().st_size > 10_000


@pytest.mark.parametrize("name", SPEEDS)
def test_page_of_a_speed_is_rendered_from_its_results(load, name):
    page = load("render").page(load(name).BENCHMARK.page(load("speed").read(BENCHMARKS / name)))
    assert page == (BENCHMARKS / name / "README.md").read_text()


def test_commands_of_pages_can_be_run(load):
    names = {*load("run").EXPERIMENTS, *load("run").SPEEDS}
    for page in BENCHMARKS.glob("*/README.md"):
        said = re.findall(r"(\S+\.py)(?: (\w+))?", page.read_text())
        assert said
        for script, name in said:
            assert script.strip("`") in ("benchmarks/run.py", "run.py")
            assert name in names


def test_cells_over_seeds(load):
    words, table = load("words"), load("render").Table
    runs = {"a": [{"metrics": {"mAP": value, "rank1": 0.5}} for value in (0.1, 0.3)], "b": []}
    cells = table({"figures": "mAP / rank-1"}, {"a": "one", "b": "two"}, lambda row, _: words.retrieval(runs[row]), "x")
    assert str(cells).splitlines() == [
        "| x | mAP / rank-1 |", "|---|---:|", "| one | 20.0 ± 14.1 / 50.0 |", "| two | - |"
    ]  # fmt: skip


def test_an_old_command_is_shown_as_called_now(load):
    said = load("words").command
    assert said({"command": "oskt.py --one res50-s1.oskt"}) == "benchmarks/run.py oskt --one res50-s1.oskt"
    assert said({"command": "benchmarks/fd_speed.py"}) == "benchmarks/run.py fd_speed"
    assert said({"command": "benchmarks/run.py fd --one a.py"}) == "benchmarks/run.py fd --one a.py"


# Plans.


@pytest.fixture
def proof(load, tmp_path):
    """`proof(name, **options)`: an experiment, and options whose folders are empty."""

    def options_of(name: str, seeds=(0,), **own):
        own = {"cifar_dir": None, "people_teacher": None, "cifar10_teacher": None, **own}
        folders = {"work": tmp_path / "work", "out": tmp_path / "results"}
        experiment = load(name).BENCHMARK
        return experiment, load("experiment").Options(**folders, data_dir="x", dataset_name="x", seeds=seeds, own=own)

    return options_of


@pytest.fixture
def plan(load):
    """`plan(experiment, options, *patterns)`: what is left to run."""
    return lambda experiment, options, *only: load("runner").plan(experiment.rows(options), options, only or ["*"])


def leave(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "results.json").write_text(json.dumps({"metrics": {"mAP": 0.5}}))


def assert_in_order(plan: dict[str, list[str]]) -> None:
    """Every row can run: the rows that it needs are planned, without cycles."""
    done = set()
    while len(done) < len(plan):
        ready = {name for name, needs in plan.items() if done.issuperset(needs)} - done
        assert ready, plan
        done |= ready


def test_kdep_runs_every_alignment_under_its_own_name(proof, plan, load):
    experiment, options = proof("kdep", cifar_dir="x", seeds=[0, 1])
    left, rows = plan(experiment, options), {row.name: row for row in experiment.rows(options)}
    assert_in_order(left)
    assert left.keys() == rows.keys()
    did = {name: row.stages[0].keywords for name, row in rows.items()}
    calls = {name: row.stages[0].args[0] for name, row in rows.items()}
    recipes = load("stages").recipe
    for kind, least in (("people", 10), ("cifar10", 1)):
        supervise = "train" if kind == "people" else "classify"
        for align in load("kdep").ALIGNMENTS:
            assert (calls[f"{kind}.pre-{align}"], did[f"{kind}.pre-{align}"]["align"]) == ("pretrain", align)
            name = f"{kind}.{align}-{least}-seed1"
            tuned = did[name]
            assert calls[name] == supervise
            assert "learning_rate" not in tuned["set"]
            assert (tuned["model"], tuned["seed"]) == (str(options.work / f"{kind}.pre-{align}"), 1)
            assert tuned["keep_ids" if kind == "people" else "keep"] == least / 100
        assert did[f"{kind}.pre-supervised"]["recipe"].endswith("supervised")
        backbone = str(options.work / f"{kind}.pre-supervised") + ("/backbone" if kind == "cifar10" else "")
        for name, slowly in ((f"{kind}.supervised-{least}", False), (f"{kind}.supervised-slow-{least}", True)):
            rate = did[name]["set"].get("learning_rate")
            assert did[name]["model"] == backbone
            assert rate == (recipes(did[name]["recipe"]).learning_rate / 10 if slowly else None)
        assert did[f"{kind}.svd+pts-slow-{least}"]["model"] == did[f"{kind}.svd+pts-100"]["model"]
        few, all_labels = (did[f"{kind}.scratch-{share}"]["epochs"] for share in (least, 100))
        assert few > all_labels
        assert did[f"{kind}.teacher"]["model"] == "res50-s5"
    made = options.work / "cifar10.pre-supervised"
    stripped = [stage.args for row in rows.values() for stage in row.stages[1:]]
    assert stripped == [(made, made / "backbone")]


def test_kdep_compares_starts_of_one_network(proof, monkeypatch):
    """Strides, cropped margins, normalisation and neck are equal, whatever the recipes of the steps prescribe."""
    from reid_hub.runs.models import model_to_train

    experiment, options = proof("kdep", cifar_dir="x")
    found = []

    def begin(settings):
        config = model_to_train(settings).config.to_dict()
        found.append({name: value for name, value in config.items() if name not in ("lineage", "auto_map")})

    monkeypatch.setattr("reid_hub.runs.kdep.pretrain", begin)
    monkeypatch.setattr("reid_hub.runs.train.train", begin)
    monkeypatch.setattr("reid_hub.runs.classify.classify", begin)
    rows = {row.name: row for row in experiment.rows(options)}
    for kind, least in (("people", 10), ("cifar10", 1)):
        found.clear()
        for start in (f"scratch-{least}", "pre-supervised", "pre-svd+pts"):
            rows[f"{kind}.{start}"].stages[0]()
        assert len(found) == 3
        assert found[0] == found[1] == found[2]


def test_kdep_trains_again_only_what_a_row_needs(proof, plan):
    experiment, options = proof("kdep")
    whole = plan(experiment, options)
    leave(options.out, *(name for name in whole if name != "people.svd-10"))
    assert plan(experiment, options) == {
        "people.teacher": [], "people.pre-svd": ["people.teacher"], "people.svd-10": ["people.pre-svd"]
    }  # fmt: skip
    leave(options.work, "people.pre-svd")
    assert plan(experiment, options) == {"people.svd-10": []}
    _, given = proof("kdep", people_teacher="teacher")
    assert "people.teacher" not in plan(experiment, given)


def test_ptl_distills_from_the_models_in_the_work_folder(proof, plan):
    experiment, options = proof("ptl", seeds=[1])
    beside = {f"res18-x0.25.{arm}" for arm in ("memory", "forgets", "plain", "memory-v2")}
    _, both = proof("ptl", seeds=[0, 1])
    left = plan(experiment, both, "*.std-seed1")
    assert_in_order(left)
    assert set(left) == {*beside, "res18-x0.25.std-seed1"}
    assert set(left["res18-x0.25.std-seed1"]) == beside
    leave(options.out, *beside)
    assert set(plan(experiment, both, "*.std-seed1")) == set(left)  # their figures are known, their weights are gone
    leave(options.work, *beside)
    assert plan(experiment, both, "*.std-seed1") == {"res18-x0.25.std-seed1": []}


def test_fd_trains_again_only_what_a_row_needs(proof, plan):
    experiment, options = proof("fd", seeds=[0, 1])
    arms = [f"*.{arm}{seed}" for arm in ("control", "hol", "hol-g1") for seed in ("", "-seed1")]
    left = plan(experiment, options, *arms)
    assert_in_order(left)
    leave(options.out, *(name for name in left if name != "squeezenet.hol-seed1"))
    needed = {"squeezenet.initial", "res18-x0.25.initial", "squeezenet.hol-seed1"}
    assert set(plan(experiment, options, *arms)) == needed
    for name in ("squeezenet.initial", "res18-x0.25.initial"):
        leave(options.work / name, "initial")
    assert plan(experiment, options, *arms) == {"squeezenet.hol-seed1": []}


def test_oskt_starts_every_student_from_the_source_of_its_arm(proof, plan):
    experiment, options = proof("oskt")
    left = plan(experiment, options)
    assert_in_order(left)
    assert left["res50-s2.oskt"] == ["res50-s5.chain8"]
    assert left["res50-s2.oskt-own"] == ["res50-s5.chain-res50-s2"]
    assert left["res50-s3.oskt"] == ["res50-s5.chain16"]
    assert left["res50-s1.depgraph"] == ["res50-s5.sparse"]
    assert left["res50-s1.scratch"] == []
    assert "res50-s1.oskt-own" not in left
    assert plan(experiment, options, "*.scratch*").keys() == {name for name in left if ".scratch" in name}


def test_compression_makes_every_result_that_is_kept(proof, load, monkeypatch):
    """The results beside the page are those that the rows declare."""
    monkeypatch.setattr(load("stages"), "describe", lambda model: ("res50-s3", 512))
    experiment, options = proof("compression", model="m", epochs=3, heads=list(load("compression").HEADS))
    made = {name for row in experiment.rows(options) for name in row.results}
    assert made == {path.parent.name for path in (BENCHMARKS / "compression").glob("*/results.json")}


@pytest.mark.parametrize("scale", ["small", "full"])
@pytest.mark.parametrize("name", [*PEOPLE[:2], *CIFAR])
def test_settings_of_every_stage_are_known(proof, load, name, scale):
    """Settings are built, nothing is run; rows start from folders in which other rows leave their models."""
    experiment, options = proof(name, cifar_dir="x")
    rows = list(experiment.rows(replace(options, scale=scale)))
    folders = {str(folder) for row in rows for folder in (row.folder, row.folder / "start", row.folder / "backbone")}
    for row in rows:
        for stage in row.stages:
            if stage.func is load("stages").run:
                name, options = stage.args[0], stage.keywords
                settings = load("stages").settings_of(name, **options).values()
                assert settings["model"] in folders or "/" not in settings["model"]
                assert settings["resume"]
                assert settings.get("validation", 0) == 0


# The runner, with processes.

TINY = '''
import json, os, random, time
from functools import partial
from pathlib import Path
from experiment import Experiment, seeded
from render import Panel, Plot, Series, Table
from words import retrieval, score

def train(out, seed, start=None, epochs=4, **_):
    """Adds a random number per epoch; resumes from its checkpoint."""
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / "checkpoint.json"
    begun = json.loads(checkpoint.read_text()) if checkpoint.is_file() else []
    first = json.loads((start / "results.json").read_text())["metrics"]["mAP"] if start else 0
    values = list(begun)
    for epoch in range(len(begun), epochs):
        if os.environ.get("TINY_STOP") == f"{out.name}:{epoch}":
            os._exit(3)
        values.append(random.Random(f"{seed} {epoch}").random() / 10)
        checkpoint.write_text(json.dumps(values))
    metrics = {"mAP": first + sum(values), "rank1": 0.5}
    about = {"resumed_at": len(begun), "began": time.time(), "precision": "float32"}
    results = {"metrics": metrics, "training": about, "cost": {"latency_device": "CPU"}, "command": "run.py tiny"}
    (out / "results.json").write_text(json.dumps(results))

def rows(options):
    for seed in options.seeds:
        for arm in ("plain", "taught"):
            name = seeded(f"net.{arm}", seed)
            more = {"start": options.work / "net.teacher"} if arm == "taught" else {}
            needs = ["net.teacher"] if arm == "taught" else []
            yield options.row(name, partial(train, **options.settings(name, **more)), needs=needs)
    yield options.row("net.teacher", partial(train, **options.settings("net.teacher")), wanted=False)

def page(runs, scale):
    yield Table({"figures": "mAP / rank-1"}, {name: name for name in runs}, lambda name, _: retrieval(runs[name]))

def plot(runs, scale):
    return Plot([Panel([Series([(x, score(found)) for x, found in enumerate(runs.values())], bars=True)], {})], (3, 2))

BENCHMARK = Experiment("tiny", "A tiny one.", "Tiny", rows, page, plot, {"small": None})
'''


def drawn(seed: int, first: int = 0, last: int = 4) -> float:
    """The sum that the tiny training adds."""
    import random

    return sum(random.Random(f"{seed} {epoch}").random() / 10 for epoch in range(first, last))


@pytest.fixture
def tiny(tmp_path):
    """`tiny(*words, stop=...)`: run the command of a tiny benchmark; `stop`: row and epoch where a process dies."""
    (tmp_path / "tiny.py").write_text(TINY)
    paths = [str(tmp_path), str(BENCHMARKS.parent), os.environ.get("PYTHONPATH", "")]
    folders = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]

    def run(*words: str, stop: str = "") -> subprocess.CompletedProcess:
        command = [sys.executable, str(BENCHMARKS / "run.py"), "tiny", *words, *folders]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TINY_STOP": stop}
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    return run


def results_of(folder: Path) -> dict[str, dict]:
    return {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/results.json")}


def test_rows_run_in_order_and_a_failed_one_is_named_and_resumed(tiny, tmp_path):
    words = ("--data-dir", "x", "--seeds", "0", "1", "--workers", "2")
    failed = tiny(*words, stop="net.teacher:2")
    assert failed.returncode != 0
    assert "failed: net.teacher; not started without them: net.taught, net.taught-seed1" in failed.stderr
    assert "FAILED" in failed.stdout
    assert results_of(tmp_path / "out").keys() == {"net.plain", "net.plain-seed1"}

    again = tiny(*words)
    assert again.returncode == 0, again.stderr
    found = results_of(tmp_path / "out")
    assert found.keys() == {"net.teacher", "net.plain", "net.plain-seed1", "net.taught", "net.taught-seed1"}
    assert found["net.teacher"]["training"]["resumed_at"] == 2
    assert found["net.taught"]["training"]["began"] > found["net.teacher"]["training"]["began"]
    for seed, name in ((0, "net.taught"), (1, "net.taught-seed1")):
        assert found[name]["metrics"]["mAP"] == pytest.approx(drawn(0) + drawn(seed))
    assert "net.plain: started" not in again.stdout  # it was measured by the first call
    assert f"| net.plain | {50 * (drawn(0) + drawn(1)):.1f} ± " in (tmp_path / "out" / "README.md").read_text()
    assert (tmp_path / "out" / "accuracy.png").is_file()

    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/results.json")}
    nothing = tiny(*words)
    assert "started" not in nothing.stdout
    assert kept == {path: path.stat().st_mtime_ns for path in kept}


def test_only_what_is_asked_for_is_run(tiny, tmp_path):
    assert tiny("--data-dir", "x", "--only", "*.plain").returncode == 0
    assert results_of(tmp_path / "out").keys() == {"net.plain"}
    assert tiny("--data-dir", "x", "--one", "net.none").stderr.startswith("tiny has no row 'net.none', only net.plain")
    refused = tiny()
    assert refused.returncode == 2
    assert "--data-dir is needed" in refused.stderr


def test_render_needs_results(tiny):
    assert "nothing measured" in tiny("--render").stderr


SPEED = """
import argparse
from speed import Speed, step_options, step_settings, take_turns, written_by

def measure(options):
    calls = []
    turns = take_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, options.rounds)
    return {"calls": "".join(calls), "rounds": len(turns["a"])}

BENCHMARK = Speed("quick", "A quick one.", lambda options: {"turns": measure},
                  lambda results: ["# Quick", results["figures"]["calls"], written_by(results)],
                  step_options(rounds=2), step_settings)
"""


def test_parts_of_a_speed_take_turns_and_are_kept(load, tmp_path, monkeypatch):
    (tmp_path / "quick.py").write_text(SPEED)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(BENCHMARKS.parent)]))
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ["--rounds", "3", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["benchmarks/run.py", "quick", *words])
    load("speed").run_speed(load("quick").BENCHMARK, words)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["figures"] == {"calls": "abababab", "rounds": 3}
    assert results["setting"] == {"batch": 32, "image_size": [256, 128], "rounds": 3}
    assert "`benchmarks/run.py quick --rounds 3" in (tmp_path / "out" / "README.md").read_text()
