"""Galleries of codes and the decision match or no match, as commands."""

import json
import re
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from reid_hub import GalleryIndex, load_reid_dataset
from reid_hub.cli import app
from reid_hub.evaluation import embed
from reid_hub.runs.models import open_model


def run(*words) -> str:
    result = CliRunner().invoke(app, list(map(str, words)))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def model(people, short, teacher, tmp_path_factory):
    """Eight numbers of one byte, calibrated."""
    out = tmp_path_factory.mktemp("compressed")
    run("compress", "--model", teacher, *people, *short, "--head", "low_rank", "--dim", 8, "--int8", "--out", out)
    folder = out / "low_rank-8-int8"
    said = run("calibrate", folder, *people, "--false-match-rate", 0.05)
    return folder, said


def test_a_decision_is_kept_with_the_model_and_holds_on_its_pairs(model, people):
    folder, said = model
    decision = json.loads((folder / "config.json").read_text())["decision"]
    assert json.loads((folder / "results.json").read_text())["metrics"]["mAP"] >= 0
    assert f"distance {decision['threshold']:.4f} (int8)" in said
    splits = load_reid_dataset("market_layout", people[3])
    query, gallery = (embed(open_model(folder), splits[part], flip=True) for part in ("query", "gallery"))
    unit = [part.embeddings / np.linalg.norm(part.embeddings, axis=1, keepdims=True) for part in (query, gallery)]
    distances, same = 1 - unit[0] @ unit[1].T, query.pids[:, None] == gallery.pids
    pairs = {"false": ~same, "true": same & (query.camids[:, None] != gallery.camids)}
    for name, which in pairs.items():
        below, above = ((distances[which] <= decision["threshold"] + shift).mean() for shift in (-1e-6, 1e-6))
        assert below <= decision[f"{name}_match_rate"] <= above
    assert decision["false_match_rate"] <= 0.05
    card = (folder / "README.md").read_text()
    assert f"cosine distance up to {decision['threshold']:.4f}" in card


@pytest.mark.parametrize("codec", [None, "float32", "float16", "int8", "binary", "binary+int8"])
def test_a_gallery_of_codes_is_searched_and_decided(model, people, codec, tmp_path):
    folder, _ = model
    gallery = people[3] / "bounding_box_test"
    built = run("index", "build", gallery, "--model", folder, "--out", tmp_path / "index",
                *(("--codec", codec) if codec else ()))  # fmt: skip
    assert "12 images, 12 of them new, 0 skipped" in built
    index = GalleryIndex.load(tmp_path / "index")
    assert index.codec.name == (codec or "int8").partition("+")[0]
    query = sorted(gallery.glob("*.jpg"))[0]
    plot = ("--gallery", gallery, "--plot", tmp_path / "answer.png")
    said = run("search", tmp_path / "index", query, "--model", folder, "--top", "50", *plot)
    rows = re.findall(r"^ +\d+  ([\d.]+)  (\S+)(?:  (match|no match))?$", said, re.MULTILINE)
    assert len(rows) == len(index)
    assert rows[0][1] == query.name
    assert float(rows[0][0]) == pytest.approx(0, abs=1e-3)
    threshold = json.loads((folder / "config.json").read_text())["decision"]["threshold"]
    if codec == "binary":
        assert {verdict for *_, verdict in rows} == {""}
        assert "none of Hamming distances" in said
    else:
        for distance, _, verdict in rows:
            if abs(float(distance) - threshold) > 1e-4:
                assert verdict == ("match" if float(distance) < threshold else "no match")
    assert (tmp_path / "answer.png").stat().st_size > 1000


def test_a_decision_for_mirrored_vectors_is_not_used_for_others(model, people, tmp_path):
    folder, _ = model
    gallery = people[3] / "bounding_box_test"
    run("index", "build", gallery, "--model", folder, "--out", tmp_path / "index", "--no-flip")
    said = run("search", tmp_path / "index", next(gallery.glob("*.jpg")), "--model", folder, "--no-flip")
    assert "found with --flip" in said
    assert not re.search("match$", said, re.MULTILINE)


def test_a_gallery_grows_and_its_cameras_can_be_left_out(model, people, complaint, tmp_path):
    folder, _ = model
    gallery, out = tmp_path / "gallery", tmp_path / "index"
    shutil.copytree(people[3] / "bounding_box_test", gallery)
    late = sorted(gallery.glob("*.jpg"))[:2]
    aside = [path.rename(tmp_path / path.name) for path in late]
    options = ("--model", folder, "--out", out, "--camera-pattern", r"_c(\d)")
    run("index", "build", gallery, *options)
    before = GalleryIndex.load(out)
    for path in aside:
        path.rename(gallery / path.name)
    assert f"{len(before) + 2} images, 2 of them new, 0 skipped" in run("index", "add", gallery, *options)
    assert f"{len(before) + 2} images, 0 of them new, 0 skipped" in run("index", "add", gallery, *options)
    assert GalleryIndex.load(out).ids == [*before.ids, *(path.name for path in late)]
    said = run("search", out, late[0], "--model", folder, "--top", 50, "--exclude-camera", 2)
    names = set(re.findall(r"\S+\.jpg(?=  )", said))
    assert names == {path.name for path in gallery.glob("*_c1*.jpg")}
    words = ["index", "add", people[3] / "query", "--model", folder, "--out", out]
    assert "as its first group" in complaint([*words, "--camera-pattern", "camera_([0-9])"])


@pytest.mark.parametrize("codec", ["float16", "int8", "binary", "binary+float16"])
def test_stored_codes_are_evaluated(model, people, codec, tmp_path):
    folder = shutil.copytree(model[0], tmp_path / "model")
    run("evaluate", folder, *people, "--codec", codec)
    results = json.loads((folder / "results.json").read_text())
    assert results["protocol"]["codec"] == codec
    assert results["cost"]["bytes_per_vector"] == {"float16": 16, "int8": 8, "binary": 1, "binary+float16": 17}[codec]
    assert results["cost"]["search_ms"] > 0


def test_wrong_input_is_reported_in_one_line(complaint, model, people, tmp_path):
    folder, _ = model
    assert "did you mean 'int8'" in complaint(
        ["index", "build", people[3] / "query", "--model", folder, "--out", tmp_path / "i", "--codec", "int9"]
    )
    assert "at least 100000 impostor pairs" in complaint(["calibrate", folder, *people, "--false-match-rate", "1e-5"])
    assert "give --out" in complaint(["calibrate", "someone/model", *people])
