"""What holds for every data set: cache, streaming, counts, options, clear errors."""

import os
import pickle
import shutil
import warnings

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from reid_hub.data.datasets import DATASETS
from reid_hub.data.loading import load_reid_dataset
from reid_hub.data.records import Counts

from .image_files import colour, rows, write_all, write_image, write_market

unofficial = pytest.mark.filterwarnings("ignore:.*is not the official data set")


@pytest.fixture
def market(tmp_path):
    write_market(tmp_path / "market")
    return tmp_path / "market"


def arrow_files(splits) -> dict[str, int]:
    """{file: time of its last change} of the Arrow files behind the splits."""
    files = [file["filename"] for split in splits.values() for file in split.cache_files]
    assert files
    return {file: os.stat(file).st_mtime_ns for file in files}


def test_every_data_set_says_what_it_is():
    for name, spec in DATASETS.items():
        assert spec.name == name
        assert spec.title
        assert spec.licence
        own = name in ("synthetic", "shapes", "class_folder", "image_folder", "pictures", "csv", "market_layout")
        assert own or (spec.homepage.startswith("https://") and spec.citation.startswith("@"))
        assert own or all(isinstance(counts, Counts) for counts in spec.counts.values())
        for option, _ in spec.variant_counts:
            assert option in spec.options


def test_the_cache_is_reused_and_built_again_when_a_file_changes(market, tmp_path):
    def load():
        return load_reid_dataset("market_layout", market, cache_dir=tmp_path / "cache")

    first = load()
    assert arrow_files(load()) == arrow_files(first)
    file = market / "query" / "0003_c1s1_000001_00.jpg"
    write_image(file, 999)
    os.utime(file, ns=(1, file.stat().st_mtime_ns + 1))
    changed = load()
    assert not arrow_files(changed).keys() & arrow_files(first).keys()
    assert changed["query"][0]["image"].getpixel((0, 0)) == colour(999)
    file.unlink()
    assert load()["query"].num_rows == 1
    (market / "query" / "0005_c2s1_000001_00.jpg").rename(market / "query" / "0003_c2s1_000001_00.jpg")
    assert rows(load()["query"]) == [("query/0003_c2s1_000001_00.jpg", 3, 1)]


def test_a_moved_data_set_is_read_from_its_new_place(market, tmp_path):
    load_reid_dataset("market_layout", market, cache_dir=tmp_path / "cache")
    shutil.copytree(market, tmp_path / "copy", copy_function=shutil.copy2)
    shutil.rmtree(market)
    splits = load_reid_dataset("market_layout", tmp_path / "copy", cache_dir=tmp_path / "cache")
    assert splits["query"][0]["image"].size == (4, 8)


@unofficial
def test_options_have_caches_of_their_own(tmp_path):
    for kind, number in (("detected", 0), ("labeled", 9)):
        for name in ("bounding_box_train/0001_c1_1.png", "bounding_box_train/0002_c1_1.png"):
            write_image(tmp_path / "data" / kind / name, number)
    detected, labelled = (
        load_reid_dataset("cuhk03", tmp_path / "data", cache_dir=tmp_path / "cache", boxes=boxes)
        for boxes in ("detected", "labelled")
    )
    assert detected["train"][0]["image"].getpixel((0, 0)) == colour(0)
    assert labelled["train"][0]["image"].getpixel((0, 0)) == colour(9)


def test_streaming_gives_the_cached_rows(tmp_path):
    # More rows than one shard, so that the shards' order matters too.
    write_all(tmp_path / "people", [f"train/{person:03d}/{i}.jpg" for person in range(150) for i in (1, 2)])
    cached = load_reid_dataset("image_folder", tmp_path / "people", cache_dir=tmp_path / "cache")["train"]
    stream = load_reid_dataset("image_folder", tmp_path / "people", streaming=True)["train"]
    assert stream.features == cached.features
    assert stream.num_shards == 2
    pairs = list(zip(cached, stream, strict=True))
    for one, other in pairs:
        assert {k: one[k] for k in ("path", "pid", "camid")} == {k: other[k] for k in ("path", "pid", "camid")}
        np.testing.assert_array_equal(np.asarray(one["image"]), np.asarray(other["image"]))
    loaded = DataLoader(stream.remove_columns("image"), batch_size=None, num_workers=2)
    assert sorted(row["path"] for row in loaded) == sorted(cached["path"])
    assert [row["path"] for row in pickle.loads(pickle.dumps(stream))] == list(cached["path"])


