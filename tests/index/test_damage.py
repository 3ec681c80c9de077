"""Every way a folder can be wrong is found and named, and nothing is overwritten."""

import json
import shutil

import numpy as np
import pytest

from reid_hub.index import GalleryIndex
from reid_hub.index.segment_file import BLOCK

from .made import MEMBERS, SEGMENT, SUMS, answers, assert_same, edit_manifest, names, x


@pytest.mark.parametrize("member", MEMBERS)
def test_every_truncation_and_bit_flip_is_found(folder, member):
    path = folder / member
    content, right = path.read_bytes(), answers(GalleryIndex.load(folder))
    damages = [b"", content[: len(content) // 2], content[:-2], content + b"x"]
    for place in np.random.default_rng(0).integers(0, len(content) - 1, 60):
        flipped = bytearray(content)
        flipped[place] ^= 1 << (place % 7)
        damages.append(bytes(flipped))
    for damaged in damages:
        path.write_bytes(damaged)
        for open_it in (lambda: GalleryIndex.load(folder, verify=True), lambda: GalleryIndex.load(folder, mmap=False)):
            with pytest.raises(ValueError, match=member):
                open_it()
        assert path.read_bytes() == damaged
    path.write_bytes(content)
    assert_same(right, answers(GalleryIndex.load(folder)))


def test_a_damaged_block_is_found_when_it_is_first_read_and_only_then(tmp_path):
    index = GalleryIndex(64, metric="euclidean")  # stores vectors as they are
    index.add(x(4 * BLOCK // 256, dim=64), names(4 * BLOCK // 256))
    index.save(tmp_path / "index")
    path = tmp_path / "index" / SEGMENT
    place = path.read_bytes().index(x(4 * BLOCK // 256, dim=64)[700].tobytes())
    with path.open("r+b") as file:
        file.seek(place)
        file.write(b"\xff")
    again = GalleryIndex.load(tmp_path / "index")
    assert "p700" in again
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"{SEGMENT} is damaged: its bytes .* do not fit their checksum"):
            again.search(x(1, dim=64), 1)
    with pytest.raises(ValueError, match="is damaged"):
        again.save(tmp_path / "copy")
    assert not (tmp_path / "copy/manifest.json").exists()


@pytest.mark.parametrize("member", MEMBERS)
def test_missing_file_is_named(folder, member):
    (folder / member).unlink()
    with pytest.raises(FileNotFoundError, match=member):
        GalleryIndex.load(folder)


def test_files_of_two_indexes_are_not_mixed(folder, tmp_path):
    other = GalleryIndex(8, metric="euclidean")
    other.add(np.ones((20, 8)), names(20, "q"))
    other.save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / SEGMENT, folder / SEGMENT)
    with pytest.raises(ValueError, match="is damaged"):
        GalleryIndex.load(folder)
    shutil.copy(tmp_path / "other" / SUMS, folder / SUMS)
    with pytest.raises(ValueError, match=rf"{SUMS} is damaged"):
        GalleryIndex.load(folder)


def test_wrong_fingerprint_is_refused(folder):
    with pytest.raises(ValueError, match="made with 'model@1', not with 'model@2'"):
        GalleryIndex.load(folder, fingerprint="model@2")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "something else"}, "not the manifest of a gallery index"),
        ({"version": 1}, "version must be 2, got 1"),
        ({"dim": "8"}, "'dim' must be of type int"),
        ({"dim": 4}, r"codes must be float32 \(20, 4\)"),
        ({"codec": "float16"}, r"codes must be float16 \(20, 8\)"),
        ({"count": 18}, "count must be 19 as in the segments"),
        ({"codec": "float31"}, "did you mean 'float32'"),
        ({"metric": "euclidian"}, "did you mean 'euclidean'"),
        ({"options": {"scale": 1}}, "'float32' has no scale"),
        ({"options": {"sale": 1}}, "describes no index"),
        ({"fingerprint": 3}, "'fingerprint' must be of type str | None"),
        ({"segments": {}}, "'segments' must be of type list"),
        ({"segments": ["a"]}, "every segment must be an object"),
        ({"segments": [{"name": SEGMENT}]}, "'rows' must be of type int"),
        ({"removed": None}, "count must be 20"),
    ],
)
def test_manifest_that_does_not_fit_is_refused(folder, changes, message):
    edit_manifest(folder, **changes)
    with pytest.raises(ValueError, match=message):
        GalleryIndex.load(folder)


@pytest.mark.parametrize("escape", ["../secret", "/etc/hostname"])
@pytest.mark.parametrize("key", ["segments", "removed"])
def test_member_outside_of_the_folder_is_refused(folder, escape, key):
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = manifest[key][0] if key == "segments" else manifest[key]
    entry["name"] = escape
    edit_manifest(folder, **{key: manifest[key]})
    with pytest.raises(ValueError, match="is outside"):
        GalleryIndex.load(folder)


@pytest.mark.parametrize("member", MEMBERS[:3])
def test_link_that_leaves_the_folder_is_refused(folder, member):
    outside = folder.parent / "outside"
    (folder / member).rename(outside)
    (folder / member).symlink_to(outside)
    with pytest.raises(ValueError, match="is outside"):
        GalleryIndex.load(folder)


def test_saving_never_replaces_what_is_not_an_index(index, tmp_path):
    mine = tmp_path / "photos"
    mine.mkdir()
    (mine / "holiday.jpg").write_text("mine")
    with pytest.raises(ValueError, match="other things than an index"):
        index.save(mine)
    assert [file.name for file in mine.iterdir()] == ["holiday.jpg"]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="other things than an index"):
        index.save(tmp_path / "file")


def test_full_disk_while_saving_leaves_the_old_index(folder, monkeypatch):
    index = GalleryIndex.load(folder)
    right = answers(index)

    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    index.remove(["p0"])
    index.add(x(2), ["new", "newer"])
    changed = answers(index)
    for name in ("write_segment", "_write_file", "atomic_file"):
        with monkeypatch.context() as patch:
            patch.setattr(f"reid_hub.index.storage.{name}", full)
            with pytest.raises(OSError, match="No space left"):
                index.save(folder)
        assert_same(right, answers(GalleryIndex.load(folder, verify=True)))
        assert_same(changed, answers(index))
    index.save(folder)
    assert_same(changed, answers(GalleryIndex.load(folder, verify=True)))
    assert len(list(folder.glob("segment-*"))) == 4  # what the failed saves left is swept away
