import itertools
import json
import math

import numpy as np
import pytest
from scipy.stats import binom

from reid_hub.evaluation import Decision, calibrate, similarity
from reid_hub.index import GalleryIndex

METRICS = pytest.mark.parametrize("metric", ["cosine", "euclidean"])


def people(queries=60, gallery=90, ids=9, dim=8, seed=0, noise=0.7):
    """Noisy images of a few people by three cameras, with junk and unknown cameras among them."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((ids, dim))
    pids = rng.integers(-1, ids, queries), rng.integers(-1, ids, gallery)
    camids = rng.integers(-1, 3, queries), rng.integers(-1, 3, gallery)
    return *[centres[p] + noise * rng.standard_normal((len(p), dim)) for p in pids], *pids, *camids


def slow_pairs(query, gallery, query_pids, gallery_pids, query_camids, gallery_camids, metric):
    """All genuine and all impostor distances, one pair at a time."""
    genuine, impostor = [], []
    for q, q_pid, q_cam in zip(query, query_pids, query_camids, strict=True):
        for g, g_pid, g_cam in zip(gallery, gallery_pids, gallery_camids, strict=True):
            if q_pid == -1 or g_pid == -1 or (q_pid == g_pid and q_cam == g_cam and q_cam != -1):
                continue
            cosine = sum(q * g) / math.sqrt(sum(q * q) * sum(g * g))
            distance = 1 - cosine if metric == "cosine" else math.dist(q, g)
            (genuine if q_pid == g_pid else impostor).append(distance)
    return np.array(genuine), np.array(impostor)


@METRICS
@pytest.mark.parametrize("rate", [0.0005, 0.001, 0.01, 0.1, 0.5, 0.99])
def test_threshold_and_rates_equal_those_of_all_pairs_sorted(metric, rate, monkeypatch):
    monkeypatch.setattr(similarity, "BLOCK_BYTES", 1)  # 64 queries a block
    data = people(queries=150)
    genuine, impostor = slow_pairs(*data, metric)
    decision = calibrate(*data, metric=metric, false_match_rate=rate)
    impostor.sort()
    allowed = max(count for count in range(len(impostor)) if count / len(impostor) <= rate)
    assert decision.threshold == pytest.approx(impostor[allowed], abs=1e-5)  # just below the first that may not match
    assert decision.false_match_rate == allowed / len(impostor)
    assert decision.true_match_rate == pytest.approx(np.mean(genuine < impostor[allowed]))
    assert (decision.genuine_pairs, decision.impostor_pairs) == (len(genuine), len(impostor))


def line(query, gallery, query_pids, gallery_pids, rate):
    """Images are points on a line and cameras are unknown."""
    unknown = [-1] * len(query), [-1] * len(gallery)
    column = (np.array(side, np.float32)[:, None] for side in (query, gallery))
    return calibrate(*column, query_pids, gallery_pids, *unknown, metric="euclidean", false_match_rate=rate)


def test_worked_example_with_ties():
    # Impostors at 1, 2, 2, 2, 5; genuine at 0, 2, 4. At most 3 of 5 may match, but the three at 2 come together
    # with the one at 1, which would be 4: so only the one at 1 matches, and of the genuine pairs only the one at 0.
    points, pids = [1, 2, -2, 2, 5, 0, 2, -4], [2, 2, 2, 3, 3, 1, 1, 1]
    decision = line([0], points, [1], pids, 0.6)
    assert decision.threshold == np.nextafter(np.float32(2), np.float32(0))
    assert decision.false_match_rate == 1 / 5
    assert decision.true_match_rate == 1 / 3
    assert (decision.genuine_pairs, decision.impostor_pairs) == (3, 5)
    # At 4 of 5 all of them match, up to just below 5.
    decision = line([0], points, [1], pids, 0.8)
    assert decision.threshold == np.nextafter(np.float32(5), np.float32(0))
    assert (decision.false_match_rate, decision.true_match_rate) == (4 / 5, 1)


def test_a_rate_that_is_no_binary_fraction_allows_its_whole_share():
    gallery = np.arange(1, 101)  # 100 impostors; 0.29 * 100 is 28.999... in floating point
    for percent in (7, 14, 28, 29, 55, 56, 57, 58):
        decision = line([0], [*gallery, 0], [1], [2] * 100 + [1], percent / 100)
        assert decision.false_match_rate == percent / 100
        assert percent < decision.threshold < percent + 1


@METRICS
def test_a_stricter_rate_never_raises_the_threshold(metric):
    data = people(seed=3)
    decisions = [calibrate(*data, metric=metric, false_match_rate=rate) for rate in np.geomspace(0.9, 0.001, 40)]
    for loose, strict in itertools.pairwise(decisions):
        assert strict.threshold <= loose.threshold
        assert strict.true_match_rate <= loose.true_match_rate
        assert strict.false_match_rate <= strict.wanted_false_match_rate


def test_only_the_other_cameras_images_of_a_person_are_genuine():
    # In turn: by the same camera, by another, by an unknown one, junk, and two other people.
    points, pids, camids = np.eye(2)[[0, 0, 0, 0, 1, 1]], [1, 1, 1, -1, 2, 3], [4, 5, -1, 5, 4, -1]
    decision = calibrate(points[:1], points, [1], pids, [4], camids, false_match_rate=0.5)
    assert (decision.genuine_pairs, decision.impostor_pairs) == (2, 2)
    assert (decision.true_match_rate, decision.false_match_rate) == (1, 0)  # the two others are equally far
    decision = calibrate(points[:1], points, [1], pids, [-1], camids, false_match_rate=0.5)
    assert (decision.genuine_pairs, decision.impostor_pairs) == (3, 2)  # an unknown camera is never the same
    decision = calibrate(points[:2], points, [1, -1], pids, [4, 4], camids, false_match_rate=0.5)
    assert (decision.genuine_pairs, decision.impostor_pairs) == (2, 2)  # nothing pairs with a junk query


def test_blocks_do_not_change_the_answer(monkeypatch):
    data = people(queries=300)
    whole = calibrate(*data, false_match_rate=0.02)
    monkeypatch.setattr(similarity, "BLOCK_BYTES", 1)
    parts = calibrate(*data, false_match_rate=0.02)
    assert parts.threshold == pytest.approx(whole.threshold, abs=1e-6)
    assert parts.true_match_rate == whole.true_match_rate


def test_euclidean_thresholds_are_in_the_units_of_the_embeddings():
    query, gallery, *labels = people()
    small = calibrate(query, gallery, *labels, metric="euclidean", false_match_rate=0.05)
    large = calibrate(1000 * query + 5000, 1000 * gallery + 5000, *labels, metric="euclidean", false_match_rate=0.05)
    assert large.threshold == pytest.approx(1000 * small.threshold, rel=1e-4)


@METRICS
def test_the_decision_fits_the_distances_of_a_search(metric):
    query, gallery, query_pids, gallery_pids, query_camids, gallery_camids = people()
    gallery_pids[gallery_pids == -1] = 100  # nobody is junk, and no camera is known: every pair counts
    query_pids[query_pids == -1] = 101
    decision = calibrate(query, gallery, query_pids, gallery_pids, 0 * query_camids - 1, 0 * gallery_camids - 1,
                         metric=metric, false_match_rate=0.03)  # fmt: skip
    index = GalleryIndex(8, metric=metric)
    index.add(gallery, [str(row) for row in range(len(gallery))])
    distances, ids = index.search(query, len(gallery))
    same = query_pids[:, None] == gallery_pids[ids.astype(int)]
    matches = decision.matches(distances)
    # The threshold lies directly below an impostor pair; the search rounds otherwise and may find it on the other side.
    assert abs(matches[~same].sum() - decision.false_match_rate * decision.impostor_pairs) < 1.5
    assert matches[same].mean() == pytest.approx(decision.true_match_rate)


def test_the_interval_is_where_the_count_becomes_unlikely():
    decision = calibrate(*people(), false_match_rate=0.01)
    low, high = decision.false_match_interval
    count = round(decision.false_match_rate * decision.impostor_pairs)
    assert binom.sf(count - 1, decision.impostor_pairs, low) == pytest.approx(0.025)
    assert binom.cdf(count, decision.impostor_pairs, high) == pytest.approx(0.025)


def test_a_decision_survives_json():
    decision = calibrate(*people(), false_match_rate=0.01, dataset="synthetic", precision="int8")
    assert Decision.from_dict(json.loads(json.dumps(decision.to_dict()))) == decision
    with pytest.raises(ValueError, match="got threshold: write it with"):
        Decision.from_dict({"threshold": 1.0})
    with pytest.raises(ValueError, match="0 or more, got nan"):
        Decision.from_dict({**decision.to_dict(), "threshold": float("nan")})


def test_impossible_demands_are_refused():
    data = people(queries=10, gallery=20)
    for rate in (0, 1, -0.1, 2, float("nan")):
        with pytest.raises(ValueError, match="false_match_rate must be between 0 and 1"):
            calibrate(*data, false_match_rate=rate)
    with pytest.raises(ValueError, match=r"rate of 0.001 needs at least 1000 impostor pairs, got \d+: use more"):
        calibrate(*data)
    query, gallery, query_pids, gallery_pids, *camids = people()
    with pytest.raises(ValueError, match="no genuine pair"):
        calibrate(query, gallery, query_pids, np.where(gallery_pids < 0, -1, gallery_pids + 50), *camids)
    with pytest.raises(ValueError, match="more than 1 of 5 impostor pairs have distance 0"):
        line([0], [0, 0, 0, 1, 2, 0], [1], [2, 2, 2, 2, 2, 1], 0.2)
    with pytest.raises(ValueError, match="query_camids must be 60 integers"):
        calibrate(query, gallery, query_pids, gallery_pids, [0.5] * 60, camids[1])
