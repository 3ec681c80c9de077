"""Every layout, built on disk from real files, against rows written out by hand."""

import json
import pickle
import warnings
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from reid_hub.data.loading import load_reid_dataset

from .image_files import colour, rows, write_all, write_image, write_market

pytestmark = pytest.mark.filterwarnings("ignore:.*is not the official data set", "ignore:DukeMTMC-reID was withdrawn")


@pytest.fixture
def load(tmp_path):
    def load(name, data_dir, **options):
        return load_reid_dataset(name, data_dir, cache_dir=tmp_path / "cache", **options)

    return load


def assert_images(splits, numbers: dict[str, int], prefix: str = "") -> None:
    for split in splits.values():
        for row in split:
            assert row["image"].getpixel((0, 0)) == colour(numbers[prefix + row["path"]]), row["path"]


@pytest.mark.parametrize("below", ["", "Market-1501-v15.09.15", "market1501/Market-1501-v15.09.15"])
def test_market1501(tmp_path, load, below):
    numbers = write_market(tmp_path / "data" / below)
    splits = load("market1501", tmp_path / "data")
    assert rows(splits["train"]) == [
        ("bounding_box_train/0002_c1s1_000451_03.jpg", 0, 0),
        ("bounding_box_train/0002_c2s1_000451_01.jpg", 0, 1),
        ("bounding_box_train/0007_c6s1_000451_01.jpg", 1, 5),
        ("bounding_box_train/0011_c3s1_000451_01.jpg", 2, 2),
    ]
    assert rows(splits["query"]) == [("query/0003_c1s1_000001_00.jpg", 3, 0), ("query/0005_c2s1_000001_00.jpg", 5, 1)]
    assert rows(splits["gallery"]) == [  # junk is gone, the distractor stays
        ("bounding_box_test/0000_c4s1_000401_03.jpg", 0, 3),
        ("bounding_box_test/0003_c5s1_000401_03.jpg", 3, 4),
        ("bounding_box_test/0005_c1s1_000401_03.jpg", 5, 0),
    ]
    assert_images(splits, numbers)
    assert {name: feature.dtype for name, feature in splits["train"].features.items()} == {
        "image": "PIL.Image.Image",
        "pid": "int64",
        "camid": "int64",
        "path": "string",
    }


def test_only_the_splits_that_exist(tmp_path, load):
    write_market(tmp_path / "all")
    (tmp_path / "test").mkdir()
    (tmp_path / "train").mkdir()
    for folder, home in (("query", "test"), ("bounding_box_test", "test"), ("bounding_box_train", "train")):
        (tmp_path / "all" / folder).rename(tmp_path / home / folder)
    assert set(load("market_layout", tmp_path / "test")) == {"query", "gallery"}
    assert set(load("market_layout", tmp_path / "train")) == {"train"}


def test_dukemtmc(tmp_path, load):
    names = [
        "bounding_box_train/0001_c2_f0046182.jpg",
        "bounding_box_train/0009_c8_f0046182.jpg",
        "query/0005_c2_f0046985.jpg",
        "bounding_box_test/0005_c1_f0046985.jpg",
        "bounding_box_test/7140_c7_f0046985.jpg",
    ]
    numbers = write_all(tmp_path / "DukeMTMC-reID", names)
    with pytest.warns(UserWarning, match=r"withdrawn by its authors"):
        splits = load("dukemtmc", tmp_path)
    assert rows(splits["train"]) == [(names[0], 0, 1), (names[1], 1, 7)]
    assert rows(splits["query"]) == [(names[2], 5, 1)]
    assert rows(splits["gallery"]) == [(names[3], 5, 0), (names[4], 7140, 6)]
    assert_images(splits, numbers)


@pytest.mark.parametrize(("boxes", "folder"), [("detected", "detected"), ("labelled", "labeled")])
def test_cuhk03_np_folders(tmp_path, load, boxes, folder):
    names = ["bounding_box_train/0003_c1_1.png", "bounding_box_train/0008_c2_6.png", "query/0002_c1_1.png"]
    names.append("bounding_box_test/0002_c2_6.png")
    for kind, shift in (("detected", 0), ("labeled", 100)):
        for number, name in enumerate(names):
            write_image(tmp_path / "cuhk03-np" / kind / name, shift + number)
    splits = load("cuhk03", tmp_path, boxes=boxes)
    assert rows(splits["train"]) == [
        ("bounding_box_train/0003_c1_1.png", 0, 0),
        ("bounding_box_train/0008_c2_6.png", 1, 1),
    ]
    assert rows(splits["query"]) == [("query/0002_c1_1.png", 2, 0)]
    assert rows(splits["gallery"]) == [("bounding_box_test/0002_c2_6.png", 2, 1)]
    assert splits["gallery"][0]["image"].getpixel((0, 0)) == colour(3 + (100 if boxes == "labelled" else 0))