def test_counts_other_than_the_official_ones_are_one_warning_with_both_numbers(market, tmp_path):
    with pytest.warns(UserWarning, match="not the official data set") as caught:
        load_reid_dataset("market1501", market, cache_dir=tmp_path / "cache")
    (warning,) = [str(w.message) for w in caught]
    assert "train has 4 images of 3 identities instead of 12,936 images of 751 identities" in warning
    assert "query has 2 images of 2 identities instead of 3,368 images of 750 identities" in warning
    # 19,732 counts the files: junk and distractors are among them, but are no identities.
    assert "gallery has 4 images of 2 identities instead of 19,732 images of 750 identities" in warning
    assert warning.endswith("cannot be compared with published ones.")


def test_the_right_counts_are_not_worth_a_warning(market, tmp_path, monkeypatch):
    from dataclasses import replace

    spec = DATASETS["market1501"]
    counts = {"train": Counts(4, 3), "query": Counts(None, 2), "gallery": Counts(4, 2)}
    monkeypatch.setitem(DATASETS, "market1501", replace(spec, counts=counts))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_reid_dataset("market1501", market, cache_dir=tmp_path / "cache")


def test_official_counts_follow_the_options():
    cuhk03, msmt17 = DATASETS["cuhk03"], DATASETS["msmt17"]
    assert cuhk03.official_counts({})["train"] == (7_365, 767)
    assert cuhk03.official_counts({"boxes": "labelled"}) == {
        "train": (7_368, 767),
        "query": (1_400, 700),
        "gallery": (5_328, 700),
    }
    assert msmt17.official_counts({})["train"] == (30_248, 1_041)
    assert msmt17.official_counts({"merge_val": True})["train"] == (32_621, 1_041)


def test_pid_zero_of_msmt17_is_a_person(tmp_path):
    from reid_hub.data.loading import count
    from reid_hub.data.records import Record, Scan

    gallery = [Record("a", 0, 0), Record("b", 1, 0), Record("c", -1, 0)]
    assert count(Scan(tmp_path, {"query": [Record("q", 0, 1)], "gallery": gallery}), "gallery") == (3, 2)
    assert count(Scan(tmp_path, {"query": [Record("q", 1, 1)], "gallery": gallery}), "gallery") == (3, 1)


def test_unknown_names_and_options_stop_with_the_choices(market):
    with pytest.raises(ValueError, match=r"unknown data set 'market1510': did you mean 'market1501'\?"):
        load_reid_dataset("market1510", market)
    with pytest.raises(ValueError, match=r"'market1501' has no option merge_val; its options are: none"):
        load_reid_dataset("market1501", market, merge_val=True)
    with pytest.raises(ValueError, match=r"'image_folder' has no option cameras; its options are: camera, seed"):
        load_reid_dataset("image_folder", market, cameras="x")
    with pytest.raises(ValueError, match=r"boxes must be one of 'detected', 'labelled', got 'labeled'"):
        load_reid_dataset("cuhk03", market, boxes="labeled")
    with pytest.raises(ValueError, match="'market1501' needs data_dir, with this layout: bounding_box_train"):
        load_reid_dataset("market1501")
    with pytest.raises(ValueError, match="Pass a folder as data_dir"):
        load_reid_dataset(str(market))


@pytest.mark.parametrize("name", [n for n, spec in DATASETS.items() if spec.layout])
def test_a_missing_or_foreign_folder_is_named(name, tmp_path):
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match="absent"):
        load_reid_dataset(name, tmp_path / "absent", cache_dir=tmp_path / "cache")
    with pytest.raises(FileNotFoundError, match="holiday"):
        load_reid_dataset(name, tmp_path / "holiday", cache_dir=tmp_path / "cache")


def test_a_wrong_layout_says_what_was_expected_and_found(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(FileNotFoundError) as caught:
        load_reid_dataset("market1501", tmp_path)
    message = str(caught.value)
    assert "expected bounding_box_train, query, bounding_box_test" in message
    assert "which holds images" in message
    with pytest.raises(FileNotFoundError, match=r"expected .*list_train\.txt.*which is empty"):
        load_reid_dataset("msmt17", tmp_path / "images")


def test_half_a_test_set_is_refused(market):
    shutil.rmtree(market / "query")
    with pytest.raises(FileNotFoundError, match="lacks query: query and gallery are only useful together"):
        load_reid_dataset("market1501", market)


def test_a_folder_without_images_is_refused(market):
    for file in (market / "query").iterdir():
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r"no images .* in .*query"):
        load_reid_dataset("market1501", market)


