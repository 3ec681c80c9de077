import hashlib
import json
import shutil

import numpy as np
import pytest

from reid_hub.index import GalleryIndex

MEMBERS = ["vectors.safetensors", "ids.json"]


@pytest.fixture
def index():
    rng = np.random.default_rng(0)
    index = GalleryIndex(8, metric="euclidean", fingerprint="model@1")
    index.add(rng.standard_normal((20, 8)), [f"p{number}" for number in range(20)], rng.integers(0, 3, 20))
    return index


@pytest.fixture
def folder(index, tmp_path):
    index.save(tmp_path / "index")
    return tmp_path / "index"


def edit_manifest(folder, **changes):
    path = folder / "manifest.json"
    manifest = {**json.loads(path.read_text()), **changes}
    del manifest["sha256"]
    manifest["sha256"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize("backend", ["torch", "faiss"])
def test_loading_gives_the_index_that_was_saved(index, folder, backend):
    again = GalleryIndex.load(folder, fingerprint="model@1", backend=backend)
    queries = np.random.default_rng(1).standard_normal((6, 8))
    excluded = [0, 1, 2, -1, 0, 1]
    for saved, loaded in zip(
        index.search(queries, 20, exclude_camids=excluded),
        again.search(queries, 20, exclude_camids=excluded),
        strict=True,
    ):
        np.testing.assert_array_equal(saved, loaded)
    assert (again.dim, again.metric, again.codec.name, again.fingerprint) == (8, "euclidean", "float32", "model@1")


def test_loaded_index_can_be_changed_and_saved_over(index, folder):
    again = GalleryIndex.load(folder)
    again.remove(["p3"])
    again.add(np.ones((1, 8)), ["new"])
    again.save(folder)
    ids = GalleryIndex.load(folder).ids
    assert ids == [id for id in index.ids if id != "p3"] + ["new"]
    assert [path.name for path in folder.parent.iterdir()] == ["index"]


def test_empty_index_survives(tmp_path):
    GalleryIndex(8).save(tmp_path / "empty")
    again = GalleryIndex.load(tmp_path / "empty")
    assert len(again) == 0
    again.add(np.ones((1, 8)), ["first"])
    assert again.search(np.ones((1, 8)), 1)[1][0, 0] == "first"


@pytest.mark.parametrize("member", [*MEMBERS, "manifest.json"])
def test_every_truncation_and_bit_flip_is_found(folder, member):
    path = folder / member
    content = path.read_bytes()
    for damaged in (b"", content[: len(content) // 2], content[:-2], content + b"x"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=member):
            GalleryIndex.load(folder)
    for place in np.random.default_rng(0).integers(0, len(content) - 1, 60):
        flipped = bytearray(content)
        flipped[place] ^= 1 << (place % 7)
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match=member):
            GalleryIndex.load(folder)
    path.write_bytes(content)
    assert len(GalleryIndex.load(folder)) == 20


@pytest.mark.parametrize("member", [*MEMBERS, "manifest.json"])
def test_missing_file_is_named(folder, member):
    (folder / member).unlink()
    with pytest.raises(FileNotFoundError, match=member):
        GalleryIndex.load(folder)


def test_files_of_two_indexes_are_not_mixed(folder, tmp_path):
    other = GalleryIndex(8, metric="euclidean")
    other.add(np.ones((20, 8)), [f"q{number}" for number in range(20)])
    other.save(tmp_path / "other")
    shutil.copy(tmp_path / "other/ids.json", folder / "ids.json")
    with pytest.raises(ValueError, match=r"ids\.json is damaged"):
        GalleryIndex.load(folder)


def test_wrong_fingerprint_is_refused(folder):
    with pytest.raises(ValueError, match="made with 'model@1', not with 'model@2'"):
        GalleryIndex.load(folder, fingerprint="model@2")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "something else"}, "not the manifest of a gallery index"),
        ({"version": 2}, "version must be 1, got 2"),
        ({"dim": "8"}, "'dim' must be of type int"),
        ({"dim": 4}, r"codes must be float32 \(20, 4\)"),
        ({"count": 19}, r"codes must be float32 \(19, 8\)"),
        ({"codec": "float31"}, "did you mean 'float32'"),
        ({"metric": "euclidian"}, "did you mean 'euclidean'"),
        ({"fingerprint": 3}, "'fingerprint' must be a string"),
        ({"files": {}}, "'files' must name"),
    ],
)
def test_manifest_that_does_not_fit_is_refused(folder, changes, message):
    edit_manifest(folder, **changes)
    with pytest.raises(ValueError, match=message):
        GalleryIndex.load(folder)


@pytest.mark.parametrize("escape", ["../secret.json", "/etc/hostname"])
def test_member_outside_of_the_folder_is_refused(folder, escape):
    (folder.parent / "secret.json").write_text("[]")
    edit_manifest(folder, files={escape: {"bytes": 2, "sha256": ""}})
    with pytest.raises(ValueError, match="would lie outside"):
        GalleryIndex.load(folder)


def test_link_that_leaves_the_folder_is_refused(folder):
    outside = folder.parent / "outside.json"
    (folder / "ids.json").rename(outside)
    (folder / "ids.json").symlink_to(outside)
    with pytest.raises(ValueError, match="would lie outside"):
        GalleryIndex.load(folder)


def test_saving_never_replaces_what_is_not_an_index(index, tmp_path):
    mine = tmp_path / "photos"
    mine.mkdir()
    (mine / "holiday.jpg").write_text("mine")
    with pytest.raises(ValueError, match="other things than an index"):
        index.save(mine)
    assert (mine / "holiday.jpg").read_text() == "mine"
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="other things than an index"):
        index.save(tmp_path / "file")


def test_full_disk_while_saving_leaves_the_old_index(index, folder, monkeypatch):
    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    index.remove(["p0"])
    monkeypatch.setattr("reid_hub.index.storage.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        index.save(folder)
    assert len(GalleryIndex.load(folder)) == 20
    assert [path.name for path in folder.parent.iterdir()] == ["index"]
