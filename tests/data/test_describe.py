import numpy as np
import pytest

from reid_hub.data.describe import camera_note, describe_splits


def split(pids, camids):
    return {"pid": list(pids), "camid": list(camids)}


def test_a_small_set_counted_by_hand():
    splits = {
        "train": split([0, 0, 0, 1, 2, 2], [0, 1, 1, 0, 4, 4]),
        "query": split([5, 6, 7, 8], [0, 0, 1, 2]),
        # 5 is matched by camera 1; 6 is seen by the query's own camera only; 7 not at all; 8 by its own and another.
        "gallery": split([5, 5, 6, 0, 0, 9, 8, 8], [0, 1, 0, 2, 3, 1, 2, 3]),
    }
    report = describe_splits(splits)
    assert report["train"] == {
        "images": 6,
        "identities": 3,
        "distractors": 0,
        "cameras": 3,
        "single_image_ids": 1,
        "single_camera_ids": 2,
    }
    assert report["gallery"] == {
        "images": 8,
        "identities": 4,
        "distractors": 3,
        "cameras": 4,
        "single_image_ids": 2,
        "single_camera_ids": 2,
    }
    assert report["queries_without_true_match"] == 2
    assert report["camera_note"] is None


def test_without_cameras_every_other_image_of_the_person_is_a_match():
    splits = {"query": split([3, 4, 5], [-1, -1, -1]), "gallery": split([3, 3, 9, 5], [-1, -1, -1, 2])}
    report = describe_splits(splits)
    assert report["queries_without_true_match"] == 1
    assert report["gallery"]["cameras"] == 1
    assert report["query"]["single_camera_ids"] == 0
    assert report["camera_note"].startswith("6 of 7 test images do not have a camera id")


def test_the_camera_note_says_what_is_missing():
    known, unknown = split([1, 2], [0, 1]), split([1, 2], [-1, -1])
    assert camera_note({"query": known, "gallery": known}) is None
    assert camera_note({"train": unknown}) is None
    note = camera_note({"query": unknown, "gallery": unknown})
    assert note.startswith("No test image has a camera id")
    assert "higher" in note


def test_an_unlabelled_training_set_has_no_identities():
    report = describe_splits({"train": split([-1, -1], [-1, -1])})
    assert (report["train"]["images"], report["train"]["identities"]) == (2, 0)
    assert "queries_without_true_match" not in report


@pytest.mark.parametrize("seed", range(5))
def test_unmatched_queries_equal_a_loop(seed):
    rng = np.random.default_rng(seed)
    query = list(zip(rng.integers(0, 12, 40), rng.integers(-1, 3, 40), strict=True))
    gallery = list(zip(rng.integers(0, 12, 25), rng.integers(-1, 3, 25), strict=True))
    expected = sum(
        not any(pid == p and (camid == -1 or camid != c) for p, c in gallery)
        for pid, camid in query
    )  # fmt: skip
    splits = {"query": split(*zip(*query, strict=True)), "gallery": split(*zip(*gallery, strict=True))}
    assert 0 < describe_splits(splits)["queries_without_true_match"] == expected