def test_cuhk03_torchreid_lists(tmp_path, load):
    names = ["1_001_1_01.png", "1_001_2_06.png", "1_002_1_01.png", "1_003_1_01.png", "1_003_2_06.png"]
    numbers = write_all(tmp_path / "images_labeled", names)
    there = "/home/somebody/data/cuhk03/images_labeled/"  # the lists keep the paths of the machine that wrote them
    lists = {
        "train": [[there + names[0], 0, 0], [there + names[1], 0, 1], [there + names[2], 1, 0]],
        "query": [[there + names[3], 1003, 0]],
        "gallery": [[there + names[4], 1003, 1]],
        "num_train_pids": 2,
    }
    (tmp_path / "splits_new_labeled.json").write_text(json.dumps([lists]))
    splits = load("cuhk03", tmp_path, boxes="labelled")
    assert rows(splits["train"]) == [(names[0], 0, 0), (names[1], 0, 1), (names[2], 1, 0)]
    assert rows(splits["query"]) == [(names[3], 1003, 0)]
    assert rows(splits["gallery"]) == [(names[4], 1003, 1)]
    assert_images(splits, numbers)
    (tmp_path / "splits_new_labeled.json").write_text(json.dumps([{"train": []}]))
    with pytest.raises(ValueError, match=r"splits_new_labeled\.json is not a split list.*'query'"):
        load("cuhk03", tmp_path, boxes="labelled")


MSMT_LISTS = {
    "list_train.txt": "0000/0000_000_01_0303morning_0015_0.jpg 0\n0004/0004_000_12_0303noon_0015_0.jpg 4\n",
    "list_val.txt": "0000/0000_001_05_0303morning_0015_1.jpg 0\n",
    "list_query.txt": "0000/0000_000_15_0303morning_0015_0.jpg 0\n0001/0001_000_02_0303morning_0015_0.jpg 1\n",
    "list_gallery.txt": "0000/0000_001_03_0303morning_0015_0.jpg 0\n0001/0001_001_04_0303morning_0015_0.jpg 1\n\n",
}


@pytest.fixture
def write_msmt17(tmp_path):
    def write(below: str, train: str, test: str) -> dict[str, int]:
        names = []
        for name, text in MSMT_LISTS.items():
            folder = train if name in ("list_train.txt", "list_val.txt") else test
            names += [f"{folder}/{line.split()[0]}" for line in text.splitlines() if line]
        numbers = write_all(tmp_path / below, names)
        for name, text in MSMT_LISTS.items():
            (tmp_path / below / name).write_text(text)
        return numbers

    return write


@pytest.mark.parametrize(
    ("below", "train", "test"), [("MSMT17_V1", "train", "test"), ("msmt17/MSMT17_V2", "mask_train_v2", "mask_test_v2")]
)
def test_msmt17_versions(tmp_path, load, write_msmt17, below, train, test):
    numbers = write_msmt17(below, train, test)
    splits = load("msmt17", tmp_path)
    assert rows(splits["train"]) == [
        (f"{train}/0000/0000_000_01_0303morning_0015_0.jpg", 0, 0),
        (f"{train}/0004/0004_000_12_0303noon_0015_0.jpg", 1, 11),
    ]
    assert rows(splits["query"]) == [
        (f"{test}/0000/0000_000_15_0303morning_0015_0.jpg", 0, 14),
        (f"{test}/0001/0001_000_02_0303morning_0015_0.jpg", 1, 1),
    ]
    assert [row[1:] for row in rows(splits["gallery"])] == [(0, 2), (1, 3)]
    assert_images(splits, numbers)
    merged = load("msmt17", tmp_path, merge_val=True)
    assert rows(merged["train"])[-1] == (f"{train}/0000/0000_001_05_0303morning_0015_1.jpg", 0, 4)
    assert merged["train"].num_rows == 3


