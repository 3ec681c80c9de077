import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise

import numpy as np
import pytest
from safetensors.numpy import load_file

from reid_hub.index import GalleryIndex
from reid_hub.index.segment_file import BLOCK

SEGMENT, SUMS, REMOVED = "segment-000001.safetensors", "segment-000001.sha256", "removed-000002.int64"
MEMBERS = [SEGMENT, SUMS, REMOVED, "manifest.json"]


def x(count, dim=8, seed=0):
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)


def names(count, prefix="p"):
    return [f"{prefix}{number}" for number in range(count)]


@pytest.fixture
def index():
    index = GalleryIndex(8, metric="euclidean", fingerprint="model@1")
    cameras = np.random.default_rng(0).integers(0, 3, 20)
    index.add(x(20), names(20), cameras, [{"n": number} if number % 2 else {} for number in range(20)])
    return index


@pytest.fixture
def folder(index, tmp_path):
    """Saved, then one vector removed and saved again: a folder with every kind of file."""
    index.save(tmp_path / "index")
    index.remove(["p7"])
    index.save(tmp_path / "index")
    return tmp_path / "index"


def answers(index):
    queries, excluded = x(6, seed=1), [0, 1, 2, -1, 0, 1]
    return [*index.search(queries, 20, exclude_camids=excluded), index.ids, index.metadata(index.ids)]


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def edit_manifest(folder, **changes):
    path = folder / "manifest.json"
    manifest = {**json.loads(path.read_text()), **changes}
    del manifest["sha256"]
    manifest["sha256"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize("backend", ["torch", "faiss"])
@pytest.mark.parametrize("mmap", [True, False])
def test_loading_gives_the_index_that_was_saved(index, folder, backend, mmap):
    again = GalleryIndex.load(folder, fingerprint="model@1", backend=backend, mmap=mmap, verify=True)
    assert_same(answers(index), answers(again))
    assert (again.dim, again.metric, again.codec.name, again.fingerprint) == (8, "euclidean", "float32", "model@1")
    assert len(again) == 19
    assert "p7" not in again
    assert "p8" in again


@pytest.mark.parametrize(
    "form",
    [
        {"codec": "int8", "scale": np.linspace(0.1, 0.7, 8, dtype=np.float32)},
        {"codec": "binary", "center": np.float32(0.1), "rescore": "int8", "rescore_factor": 2, "scale": 0.3},
        {"codec": "float16", "metric": "euclidean"},
    ],
)
def test_options_of_a_codec_come_back_exactly(form, tmp_path):
    index = GalleryIndex(8, **form)
    index.add(x(30), names(30))
    before = index.search(x(5, seed=1), 9)
    index.save(tmp_path / "index")
    again = GalleryIndex.load(tmp_path / "index")
    assert again.codec.options() == index.codec.options()
    assert_same(before, again.search(x(5, seed=1), 9))


def test_a_segment_is_a_safetensors_file_anyone_can_read(index, folder):
    tensors = load_file(folder / SEGMENT)
    np.testing.assert_array_equal(tensors["codes"], x(20))
    text, offsets = tensors["ids"].tobytes(), tensors["id_offsets"]
    assert [text[a:b].decode() for a, b in pairwise(offsets)] == names(20)
    assert (np.diff(tensors["id_hashes"].astype(object)) > 0).all()


def test_saving_into_the_same_folder_writes_only_what_is_new(tmp_path):
    index = GalleryIndex(8)
    index.add(x(500), names(500))
    index.save(tmp_path / "index")
    first = (tmp_path / "index" / SEGMENT).stat()
    again = GalleryIndex.load(tmp_path / "index")
    again.add(x(10, seed=1), names(10, "new"))
    again.remove(["p3"])
    again.save(tmp_path / "index")
    second = (tmp_path / "index" / SEGMENT).stat()
    assert (second.st_ino, second.st_mtime_ns) == (first.st_ino, first.st_mtime_ns)
    assert (tmp_path / "index/segment-000002.safetensors").stat().st_size < first.st_size / 10
    assert len(GalleryIndex.load(tmp_path / "index")) == 509
    before = again.search(x(5, seed=3), 509)
    again.compact()
    assert_same(before, again.search(x(5, seed=3), 509))
    assert sorted(file.suffix for file in (tmp_path / "index").iterdir()) == ["", ".json", ".safetensors", ".sha256"]
    assert GalleryIndex.load(tmp_path / "index").ids == again.ids


def test_many_small_saves_leave_few_segments(tmp_path):
    index = GalleryIndex(8)
    for number in range(60):
        index.add(x(1, seed=number), [str(number)])
        index.save(tmp_path / "index")
    assert len(list((tmp_path / "index").glob("*.safetensors"))) <= 6  # 60 in binary has six digits
    assert GalleryIndex.load(tmp_path / "index").ids == [str(number) for number in range(60)]


def test_an_index_that_somebody_else_changed_is_not_overwritten(folder):
    mine, other = GalleryIndex.load(folder), GalleryIndex.load(folder)
    other.remove(["p1"])
    other.save(folder)
    mine.add(x(1), ["mine"])
    with pytest.raises(ValueError, match="was changed since this one was loaded"):
        mine.save(folder)
    assert "mine" not in GalleryIndex.load(folder)
    assert "p1" in mine  # the files it reads may be gone from the folder, not from under it
    mine.save(folder.parent / "elsewhere")
    assert GalleryIndex.load(folder.parent / "elsewhere").ids == mine.ids


def test_empty_index_survives(tmp_path):
    GalleryIndex(8).save(tmp_path / "empty")
    again = GalleryIndex.load(tmp_path / "empty")
    assert len(again) == 0
    with pytest.raises(ValueError, match="empty: add embeddings"):
        again.search(x(1), 1)
    again.add(np.ones((1, 8)), ["first"])
    assert again.search(np.ones((1, 8)), 1)[1][0, 0] == "first"
    again.save(tmp_path / "empty")
    again.remove(["first"])
    again.save(tmp_path / "empty")
    assert len(GalleryIndex.load(tmp_path / "empty")) == 0


def test_ids_whose_hashes_are_equal_are_told_apart(index, tmp_path, monkeypatch):
    monkeypatch.setattr("reid_hub.index.parts.hash_of", lambda id: len(id))
    index.save(tmp_path / "index")
    again = GalleryIndex.load(tmp_path / "index")
    again.remove(["p3", "p15"])
    assert again.ids == [id for id in names(20) if id not in ("p3", "p15")]
    assert [id in again for id in ("p4", "p3", "p15", "p16", "q1", "p99")] == [True, False, False, True, False, False]
    assert again.metadata(["p19", "p1", "p2"]) == [{"n": 19}, {"n": 1}, {}]


def test_opening_reads_neither_vectors_nor_ids(tmp_path):
    index = GalleryIndex(64)
    index.add(np.ones((100_000, 64), np.float32), names(100_000, "a rather long name of a picture/"))
    index.save(tmp_path / "index")
    start = time.perf_counter()
    again = GalleryIndex.load(tmp_path / "index")
    seconds = time.perf_counter() - start
    file = again._stored.segments[0].file
    assert file.bytes_read == BLOCK  # the header's block, of more than 400
    assert (tmp_path / "index" / SEGMENT).stat().st_size > 400 * BLOCK
    assert seconds < 1
    assert again.metadata(["a rather long name of a picture/77777"]) == [{}]
    assert file.bytes_read < 30 * BLOCK  # the hashes of all, and one id


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
    with pytest.raises(ValueError, match="would lie outside"):
        GalleryIndex.load(folder)


@pytest.mark.parametrize("member", MEMBERS[:3])
def test_link_that_leaves_the_folder_is_refused(folder, member):
    outside = folder.parent / "outside"
    (folder / member).rename(outside)
    (folder / member).symlink_to(outside)
    with pytest.raises(ValueError, match="would lie outside"):
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


KILLED = """
import os, shutil, signal, sys
import numpy as np
from reid_hub.index import GalleryIndex

def change_and_save(folder, last):
    calls = 0
    def counted(real):
        def call(*arguments, **keywords):
            nonlocal calls
            calls += 1
            if calls == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **keywords)
        return call
    index = GalleryIndex.load(folder)
    index.update(np.ones((1, 8)), ["p2"])
    index.add(np.random.default_rng(9).standard_normal((30, 8)), [f"new{n}" for n in range(30)])
    for name in ("fsync", "replace", "unlink", "open"):
        setattr(os, name, counted(getattr(os, name)))
    index.save(folder)

status, last = None, 0
while status != 0:  # one process each, until one comes through
    last += 1
    folder = shutil.copytree(sys.argv[1], f"{sys.argv[2]}/{last}")
    pid = os.fork()
    if not pid:
        change_and_save(folder, last)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    assert status in (0, signal.SIGKILL), status
"""


def test_a_process_killed_anywhere_in_save_leaves_the_old_or_the_new_index(folder, tmp_path):
    old, work = answers(GalleryIndex.load(folder)), tmp_path / "killed"
    work.mkdir()
    subprocess.run([sys.executable, "-c", KILLED, str(folder), str(work)], check=True)
    sizes = []
    for last in range(1, len(list(work.iterdir())) + 1):
        folder = work / str(last)
        found = GalleryIndex.load(folder, verify=True)
        sizes.append(len(found))
        if len(found) == 19:
            assert_same(old, answers(found))
        else:
            assert found.ids[-1] == "new29"
            assert found.search(np.ones((1, 8)), 1)[1].tolist() == [["p2"]]
        found.add(x(1), ["afterwards"])
        found.save(folder)
        manifest = json.loads((folder / "manifest.json").read_text())
        named = {entry["name"] for entry in manifest["segments"]} | {(manifest["removed"] or {}).get("name")}
        found = {file.name for file in folder.iterdir() if file.suffix in (".safetensors", ".int64")}
        assert found == named - {None}  # what was left behind is swept away
    assert sizes == sorted(sizes)  # the old one up to some call, the new one from there on
    assert {19, 49} == set(sizes)
    assert len(sizes) > 12


ADDS = """
import sys
import numpy as np
from reid_hub.index import GalleryIndex

index = GalleryIndex.load(sys.argv[1])
for number in range(100000):
    index.add(np.full((1, 8), number + 1.0), [str(number)])
    index.save(sys.argv[1])
    print(number, flush=True)
"""


def test_a_process_killed_at_any_time_while_it_adds_and_saves_loses_nothing_it_reported(folder):
    child = subprocess.Popen([sys.executable, "-c", ADDS, str(folder)], stdout=subprocess.PIPE, text=True)
    reported = [int(child.stdout.readline()) for _ in range(20)]
    os.kill(child.pid, signal.SIGKILL)
    reported += [int(line) for line in child.stdout.read().split("\n")[:-1]]
    child.wait()
    found = GalleryIndex.load(folder, verify=True)
    assert len(found) - 19 in (len(reported), len(reported) + 1)
    assert found.ids[19:][: len(reported)] == [str(number) for number in reported]
