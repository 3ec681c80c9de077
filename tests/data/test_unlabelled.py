"""Images without labels: any folder, classes, streams, parts of them, and what cannot be read."""

import json
import struct
import zlib
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from reid_hub.data.augmentation_options import Augmentation
from reid_hub.data.images import ImageDataset
from reid_hub.data.stored import training_images
from reid_hub.data.unlabelled import draw_rows, load_images

from ..hub.client import run_python
from .image_files import DAMAGED_EXIF

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
    whole = load_images("pictures", folder)
    assert whole["path"][:] == [f"{camera}/{number}.jpg" for camera in "ab" for number in range(6)]
    assert set(whole["pid"]) == set(whole["camid"]) == {-1}
    assert pixels(load_images("pictures", folder, limit=4)) == dict(list(pixels(whole).items())[:4])
    assert pixels(load_images("pictures", folder, streaming=True, limit=7)) == dict(list(pixels(whole).items())[:7])
    with pytest.raises(ValueError, match="give a limit"):
        load_images("pictures", folder, streaming=True)
    with pytest.raises(ValueError, match="no split 'test', only train"):
        load_images("pictures", folder, split="test")


def test_a_stream_that_was_kept_is_taken_for_no_other(tmp_path, monkeypatch):
    """Neither a folder of the same name elsewhere, nor the same folder when its images have changed."""
    kept = {}
    for place, size in (("here", (8, 6)), ("there", (6, 8))):
        (tmp_path / place / "pictures").mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", size).save(tmp_path / place / "pictures" / f"{number}.png")
        monkeypatch.chdir(tmp_path / place)
        kept[place] = load_images("pictures", "pictures", streaming=True, limit=2)[0]["image"].size
    assert kept == {"here": (8, 6), "there": (6, 8)}
    Image.new("RGB", (20, 20)).save("pictures/0.png")
    changed = load_images("pictures", "pictures", streaming=True, limit=2)
    assert changed[0]["image"].size == (20, 20)
    assert load_images("pictures", "pictures", streaming=True, limit=2)._fingerprint == changed._fingerprint


def test_a_part_is_drawn_by_the_seed(tmp_path):
    folder = write(tmp_path / "pictures", [f"{number:02}.jpg" for number in range(20)])
    parts = [set(load_images("pictures", folder, share=0.25, seed=seed)["path"]) for seed in (0, 0, 1)]
    assert parts[0] == parts[1] != parts[2]
    assert [len(part) for part in parts] == [5, 5, 5]
    with pytest.raises(ValueError, match="no classes"):
        load_images("pictures", folder, per_class=2)
    with pytest.raises(ValueError, match=r"share of the images must be in \(0, 1\], got 0"):
        load_images("pictures", folder, share=0)
    for few in ("limit", "per_class"):
        for number in (0, -1):
            with pytest.raises(ValueError, match=f"{few} must be at least 1 image, got {number}"):
                load_images("pictures", folder, **{few: number})


def test_classes_keep_their_proportions(tmp_path):
    names = [
        f"{split}/{label}/{n}.jpg"
        for split in ("train", "test")
        for label, k in (("a", 10), ("b", 4))
        for n in range(k)
    ]
    folder = write(tmp_path / "classes", names)
    tenth = load_images("class_folder", folder, share=0.5)
    assert Counter(tenth["pid"]) == {0: 5, 1: 2}
    assert len(set(tenth["path"])) == 7
    assert Counter(load_images("class_folder", folder, per_class=6)["pid"]) == {0: 6, 1: 4}
    assert 29 in draw_rows(30, np.array([0] * 29 + [1]), share=0.1)  # at least one of each


def test_what_cannot_be_read_is_left_out_and_counted(tmp_path):
    folder = write(tmp_path / "pictures", [f"{number}.jpg" for number in range(6)])
    (folder / "1.jpg").write_bytes(b"")
    (folder / "4.jpg").write_bytes((folder / "4.jpg").read_bytes()[:60])
    (folder / "5.jpg").write_text("no image")
    found = load_images("pictures", folder)
    with pytest.warns(UserWarning, match="3 of 6 images cannot be read and are left out"):
        images = ImageDataset(found, (8, 6), on_error="skip", progress=False)
    assert images.dataset["path"][:] == ["0.jpg", "2.jpg", "3.jpg"]
    Image.new("RGB", (12, 9)).save(folder / "2.jpg", "PNG")
    with pytest.warns(UserWarning, match="3 of 6 images"):
        kept = training_images(
            load_images("pictures", folder), (8, 6), Augmentation(resized_area=(0.5, 1.0), pad=0), on_error="skip"
        )
    assert kept.sizes.tolist() == [[8, 6], [9, 12], [8, 6]]
    assert len(kept.__getitems__([1, 2])["sizes"]) == 2


def test_an_image_too_large_to_decode_is_left_out(tmp_path):
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
        assert len(training_images(load_images("pictures", folder), (8, 6), crops, on_error="skip")) == 2


def test_a_damaged_exif_block_costs_no_image(tmp_path):
    folder = write(tmp_path / "pictures", ["sound.png"])
    for name, (exif, _) in DAMAGED_EXIF.items():
        Image.new("RGB", (12, 9)).save(folder / f"{name}.png", exif=exif)
    crops = Augmentation(resized_area=(0.5, 1.0), pad=0)
    images = training_images(load_images("pictures", folder), (8, 6), crops, on_error="skip")
    sizes = dict(zip(images.dataset["path"], images.sizes.tolist(), strict=True))
    turned = {
        f"{name}.png": [12, 9] if orientation == 6 else [9, 12] for name, (_, orientation) in DAMAGED_EXIF.items()
    }
    assert sizes == {"sound.png": [8, 6], **turned}