def test_msmt17_lists_stay_in_their_folder_and_are_well_formed(tmp_path, load, write_msmt17):
    write_msmt17("", "train", "test")
    (tmp_path / "list_query.txt").write_text("../../secret_000_01_x.jpg 1\n")
    with pytest.raises(ValueError, match="is outside"):
        load("msmt17", tmp_path)
    (tmp_path / "list_query.txt").write_text("0001/0001.jpg 1\n")
    with pytest.raises(ValueError, match=r"list_query\.txt, line 1 must be like"):
        load("msmt17", tmp_path)


@pytest.fixture
def prw(tmp_path):
    """Two training and two test frames of 60 x 40 in which every pixel is its own colour."""
    y, x = np.mgrid[0:40, 0:60]
    frames = {}
    for number, name in enumerate(["c1s1_000001", "c2s1_000002", "c3s1_000003", "c6s3_000004"]):
        pixels = np.stack([x * 4, y * 6, np.full_like(x, number * 50)], axis=2).astype(np.uint8)
        frames[name] = pixels
        (tmp_path / "prw" / "frames").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "prw" / "frames" / f"{name}.jpg", "PNG")
    root = tmp_path / "prw"
    boxes = {
        "c1s1_000001": ("box_new", [[5, 10, 4, 8, 20], [-2, 0, 0, 5, 5], [9, 1, 1, 4, 4]]),
        "c2s1_000002": ("anno_file", [[8, 2, 3, 6, 12], [9, 0, 0, 0, 9]]),
        "c3s1_000003": ("anno_previous", [[20, -3, 5, 10, 20], [-2, 30, 5, 8, 16]]),
        "c6s3_000004": ("box_new", [[20, 50, 30, 20, 20], [5, 1, 2, 3, 4]]),
    }
    (root / "annotations").mkdir()
    for name, (key, table) in boxes.items():
        savemat(root / "annotations" / f"{name}.jpg.mat", {key: np.array(table, dtype=float)})
    for split, names in (("train", ["c1s1_000001", "c2s1_000002"]), ("test", ["c3s1_000003", "c6s3_000004"])):
        cells = np.array([[name] for name in names], dtype=object)
        savemat(root / f"frame_{split}.mat", {f"img_index_{split}": cells})
    savemat(root / "ID_train.mat", {"ID_train": np.array([[5, 8]])})
    (root / "query_info.txt").write_text("20 3.6 5.2 9.9 20.0 c3s1_000003\n20 50 30 8 9 c6s3_000004\n")
    return frames


def crop(frames, row) -> np.ndarray:
    """The pixels that a row's path names, cut by slicing."""
    frame, box = row["path"].removeprefix("frames/").split(".jpg#")
    x, y, w, h = map(int, box.split(","))
    return frames[frame][y : y + h, x : x + w]


def test_prw_normal(tmp_path, load, prw):
    splits = load("prw", tmp_path)
    assert rows(splits["train"]) == [  # box 9 is no training identity
        ("frames/c1s1_000001.jpg#10,4,8,20", 0, 0),
        ("frames/c2s1_000002.jpg#2,3,6,12", 1, 1),
    ]
    assert rows(splits["query"]) == [
        ("frames/c3s1_000003.jpg#3,5,9,20", 20, 2),
        ("frames/c6s3_000004.jpg#50,30,8,9", 20, 5),
    ]
    assert rows(splits["gallery"]) == [
        ("frames/c3s1_000003.jpg#0,5,10,20", 20, 2),
        ("frames/c6s3_000004.jpg#50,30,20,20", 20, 5),
        ("frames/c6s3_000004.jpg#1,2,3,4", 5, 5),
    ]
    for split in splits.values():
        for row in split:
            np.testing.assert_array_equal(np.asarray(row["image"]), crop(prw, row))
    assert splits["gallery"][1]["image"].size == (10, 10)  # cut at the frame's border


def test_prw_hard_adds_unknown_people_as_distractors(tmp_path, load, prw):
    normal, hard = (load("prw", tmp_path, variant=variant) for variant in ("normal", "hard"))
    assert Counter(rows(hard["gallery"])) - Counter(rows(normal["gallery"])) == {
        ("frames/c3s1_000003.jpg#30,5,8,16", 0, 2): 1
    }
    assert rows(hard["train"]) == rows(normal["train"])


