import json
import time
from itertools import pairwise

import numpy as np
import pytest
from safetensors.numpy import load_file

from reid_hub.index import GalleryIndex
from reid_hub.index.columns import Codecs, options_of
from reid_hub.index.segment_file import BLOCK

from .made import SEGMENT, answers, assert_same, names, x


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
    written = [options_of(Codecs(i.codec, i.rescore, i.rescore_factor)) for i in (index, again)]
    assert written[0] == written[1] == json.loads((tmp_path / "index" / "manifest.json").read_text())["options"]
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


def test_an_index_changed_by_another_process_is_not_overwritten(folder):
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


def test_loading_while_another_process_saves(folder, monkeypatch):
    stale = GalleryIndex.load(folder)._stored.manifest
    other = GalleryIndex.load(folder)
    other.remove(["p1"])
    other.save(folder, compact=True)  # the files of the stale manifest are gone
    from reid_hub.index import gallery

    manifests = [stale]
    real = gallery.read_manifest
    monkeypatch.setattr(gallery, "read_manifest", lambda path: manifests.pop() if manifests else real(path))
    assert GalleryIndex.load(folder).ids == other.ids


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


def test_rescoring_reads_only_the_candidates(tmp_path):
    index = GalleryIndex(256, codec="binary", rescore="float32")
    index.add(x(20_000, dim=256), names(20_000))
    index.save(tmp_path / "index")
    again = GalleryIndex.load(tmp_path / "index")
    again.search(x(1, dim=256, seed=1), 1)
    # 20 MB of vectors, of which 20 are candidates; and all bits, 0.6 MB.
    assert again._stored.segments[0].file.bytes_read < 20_000 * 32 + 50 * BLOCK
