"""Pictures without labels: any folder, classes, streams, parts of them, and what cannot be read."""

import json
import struct
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reid_hub.data.augmentation_options import Augmentation
from reid_hub.data.images import ImageDataset
from reid_hub.data.pictures import draw_pictures, load_pictures
from reid_hub.data.stored import training_images

from ..hub.client import run_python

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def decoded(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "decoded")


def write(folder, names):
    rng = np.random.default_rng(0)
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 6, 3), dtype=np.uint8)).save(path, "PNG")
    return folder


def pixels(dataset):
    return {row["path"]: row["image"].tobytes() for row in dataset}


def test_any_folder_is_a_data_set_and_so_is_its_stream(tmp_path):
    folder = write(tmp_path / "pictures", [f"{camera}/{number}.jpg" for camera in "ab" for number in range(6)])
    whole = load_pictures("pictures", folder)
    assert whole["path"][:] == [f"{camera}/{number}.jpg" for camera in "ab" for number in range(6)]
    assert set(whole["pid"]) == set(whole["camid"]) == {-1}
    assert pixels(load_pictures("pictures", folder, limit=4)) == dict(list(pixels(whole).items())[:4])
    assert pixels(load_pictures("pictures", folder, streaming=True, limit=7)) == dict(list(pixels(whole).items())[:7])
    with pytest.raises(ValueError, match="give a limit"):
        load_pictures("pictures", folder, streaming=True)
    with pytest.raises(ValueError, match="no split 'test', only train"):
        load_pictures("pictures", folder, split="test")


def test_a_stream_that_was_kept_is_taken_for_no_other(tmp_path, monkeypatch):
    """Neither a folder of the same name elsewhere, nor the same folder when its pictures have changed."""
    kept = {}
    for place, size in (("here", (8, 6)), ("there", (6, 8))):
        (tmp_path / place / "pictures").mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", size).save(tmp_path / place / "pictures" / f"{number}.png")
        monkeypatch.chdir(tmp_path / place)
        kept[place] = load_pictures("pictures", "pictures", streaming=True, limit=2)[0]["image"].size
    assert kept == {"here": (8, 6), "there": (6, 8)}
    Image.new("RGB", (20, 20)).save("pictures/0.png")
    changed = load_pictures("pictures", "pictures", streaming=True, limit=2)
    assert changed[0]["image"].size == (20, 20)
    assert load_pictures("pictures", "pictures", streaming=True, limit=2)._fingerprint == changed._fingerprint


def test_a_part_is_drawn_by_the_seed(tmp_path):
    folder = write(tmp_path / "pictures", [f"{number:02}.jpg" for number in range(20)])
    parts = [set(load_pictures("pictures", folder, share=0.25, seed=seed)["path"]) for seed in (0, 0, 1)]
    assert parts[0] == parts[1] != parts[2]
    assert [len(part) for part in parts] == [5, 5, 5]
    with pytest.raises(ValueError, match="no classes"):
        load_pictures("pictures", folder, per_class=2)
    with pytest.raises(ValueError, match=r"share of the pictures must be in \(0, 1\], got 0"):
        load_pictures("pictures", folder, share=0)
    for few in ("limit", "per_class"):
        for number in (0, -1):
            with pytest.raises(ValueError, match=f"{few} must be at least 1 picture, got {number}"):
                load_pictures("pictures", folder, **{few: number})


def test_classes_keep_their_proportions(tmp_path):
    names = [
        f"{split}/{label}/{n}.jpg"
        for split in ("train", "test")
        for label, k in (("a", 10), ("b", 4))
        for n in range(k)
    ]
    folder = write(tmp_path / "classes", names)
    tenth = load_pictures("class_folder", folder, share=0.5)
    assert Counter(tenth["pid"]) == {0: 5, 1: 2}
    assert len(set(tenth["path"])) == 7
    assert Counter(load_pictures("class_folder", folder, per_class=6)["pid"]) == {0: 6, 1: 4}
    assert 29 in draw_pictures(30, np.array([0] * 29 + [1]), share=0.1)  # at least one of each


def test_what_cannot_be_read_is_left_out_and_counted(tmp_path):
    folder = write(tmp_path / "pictures", [f"{number}.jpg" for number in range(6)])
    (folder / "1.jpg").write_bytes(b"")
    (folder / "4.jpg").write_bytes((folder / "4.jpg").read_bytes()[:60])
    (folder / "5.jpg").write_text("no picture")
    found = load_pictures("pictures", folder)
    with pytest.warns(UserWarning, match="3 of 6 images cannot be read and are left out"):
        images = ImageDataset(found, (8, 6), on_error="skip", progress=False)
    assert images.dataset["path"][:] == ["0.jpg", "2.jpg", "3.jpg"]
    Image.new("RGB", (12, 9)).save(folder / "2.jpg", "PNG")
    with pytest.warns(UserWarning, match="3 of 6 images"):
        kept = training_images(
            load_pictures("pictures", folder), (8, 6), Augmentation(resized_area=(0.5, 1.0), pad=0), on_error="skip"
        )
    assert kept.sizes.tolist() == [[8, 6], [9, 12], [8, 6]]
    assert len(kept.__getitems__([1, 2])["sizes"]) == 2


def test_a_picture_too_large_to_decode_is_left_out(tmp_path):
    """40,000 pixels square, says its header: Pillow refuses to open it with an error of its own."""
    folder = write(tmp_path / "pictures", ["0.png", "1.png"])
    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    chunks = [
        struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d))
        for k, d in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b""))
    ]
    (folder / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    crops = Augmentation(resized_area=(0.5, 1.0), pad=0)
    with pytest.warns(UserWarning, match="1 of 3 images cannot be read"):
        assert len(training_images(load_pictures("pictures", folder), (8, 6), crops, on_error="skip")) == 2


def test_any_data_set_of_the_hub_is_streamed(hub, tmp_path):
    """With columns of its own names, over HTTP with the real clients."""
    write(tmp_path / "here", [f"{number}.png" for number in range(5)])
    work = """
import json, sys
import datasets
from reid_hub.data.pictures import load_pictures

rows = [{"photo": f"{sys.argv[1]}/here/{n}.png", "what": n % 2, "words": "x"} for n in range(5)]
features = datasets.Features(
    {"photo": datasets.Image(), "what": datasets.ClassLabel(names=["a", "b"]), "words": datasets.Value("string")}
)
datasets.Dataset.from_list(rows, features=features).push_to_hub("alice/photos")
streamed = load_pictures("alice/photos", streaming=True, limit=4)
whole = load_pictures("alice/photos")
said = [[list(d["pid"]), list(d["path"]), [i.tobytes().hex() for i in d["image"]]] for d in (streamed, whole)]
print("SAID", json.dumps(said))
"""
    output = run_python(work, {**hub.environment(tmp_path / "home"), "PYTHONPATH": str(ROOT)}, str(tmp_path))
    streamed, whole = json.loads(output.partition("SAID")[2])
    assert whole[0] == [0, 1, 0, 1, 0]
    assert len(set(whole[1])) == 5
    assert whole[2] == [Image.open(tmp_path / "here" / f"{n}.png").tobytes().hex() for n in range(5)]
    assert streamed == [part[:4] for part in whole]