def test_prw_says_what_is_wrong(tmp_path, load, prw):
    root = tmp_path / "prw"
    (root / "query_info.txt").write_text("20 100 5 9 20 c3s1_000003\n")
    with pytest.raises(ValueError, match=r"\(100, 5, 9, 20\) lies outside frames/c3s1_000003\.jpg \(60 x 40\)"):
        load("prw", tmp_path)
    (root / "query_info.txt").write_text("20 100 5 c3s1_000003\n")
    with pytest.raises(ValueError, match=r"query_info\.txt, line 1 must be 'id x y w h frame'"):
        load("prw", tmp_path)
    (root / "annotations" / "c3s1_000003.jpg.mat").write_bytes(b"no matlab file")
    with pytest.raises(ValueError, match=r"c3s1_000003\.jpg\.mat is not a MATLAB file"):
        load("prw", tmp_path)
    (root / "annotations" / "c3s1_000003.jpg.mat").unlink()
    with pytest.raises(FileNotFoundError, match=r"c3s1_000003\.jpg\.mat is missing"):
        load("prw", tmp_path)


@pytest.mark.parametrize("arrays", [False, True])
def test_prai1581(tmp_path, load, arrays):
    names = [
        "0002_1_1.jpg",
        "0002_2_2.jpg",
        "0007_2_1.jpg",
        "0004_1_1.jpg",
        "0004_2_1.jpg",
        "0005_1_1.jpg",
        "0005_2_1.jpg",
    ]
    numbers = write_all(tmp_path / "PRAI-1581" / "images", names)
    pack = np.array if arrays else list
    partitions = {
        "trainval_im_names": pack(names[:3]),
        "test_im_names": pack(names[3:]),
        "test_marks": pack([0, 1, 1, 0]),
        "trainval_ids2labels": {2: 0, 7: 1},
    }
    (tmp_path / "PRAI-1581" / "partitions.pkl").write_bytes(pickle.dumps(partitions, protocol=2))
    splits = load("prai1581", tmp_path)
    assert rows(splits["train"]) == [(names[0], 0, 0), (names[1], 0, 1), (names[2], 1, 1)]
    assert rows(splits["query"]) == [(names[3], 4, 0), (names[6], 5, 1)]
    assert rows(splits["gallery"]) == [(names[4], 4, 1), (names[5], 5, 0)]
    assert_images(splits, numbers)


class Evil:
    def __reduce__(self):
        return (open, ("/tmp/reid_hub_must_not_exist", "w"))


def test_prai1581_never_runs_what_is_in_the_pickle(tmp_path, load):
    write_all(tmp_path / "images", ["0002_1_1.jpg"])
    target = tmp_path / "written"
    payload = pickle.dumps({"trainval_im_names": Evil()}).replace(b"/tmp/reid_hub_must_not_exist", str(target).encode())
    assert not target.exists()
    (tmp_path / "partitions.pkl").write_bytes(payload)
    with pytest.raises(ValueError, match=r"partitions\.pkl holds more than plain lists.*refused"):
        load("prai1581", tmp_path)
    assert not target.exists()
    (tmp_path / "partitions.pkl").write_bytes(pickle.dumps({"trainval_im_names": []}))
    with pytest.raises(ValueError, match="lacks test_im_names, test_marks"):
        load("prai1581", tmp_path)


def test_luperson_folder(tmp_path, load):
    numbers = write_all(tmp_path / "lup", ["a/1.jpg", "a/deep/2.png", "b/1.jpg"])
    splits = load("luperson", tmp_path / "lup")
    assert rows(splits["train"]) == [("a/1.jpg", -1, -1), ("a/deep/2.png", -1, -1), ("b/1.jpg", -1, -1)]
    assert_images(splits, numbers)


@pytest.mark.parametrize("below", ["", "lmdb"])
def test_luperson_lmdb(tmp_path, load, below):
    lmdb = pytest.importorskip("lmdb", reason="an LMDB needs the extra lmdb")
    numbers = write_all(tmp_path / "pictures", [f"{i:03d}.jpg" for i in range(300)])
    store = tmp_path / "lup" / below
    store.mkdir(parents=True)
    with lmdb.open(str(store), map_size=1 << 22) as environment, environment.begin(write=True) as transaction:
        for name in numbers:
            transaction.put(name.encode(), (tmp_path / "pictures" / name).read_bytes())
        transaction.put(b"__len__", b"300")
    splits = load("luperson", tmp_path / "lup")
    assert rows(splits["train"]) == [(name, -1, -1) for name in sorted(numbers)]
    assert_images(splits, numbers)
    stream = load("luperson", tmp_path / "lup", streaming=True)["train"]
    pairs = list(zip(stream, stream, strict=True))  # two readers of one LMDB at a time
    assert [(a["path"], b["path"]) for a, b in pairs] == [(name, name) for name in sorted(numbers)]
    (store / "data.mdb").write_bytes(b"x" * 5000)
    with pytest.raises(ValueError, match=r"data\.mdb cannot be read as an LMDB"):
        load("luperson", tmp_path / "lup")