def test_a_foreign_file_name_is_refused(market):
    write_image(market / "query" / "IMG_0001.jpg", 1)
    with pytest.raises(ValueError, match=r"IMG_0001\.jpg does not begin with person and camera like 0002_c1s1"):
        load_reid_dataset("market1501", market)


@unofficial
def test_empty_images_are_named_before_anything_is_cached(market, tmp_path):
    (market / "query" / "0003_c1s1_000001_00.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"1 images in .* are empty \(0 bytes\): query/0003_c1s1_000001_00\.jpg"):
        load_reid_dataset("market1501", market, cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.arrow"))


@unofficial
def test_images_that_a_list_names_and_nobody_has_are_named(tmp_path):
    for name, lines in {"train": "a/a_0_01_x.jpg 0\nb/b_0_01_x.jpg 1", "val": "", "query": "", "gallery": ""}.items():
        (tmp_path / f"list_{name}.txt").write_text(lines)
    write_all(tmp_path, ["train/a/a_0_01_x.jpg"])
    with pytest.raises(FileNotFoundError, match=r"1 listed images are not in .*: train/b/b_0_01_x\.jpg"):
        load_reid_dataset("msmt17", tmp_path, cache_dir=tmp_path / "cache")


@unofficial
def test_one_training_identity_is_refused(market, tmp_path):
    for name in ("0007_c6s1_000451_01.jpg", "0011_c3s1_000451_01.jpg"):
        (market / "bounding_box_train" / name).unlink()
    with pytest.raises(ValueError, match="one training identity; training needs at least two"):
        load_reid_dataset("market1501", market)
    write_all(tmp_path / "single", ["anna/1.jpg", "anna/2.jpg"])
    with pytest.raises(ValueError, match=r"at least 4 identities \(2 to train, 2 to test\), got 1"):
        load_reid_dataset("image_folder", tmp_path / "single")
    write_all(tmp_path / "explicit", ["train/anna/1.jpg", "train/anna/2.jpg"])
    with pytest.raises(ValueError, match="one training identity"):
        load_reid_dataset("image_folder", tmp_path / "explicit")


def test_own_images_with_nothing_to_match_are_refused(tmp_path):
    write_all(tmp_path, [f"{person}/1.jpg" for person in "abcdef"])
    with pytest.raises(ValueError, match="no test identity has images to match"):
        load_reid_dataset("image_folder", tmp_path)


@pytest.mark.parametrize(
    ("camera", "message"),
    [
        ("c(", "must be a regular expression"),
        (r"c\d", "must have exactly one group"),
        (r"cam(\d)", r"finds no camera in 'c1\.jpg'"),
    ],
)
def test_camera_expressions_that_cannot_work(tmp_path, camera, message):
    write_all(tmp_path, [f"{person}/c{i}.jpg" for person in "abcd" for i in (1, 2)])
    with pytest.raises(ValueError, match=message):
        load_reid_dataset("image_folder", tmp_path, camera=camera)


def test_images_outside_of_the_persons_folders_are_refused(tmp_path):
    write_all(tmp_path, ["anna/1.jpg", "stray.jpg"])
    with pytest.raises(ValueError, match=r"stray\.jpg lies in no person's folder"):
        load_reid_dataset("image_folder", tmp_path)


def test_a_damaged_frame_stops_the_build_and_leaves_no_half_cache(tmp_path):
    from scipy.io import savemat

    for folder in ("frames", "annotations"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "frames" / "c1s1_1.jpg")
    content = (tmp_path / "frames" / "c1s1_1.jpg").read_bytes()
    (tmp_path / "frames" / "c1s1_1.jpg").write_bytes(content[: len(content) // 2])
    savemat(tmp_path / "annotations" / "c1s1_1.jpg.mat", {"box_new": np.array([[1.0, 0, 0, 9, 9], [2, 0, 0, 9, 9]])})
    cells = np.array([["c1s1_1"]], dtype=object)
    savemat(tmp_path / "frame_train.mat", {"img_index_train": cells})
    savemat(tmp_path / "frame_test.mat", {"img_index_test": cells})
    savemat(tmp_path / "ID_train.mat", {"ID_train": np.array([[1, 2]])})
    (tmp_path / "query_info.txt").write_text("")
    with (
        pytest.warns(UserWarning, match="official"),
        pytest.raises(ValueError, match=r"frames/c1s1_1\.jpg is (damaged|not an image)"),
    ):
        load_reid_dataset("prw", tmp_path, cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.arrow"))
