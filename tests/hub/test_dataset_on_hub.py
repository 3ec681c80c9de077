"""Pushing a data set to a private repository and loading it by the same call, over HTTP with the real clients."""

import json
import shutil
from io import BytesIO

import pyarrow.parquet as pq
import pytest

from ..data.image_files import colour, write_all, write_market
from .client import run_python

WORK = """
import json, shutil, sys, warnings
from pathlib import Path
from reid_hub.data import load_reid_dataset, push_reid_dataset
warnings.simplefilter("ignore")
root = Path(sys.argv[1])
said = {}

def attempt(name, call):
    try:
        call()
        said[name] = "it worked"
    except Exception as error:
        said[name] = f"{type(error).__name__}: {error}"

def rows(split):
    return [[r["path"], r["pid"], r["camid"], r["image"].getpixel((0, 0))] for r in split]

splits = load_reid_dataset("market1501", root / "market")
attempt("public", lambda: push_reid_dataset(splits, "alice/market", private=False))
said["url"] = push_reid_dataset(splits, "alice/market")
said["local"] = {name: rows(split) for name, split in splits.items()}
shutil.rmtree(root / "market")
said["loaded"] = {name: rows(split) for name, split in load_reid_dataset("alice/market").items()}
stream = load_reid_dataset("alice/market", streaming=True)
said["streamed"] = {name: rows(split) for name, split in stream.items()}
said["features"] = str(load_reid_dataset("alice/market")["train"].features)
attempt("bob", lambda: load_reid_dataset("alice/market", token="hf_bob", cache_dir=root / "bob"))
attempt("nobody", lambda: load_reid_dataset("alice/market", token=False, cache_dir=root / "nobody"))
attempt("wrong", lambda: load_reid_dataset("alice/market", token="hf_wrong", cache_dir=root / "wrong"))
attempt("none", lambda: load_reid_dataset("alice/nothing"))
attempt("revision", lambda: load_reid_dataset("alice/market", revision="v9"))
attempt("option", lambda: load_reid_dataset("alice/market", boxes="detected"))
attempt("folder", lambda: load_reid_dataset("alice/market", root))
attempt("columns", lambda: push_reid_dataset(splits.remove_columns("camid"), "alice/other"))
attempt("split", lambda: push_reid_dataset({"dev": splits["query"]}, "alice/other"))

import datasets
from PIL import Image
colours = {"img": datasets.Image(), "hue": datasets.ClassLabel(names=["red", "blue"])}
made = [{"img": Image.new("RGB", (4, 4), (0, 0, 9)), "hue": 1}, {"img": Image.new("RGB", (4, 4), (9, 0, 0)), "hue": 0}]
made = datasets.Dataset.from_list(made, features=datasets.Features(colours))
datasets.DatasetDict({"train": made, "validation": made.select([1])}).push_to_hub("alice/colours")
classes = load_reid_dataset("alice/colours", label="hue")
said["classes"] = {name: [[r["label"], r["image"].getpixel((0, 0))] for r in split] for name, split in classes.items()}

own = load_reid_dataset("image_folder", root / "own")
push_reid_dataset(own, "alice/own", private=False)
attempt("private into public", lambda: push_reid_dataset(splits, "alice/own"))
print("SAID", json.dumps(said))
"""


@pytest.fixture
def said(hub, tmp_path):
    write_market(tmp_path / "market")
    write_all(tmp_path / "own", [f"{person}/{i}.jpg" for person in "abcd" for i in (1, 2)])
    output = run_python(WORK, hub.environment(tmp_path / "home"), str(tmp_path))
    shutil.rmtree(tmp_path / "home")
    return json.loads(output.partition("SAID")[2])


def test_a_private_data_set_goes_to_the_hub_and_comes_back(hub, said):
    assert said["local"].keys() == {"train", "query", "gallery"}
    assert said["local"]["query"][0] == ["query/0003_c1s1_000001_00.jpg", 3, 0, list(colour(4))]
    assert said["loaded"] == said["streamed"] == said["local"]
    assert "'camid': Value('int64')" in said["features"]
    assert said["classes"] == {"train": [[1, [0, 0, 9]], [0, [9, 0, 0]]], "test": [[0, [9, 0, 0]]]}

    repo = hub.repo("alice/market", "datasets")
    assert repo.private
    files = {name: blob.content for name, blob in repo.commit().files.items()}
    card = files["README.md"].decode()
    assert "license: other" in card
    assert "research only, no redistribution" in card
    assert "@inproceedings{zheng2015scalable" in card
    assert 'load_reid_dataset("alice/market")' in card
    for split in ("train", "query", "gallery"):
        assert f"split: {split}" in card
    (gallery,) = [content for name, content in files.items() if name.startswith("data/gallery")]
    image, *_ = pq.read_table(BytesIO(gallery)).column("image").to_pylist()
    assert image["path"] == "0000_c4s1_000401_03.jpg"  # nothing of the machine that pushed

    assert said["public"].startswith("ReIDError: Market-1501 must not be published")
    assert "exists and is public" in said["private into public"]
    for who in ("bob", "nobody", "wrong", "revision"):
        assert said[who].startswith("MissingError: there is no data set 'alice/market' on the Hub that you may read")
        assert "check the name, the revision and your token" in said[who]
    assert "Invalid credentials" in said["wrong"]
    assert "'v9'" in said["revision"]
    assert "'alice/nothing'" in said["none"]
    assert "has no option boxes; its options are: label, revision, token" in said["option"]
    assert "takes no data_dir" in said["folder"]
    assert "the columns must be" in said["columns"]
    assert "camid" in said["columns"]
    assert "has a split 'dev'" in said["split"]
    assert not hub.repo("alice/own", "datasets").private