def test_market_duke(tmp_path, load):
    numbers = {f"Market-1501-v15.09.15/{n}": i for n, i in write_market(tmp_path / "Market-1501-v15.09.15").items()}
    duke = ["bounding_box_train/0002_c1_f1.jpg", "query/0003_c2_f1.jpg", "bounding_box_test/0003_c8_f1.jpg"]
    for number, name in enumerate(duke, start=50):
        write_image(tmp_path / "DukeMTMC-reID" / name, number)
        numbers[f"DukeMTMC-reID/{name}"] = number
    splits = load("market_duke", tmp_path)
    # Person 2 of Market-1501 and person 2 of DukeMTMC-reID are different people under different cameras.
    assert [row[1:] for row in rows(splits["train"])] == [(0, 0), (0, 1), (1, 5), (2, 2), (3, 6)]
    assert [row[1:] for row in rows(splits["query"])] == [(3, 0), (5, 1)]
    assert_images(splits, numbers)
    duke_only = load("market_duke", tmp_path, test="dukemtmc")
    assert rows(duke_only["query"]) == [("DukeMTMC-reID/query/0003_c2_f1.jpg", 10_003, 7)]
    both = load("market_duke", tmp_path, test="both")
    assert [row[1:] for row in rows(both["query"])] == [(3, 0), (5, 1), (10_003, 7)]
    assert [row[1:] for row in rows(both["gallery"])] == [(0, 3), (3, 4), (5, 0), (10_003, 13)]


def test_image_folder_with_splits_and_cameras(tmp_path, load):
    names = [
        "train/anna/cam_left_1.jpg",
        "train/bert/cam_right_1.jpg",
        "query/carl/cam_left_1.jpg",
        "gallery/carl/day2/cam_right_1.jpg",
        "gallery/dora/cam_left_9.jpg",
    ]
    numbers = write_all(tmp_path, names)
    splits = load("image_folder", tmp_path, camera="cam_([a-z]+)_")
    assert rows(splits["train"]) == [(names[0], 0, 0), (names[1], 1, 1)]
    assert rows(splits["query"]) == [(names[2], 3, 0)]
    assert rows(splits["gallery"]) == [(names[3], 3, 1), (names[4], 4, 0)]
    assert_images(splits, numbers)
    without = load("image_folder", tmp_path)
    assert {camid for split in without.values() for camid in split["camid"]} == {-1}


def test_image_folder_keeps_numbers_as_pids(tmp_path, load):
    write_all(
        tmp_path, ["query/12/a.jpg", "gallery/12/b.jpg", "gallery/0/c.jpg", "gallery/-1/d.jpg", "gallery/7/e.jpg"]
    )
    splits = load("image_folder", tmp_path)
    assert list(splits["query"]["pid"]) == [12]
    assert list(splits["gallery"]["pid"]) == [0, 12, 7]


def test_image_folder_split_by_identity(tmp_path, load):
    names = [f"p{person}/c{camera}_{i}.jpg" for person in range(8) for camera in (1, 2, 3) for i in range(2)]
    names += ["lone/c1_0.jpg", "stays/c2_0.jpg", "stays/c2_1.jpg"]
    write_all(tmp_path / "people", names)
    splits = load("image_folder", tmp_path / "people", camera=r"^c(\d)", seed=3)
    person = {name: {path.split("/")[0] for path in splits[name]["path"]} for name in splits}
    assert len(person["train"]) == 5
    assert not person["train"] & (person["query"] | person["gallery"])
    assert sorted(p for split in splits.values() for p in split["path"]) == sorted(names)  # each image once
    assert sorted(set(splits["train"]["pid"])) == list(range(5))
    per_camera = Counter((path.split("/")[0], camid) for path, _, camid in rows(splits["query"]))
    assert set(per_camera.values()) == {1}
    assert {p for p, _ in per_camera} <= person["gallery"] - {"lone", "stays"}
    gallery = rows(splits["gallery"])
    for _, pid, camid in rows(splits["query"]):
        assert any(pid == p and camid != c for _, p, c in gallery)
    again = load("image_folder", tmp_path / "people", camera=r"^c(\d)", seed=3, streaming=True)
    assert [row["path"] for row in again["query"]] == list(splits["query"]["path"])
    others = [load("image_folder", tmp_path / "people", camera=r"^c(\d)", seed=seed) for seed in range(4, 8)]
    assert any(set(other["train"]["path"]) != set(splits["train"]["path"]) for other in others)