def parquet(folder, **columns):
    """A folder of one file with four images and these columns, each its values and its feature."""
    folder.mkdir()
    features = datasets.Features({"image": datasets.Image()} | {name: kind for name, (_, kind) in columns.items()})
    images = [Image.new("RGB", (6, 8), (number, 0, 0)) for number in range(4)]
    table = {"image": images} | {name: values for name, (values, _) in columns.items()}
    datasets.Dataset.from_dict(table, features=features).to_parquet(folder / "train.parquet")
    return str(folder)


CLASSES, NUMBERS, WORDS = datasets.ClassLabel(names=["a", "b"]), datasets.Value("int32"), datasets.Value("string")


@pytest.mark.parametrize(
    ("columns", "pids", "camids"),
    [
        ({"pid": ([0, 1, 1, 0], CLASSES)}, [0, 1, 1, 0], [-1] * 4),
        ({"pid": ([5, 6, 7, 8], NUMBERS), "what": ([0, 1, 1, 0], CLASSES)}, [0, 1, 1, 0], [-1] * 4),
        ({"pid": ([5, 6, 7, 8], NUMBERS), "camid": ([0, 1, 1, 0], CLASSES)}, [5, 6, 7, 8], [0, 1, 1, 0]),
        ({"pid": (list("pqrs"), WORDS), "camid": (list("wxyz"), WORDS)}, [-1] * 4, [-1] * 4),
        ({"pid": ([[1], [2], [3], [4]], datasets.List(NUMBERS)), "path": ([5, 6, 7, 8], NUMBERS)}, [-1] * 4, [-1] * 4),
    ],
)
def test_labels_of_any_kind_stop_no_training_without_labels(tmp_path, columns, pids, camids):
    name = parquet(tmp_path / "photos", **columns)
    for options in ({}, {"streaming": True, "limit": 4}):
        images = ImageDataset(load_images(name, **options), (8, 6), progress=False)
        assert images.pids.tolist() == pids
        assert images.camids.tolist() == camids
        assert images.dataset["path"][:] == [f"{number:09d}" for number in range(4)]
        assert images.__getitems__(range(4))["pixel_values"][:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    if "what" in columns or columns["pid"][1] is CLASSES:
        assert Counter(load_images(name, per_class=1)["pid"]) == {0: 1, 1: 1}


@pytest.mark.parametrize("options", [{}, {"streaming": True, "limit": 4}])
def test_a_row_without_an_image_is_left_out_and_counted(tmp_path, options):
    (tmp_path / "photos").mkdir()
    images = [None if number == 1 else Image.new("RGB", (6, 8 + number)) for number in range(4)]
    rows = datasets.Dataset.from_dict({"image": images}, features=datasets.Features({"image": datasets.Image()}))
    rows.to_parquet(tmp_path / "photos" / "train.parquet")
    found = load_images(str(tmp_path / "photos"), **options)
    with pytest.warns(UserWarning, match="1 of 4 images cannot be read and are left out.*\n.*000000001 is null"):
        images = training_images(found, (8, 6), Augmentation(resized_area=(0.5, 1.0), pad=0), on_error="skip")
    assert images.sizes.tolist() == [[8, 6], [10, 6], [11, 6]]


def test_a_configuration_is_chosen_and_a_folder_refused(tmp_path):
    for name in ("small", "large"):
        parquet(tmp_path / name, what=([name] * 4, WORDS), pid=([len(name) + ord(name[0])] * 4, NUMBERS))
    configurations = "".join(f"- config_name: {n}\n  data_files: {n}/*.parquet\n" for n in ("small", "large"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configurations}---\n")
    for name in ("small", "large"):
        assert set(load_images(str(tmp_path), **{"name": name})["pid"]) == {5 + ord(name[0])}
    with pytest.raises(
        ValueError, match="'alice/photos' is a data set on the Hub, which takes no data_dir; got 'here'"
    ):
        load_images("alice/photos", "here")


def test_any_data_set_of_the_hub_is_streamed(hub, tmp_path):
    """With columns of its own names, over HTTP with the real clients."""
    write(tmp_path / "here", [f"{number}.png" for number in range(5)])
    work = """
import json, sys
import datasets
from reid_hub.data.unlabelled import load_images

rows = [{"photo": f"{sys.argv[1]}/here/{n}.png", "what": n % 2, "words": "x"} for n in range(5)]
features = datasets.Features(
    {"photo": datasets.Image(), "what": datasets.ClassLabel(names=["a", "b"]), "words": datasets.Value("string")}
)
datasets.Dataset.from_list(rows, features=features).push_to_hub("alice/photos")
streamed = load_images("alice/photos", streaming=True, limit=4)
whole = load_images("alice/photos")
said = [[list(d["pid"]), list(d["path"]), [i.tobytes().hex() for i in d["image"]]] for d in (streamed, whole)]
print("SAID", json.dumps(said))
"""
    output = run_python(work, {**hub.environment(tmp_path / "home"), "PYTHONPATH": str(ROOT)}, str(tmp_path))
    streamed, whole = json.loads(output.partition("SAID")[2])
    assert whole[0] == [0, 1, 0, 1, 0]
    assert len(set(whole[1])) == 5
    assert whole[2] == [Image.open(tmp_path / "here" / f"{n}.png").tobytes().hex() for n in range(5)]
    assert streamed == [part[:4] for part in whole]
