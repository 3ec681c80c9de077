"""What the proofs plan to run, from folders that hold what earlier sessions left."""

import argparse
import importlib
import json
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def proof(monkeypatch, tmp_path):
    """`proof(script, **options)`: its module, and options whose folders are empty."""
    monkeypatch.syspath_prepend(str(SCRIPTS))

    def load(script: str, **options):
        folders = {"results": tmp_path / "results", "work": tmp_path / "work"}
        common = {"scale": "small", "seeds": [0], "cifar_dir": None, "data_dir": "x", "dataset_name": "x"}
        return importlib.import_module(script), argparse.Namespace(**{**common, **folders, **options})

    return load


def leave(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "results.json").write_text(json.dumps({"metrics": {"mAP": 0.5}}))


def assert_in_order(plan: dict[str, list[str]]) -> None:
    """Everything can be run: what it needs is planned, and never waits for itself."""
    done = set()
    while len(done) < len(plan):
        ready = {name for name, needs in plan.items() if done.issuperset(needs)} - done
        assert ready, plan
        done |= ready


def kdep(proof, **options):
    return proof("kdep", **{"people_teacher": None, "cifar10_teacher": None, **options})


def test_kdep_runs_every_alignment_as_what_it_is(proof, monkeypatch):
    script, options = kdep(proof, cifar_dir="x", seeds=[0, 1])
    plan, did, trunks = script.plan(options), {}, []
    monkeypatch.setattr(script, "keep", lambda *_: None)
    monkeypatch.setattr(script, "save_trunk", lambda classifier, folder: trunks.append((classifier, folder)))
    monkeypatch.setattr(script, "supervise", lambda kind, fields, slowly=False: did.update({name: (fields, slowly)}))
    monkeypatch.setattr(script, "pretrain_from_teacher", lambda kind, align, common, options: did.update({name: align}))
    for name in plan:
        script.execute(name, options)
    assert_in_order(plan)
    assert did.keys() == plan.keys()
    for kind, least in (("people", 10), ("cifar10", 1)):
        for align in script.ALIGNMENTS:
            assert did[f"{kind}.pre-{align}"] == align
            tuned, slowly = did[f"{kind}.{align}-{least}-seed1"]
            assert not slowly
            assert (tuned["model"], tuned["seed"]) == (str(options.work / f"{kind}.pre-{align}"), 1)
            assert tuned["keep_ids" if kind == "people" else "keep"] == least / 100
        assert did[f"{kind}.pre-supervised"][0]["recipe"].endswith("supervised")
        trunk = str(options.work / f"{kind}.pre-supervised") + ("/trunk" if kind == "cifar10" else "")
        for name, expected in ((f"{kind}.supervised-{least}", False), (f"{kind}.supervised-slow-{least}", True)):
            fields, slowly = did[name]
            assert (fields["model"], slowly) == (trunk, expected)
        assert did[f"{kind}.svd+pts-slow-{least}"][0]["model"] == did[f"{kind}.svd+pts-100"][0]["model"]
        few, all_labels = (did[f"{kind}.scratch-{share}"][0]["epochs"] for share in (least, 100))
        assert few > all_labels
        assert did[f"{kind}.teacher"][0]["model"] == "res50-s5"
    made = options.work / "cifar10.pre-supervised"
    assert trunks == [(made, made / "trunk")]


def test_kdep_compares_starts_of_one_network(proof, monkeypatch):
    """Whatever the recipes of the steps prescribe: strides, what is cut off, normalisation, neck."""
    from reid_hub.runs.models import model_to_train
    from reid_hub.training import RECIPES, override

    script, options = kdep(proof, cifar_dir="x")
    found = []

    def begin(settings):
        recipe = override(RECIPES[settings.recipe], settings.changes)
        config = model_to_train(settings, recipe).config.to_dict()
        found.append({name: value for name, value in config.items() if name not in ("lineage", "auto_map")})

    monkeypatch.setattr(script, "keep", lambda *_: None)
    monkeypatch.setattr(script, "save_trunk", lambda *_: None)
    monkeypatch.setattr("reid_hub.runs.kdep.pretrain", begin)
    monkeypatch.setattr("reid_hub.runs.train.train", begin)
    monkeypatch.setattr("reid_hub.runs.classify.classify", begin)
    for kind, least in (("people", 10), ("cifar10", 1)):
        found.clear()
        for start in (f"scratch-{least}", "pre-supervised", "pre-svd+pts"):
            script.execute(f"{kind}.{start}", options)
        assert len(found) == 3
        assert found[0] == found[1] == found[2]


def test_kdep_trains_again_only_what_something_starts_from(proof):
    script, options = kdep(proof)
    whole = script.plan(options)
    leave(options.results, *(name for name in whole if name != "people.svd-10"))
    assert script.plan(options) == {
        "people.teacher": [], "people.pre-svd": ["people.teacher"], "people.svd-10": ["people.pre-svd"]
    }  # fmt: skip
    leave(options.work, "people.pre-svd")
    assert script.plan(options) == {"people.svd-10": []}
    _, given = kdep(proof, people_teacher="teacher")
    assert "people.teacher" not in script.plan(given)


def test_ptl_distills_from_what_lies_in_the_work_folder(proof):
    script, options = proof("ptl", arms=["std"], seeds=[1])
    beside = {f"res18-x0.25.{arm}" for arm in ("memory", "forgets", "plain", "memory-v2")}
    plan = script.plan(options)
    assert_in_order(plan)
    assert set(plan) == {*beside, "res18-x0.25.std-seed1"}
    assert set(plan["res18-x0.25.std-seed1"]) == beside
    leave(options.results, *beside)
    assert set(script.plan(options)) == set(plan)  # their figures are known, their weights are gone
    leave(options.work, *beside)
    assert script.plan(options) == {"res18-x0.25.std-seed1": []}


def test_fd_trains_again_only_what_something_starts_from(proof):
    script, options = proof("fd", arms=["control", "hol", "hol-g1"], students=None, seeds=[0, 1])
    plan = script.plan(options)
    assert_in_order(plan)
    leave(options.results, *(name for name in plan if name != "squeezenet.hol-seed1"))
    assert set(script.plan(options)) == {"squeezenet.initial", "res18-x0.25.initial", "squeezenet.hol-seed1"}
    for name in ("squeezenet.initial", "res18-x0.25.initial"):
        leave(options.work / name, "initial")
    assert script.plan(options) == {"squeezenet.hol-seed1": []}