def test_image_folder_without_cameras_has_one_query_per_test_person(tmp_path, load):
    write_all(tmp_path, [f"{person}/{i}.jpg" for person in "abcdef" for i in range(3)])
    splits = load("image_folder", tmp_path)
    assert {name: split.num_rows for name, split in splits.items()} == {"train": 9, "query": 3, "gallery": 6}
    assert len(set(splits["query"]["pid"])) == 3


def test_two_images_of_two_cameras_are_one_query_and_its_match(tmp_path, load):
    write_all(tmp_path, [f"{person}/c{camera}.jpg" for person in "abcd" for camera in (1, 2)])
    splits = load("image_folder", tmp_path, camera=r"c(\d)")
    assert sorted(splits["query"]["pid"]) == sorted(splits["gallery"]["pid"])
    assert len(splits["query"]) == 2


def test_csv_with_cameras_and_splits(tmp_path, load):
    numbers = write_all(tmp_path, ["a.jpg", "b.jpg", "sub/c.jpg", "sub/d.jpg", "e.jpg"])
    (tmp_path / "people.csv").write_text(
        "path, pid, camid, split\na.jpg,7,3,train\nb.jpg,3,0,train\nsub/c.jpg,9,1,query\nsub/d.jpg,9,,gallery\n"
        "e.jpg,-1,1,gallery\n"
    )
    splits = load("csv", tmp_path / "people.csv")
    assert rows(splits["train"]) == [("a.jpg", 1, 3), ("b.jpg", 0, 0)]
    assert rows(splits["query"]) == [("sub/c.jpg", 9, 1)]
    assert rows(splits["gallery"]) == [("sub/d.jpg", 9, -1)]
    assert_images(splits, numbers)


def test_csv_with_names_and_without_splits(tmp_path, load):
    names = [f"{person}_{i}.jpg" for person in "abcd" for i in range(2)]
    write_all(tmp_path / "images", names)
    lines = "\n".join(f"{name},{name[0]},{'left' if '0' in name else 'right'}" for name in names)
    (tmp_path / "people.csv").write_text("path,pid,camid\n" + lines)
    splits = load("csv", tmp_path / "people.csv", root=tmp_path / "images")
    assert set(splits) == {"train", "query", "gallery"}
    assert {camid for split in splits.values() for camid in split["camid"]} == {0, 1}
    assert not {p[0] for p in splits["train"]["path"]} & {p[0] for p in splits["gallery"]["path"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,person\na.jpg,1\n", r"must have the columns path, pid"),
        ("path,pid,colour\na.jpg,1,red\n", r"may have camid, split; got \['path', 'pid', 'colour'\]"),
        ("path,pid\n", "lists no images"),
        ("path,pid\na.jpg,\n", "line 2: path and pid must not be empty"),
        ("path,pid,split\na.jpg,1,test\n", "line 2: split must be train, query or gallery, got 'test'"),
        ("path,pid,split\na.jpg,1,query\n", "lacks rows with split gallery"),
        ("path,pid\n../outside.jpg,1\n", "is outside"),
        ("path,pid,split\ngone.jpg,1,train\na.jpg,2,train\n", r"1 listed images are not in .*: gone\.jpg"),
    ],
)
def test_csv_says_what_is_wrong(tmp_path, load, text, message):
    write_all(tmp_path, ["data/a.jpg", "outside.jpg"])
    (tmp_path / "data" / "people.csv").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load("csv", tmp_path / "data" / "people.csv")


def test_synthetic_is_drawn_and_cached(tmp_path, load):
    from reid_hub.data.synthetic import synthetic_splits

    size = {"seed": 3, "num_train_ids": 3, "num_test_ids": 2, "images_per_id": 8, "num_distractors": 2}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        splits = load("synthetic", None, **size)
    drawn = synthetic_splits(**size)
    assert {name: split.num_rows for name, split in splits.items()} == {name: len(rows) for name, rows in drawn.items()}
    for name, expected in drawn.items():
        assert rows(splits[name]) == [(row["path"], row["pid"], row["camid"]) for row in expected]
    assert [row["path"] for row in load("synthetic", None, streaming=True, **size)["query"]] == [
        row["path"] for row in drawn["query"]
    ]
    with pytest.raises(ValueError, match="takes no data_dir"):
        load("synthetic", tmp_path)
