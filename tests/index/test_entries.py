"""Entries of an index: adding, updating, metadata, thresholds."""

import json

import numpy as np
import pytest

from reid_hub.index import GalleryIndex


def names(count, start=0):
    return [f"img/{number}.jpg" for number in range(start, start + count)]


def vectors(count, dim=16, seed=0):
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)


def test_many_small_additions_cost_linear_time():
    """Copies, not seconds: the buffer is replaced a logarithmic number of times."""
    index, buffers = GalleryIndex(4), []
    x = vectors(3000, dim=4)
    for row in range(3000):
        index.add(x[row : row + 1], [str(row)])
        buffer = index._table.parts[-1].block(0, 1, ["codes"])["codes"].base
        if not buffers or buffers[-1] is not buffer:
            buffers.append(buffer)
    assert len(buffers) < 30
    assert index.search(x[1234:1235], 1)[1][0, 0] == "1234"


def test_repeated_updates_do_not_grow_the_index():
    index, x = GalleryIndex(4), vectors(10, dim=4)
    index.add(x, names(10))
    for round in range(200):
        index.update(x[::-1] if round % 2 else x, names(10))
    assert index._table.parts[-1].size < 40
    assert index.search(x, 1)[1][:, 0].tolist() == names(10)[::-1]


def test_manifest_says_what_the_index_is(tmp_path):
    index = GalleryIndex(16, metric="euclidean", fingerprint="osnet-x0.25@abc")
    index.add(vectors(5), names(5))
    index.save(tmp_path / "index")
    manifest = json.loads((tmp_path / "index/manifest.json").read_text())
    assert {key: manifest[key] for key in ("version", "dim", "codec", "metric", "fingerprint", "count")} == {
        "version": 2,
        "dim": 16,
        "codec": "float32",
        "metric": "euclidean",
        "fingerprint": "osnet-x0.25@abc",
        "count": 5,
    }
    assert sorted(file.name for file in (tmp_path / "index").iterdir()) == [
        ".lock",
        "manifest.json",
        "segment-000001.safetensors",
        "segment-000001.sha256",
    ]


def test_update_replaces_vector_camera_and_metadata_and_counts_as_added_anew():
    x = vectors(4)
    index = GalleryIndex(16)
    index.add(x, names(4), [1, 2, 3, 4], [{"n": 0}, {}, {"n": [2, "é"]}, {"n": None}])
    index.update(x[:1] * 2, ["img/3.jpg"], metadata=[{"new": True}])  # the direction of img/0.jpg
    assert index.ids == names(4)
    assert index.search(x[:1], 2)[1][0].tolist() == ["img/0.jpg", "img/3.jpg"]
    assert index.search(x[:1], 2, exclude_camids=[4])[1][0, 0] == "img/0.jpg"
    index.update(x[:1], ["img/0.jpg"])
    assert index.search(x[:1], 2)[1][0].tolist() == ["img/3.jpg", "img/0.jpg"]
    assert index.search(x[:1], 1, exclude_camids=[4])[1].tolist() == [["img/0.jpg"]]
    assert index.metadata(names(4)) == [{"n": 0}, {}, {"n": [2, "é"]}, {"new": True}]
    before = index.search(x, 4)
    for arguments in [
        (x[:2], ["img/1.jpg", "nobody"]),
        (np.full((1, 16), np.nan), ["img/1.jpg"]),
        (x[:2], ["img/1.jpg"]),
    ]:
        with pytest.raises(ValueError, match=r"nobody|NaN|2 embeddings and 1 ids"):
            index.update(*arguments)
    for one, other in zip(before, index.search(x, 4), strict=True):
        np.testing.assert_array_equal(one, other)


def test_metadata_that_would_not_come_back_is_refused():
    index = GalleryIndex(16)
    for metadata, message in [
        ([{"a": (1, 2)}], "come back from JSON"),
        ([{1: 2}], "come back from JSON"),
        ([{"a": object()}], "not JSON serializable"),
        ([{"a": float("nan")}], "'x' is not"),
        (["text"], "it is a str"),
        ([{}, {}], "one metadata mapping per id: 1, got 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            index.add(vectors(1), ["x"], metadata=metadata)
    assert len(index) == 0


def test_results_beyond_the_threshold_are_left_out():
    gallery = np.array([[1.0, 0], [1, 1], [0, 1], [-1, 0]])
    index = GalleryIndex(2)
    index.add(gallery, list("abcd"))
    distances, ids = index.search([[1.0, 0]], 4, max_distance=1.0)
    assert ids.tolist() == [["a", "b", "c", None]]
    np.testing.assert_allclose(distances, [[0, 1 - 2**-0.5, 1, np.inf]], atol=1e-7)
    assert index.search([[-1.0, -1]], 2, max_distance=0.1)[1].tolist() == [[None, None]]
    for wrong in (-1, float("nan")):
        with pytest.raises(ValueError, match="max_distance must be a number from 0"):
            index.search([[1.0, 0]], 1, max_distance=wrong)
