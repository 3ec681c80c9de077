import json

import numpy as np
import pytest
import torch

from reid_hub.evaluation import metrics, similarity
from reid_hub.evaluation.metrics import average_precision, evaluate_retrieval, match_ranks


def slow_evaluation(distances, query_pids, gallery_pids, query_camids, gallery_camids, max_rank):
    """The protocol read aloud: one query at a time, the whole gallery sorted, one image at a time."""
    precisions, penalties, curves = [], [], []
    for distance, pid, camid in zip(distances, query_pids, query_camids, strict=True):
        hits, seen, total = [], 0, 0.0
        for g in np.argsort(distance, kind="stable"):
            if gallery_pids[g] == -1:
                continue
            if gallery_pids[g] == pid and gallery_camids[g] == camid and camid != -1:
                continue
            hits.append(bool(gallery_pids[g] == pid))
        if not any(hits):
            precisions.append(float("nan"))
            continue
        for rank, hit in enumerate(hits, start=1):
            if hit:
                seen += 1
                total += seen / rank
                last = rank
        precisions.append(total / seen)
        penalties.append(seen / last)
        curves.append([any(hits[:k]) for k in range(1, max_rank + 1)])
    return np.array(precisions), np.mean(penalties), np.mean(curves, axis=0)


def random_case(seed, *, queries=40, gallery=150, pids=12, cameras=4, dim=5, spread=3):
    """Small integers: products are exact, ties are many; some junk, distractors and unknown cameras."""
    rng = np.random.default_rng(seed)
    return (
        rng.integers(-spread, spread + 1, (queries, dim)).astype(np.float32),
        rng.integers(-spread, spread + 1, (gallery, dim)).astype(np.float32),
        rng.integers(1, pids + 3, queries),  # two pids are missing from the gallery
        rng.integers(-1, pids + 1, gallery),
        rng.integers(-1, cameras, queries),
        rng.integers(-1, cameras, gallery),
    )


def squared_distances(query, gallery):
    return ((query.astype(np.float64)[:, None] - gallery.astype(np.float64)[None]) ** 2).sum(axis=2)


def assert_equals_slow(results, distances, labels, max_rank):
    precision, mean_inp, cmc = slow_evaluation(distances, *labels, max_rank)
    np.testing.assert_allclose(results.per_query, precision, rtol=1e-12)
    assert results.num_valid_queries == np.isfinite(precision).sum()
    assert results.mAP == pytest.approx(np.nanmean(precision), rel=1e-12)
    assert results.mINP == pytest.approx(mean_inp, rel=1e-12)
    np.testing.assert_array_equal(results.cmc, cmc)
    assert (results.rank1, results.rank5, results.rank10) == (cmc[0], cmc[4], cmc[9])


@pytest.mark.parametrize("seed", range(20))
def test_equals_the_slow_loop_with_ties_junk_distractors_and_unknown_cameras(seed):
    query, gallery, *labels = random_case(seed)
    results = evaluate_retrieval(query, gallery, *labels, metric="euclidean", max_rank=20, per_query=True)
    assert 0 < results.num_valid_queries < len(query)
    assert_equals_slow(results, squared_distances(query, gallery), labels, 20)


@pytest.mark.parametrize("seed", range(5))
def test_cosine_equals_the_slow_loop_where_unit_vectors_are_exact(seed):
    rng = np.random.default_rng(seed)
    _, _, *labels = random_case(seed)
    # Sixteen signs have length four: unit vectors and their products are exact, and only 9 similarities occur.
    query, gallery = (rng.choice([-1.0, 1.0], (n, 16)) * rng.choice([1, 2, 4], (n, 1)) for n in (40, 150))
    similarity = (query @ gallery.T) / np.outer(np.linalg.norm(query, axis=1), np.linalg.norm(gallery, axis=1))
    results = evaluate_retrieval(query, gallery, *labels, max_rank=20, per_query=True)
    assert_equals_slow(results, -similarity, labels, 20)


@pytest.mark.parametrize("sort_cost", [0, 1, 10**9])
def test_counting_and_sorting_give_the_same_ranks(monkeypatch, sort_cost):
    monkeypatch.setattr(metrics, "_SORT_COST", sort_cost)
    rng = np.random.default_rng(0)
    for _ in range(50):
        scores = rng.integers(0, 30, 200).astype(np.float32)
        scores[rng.choice(200, 20, replace=False)] = -np.inf
        matches = np.sort(rng.choice(np.flatnonzero(np.isfinite(scores)), rng.integers(1, 30), replace=False))
        order = np.argsort(-scores, kind="stable")
        np.testing.assert_array_equal(match_ranks(scores, matches), np.flatnonzero(np.isin(order, matches)) + 1)


@pytest.mark.parametrize("rows", [1, 7, 39, 40, 64])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_no_result_depends_on_the_block_size(monkeypatch, metric, rows):
    query, gallery, *labels = random_case(3)
    if metric == "cosine":  # four signs have length two: unit vectors are exact
        query, gallery = (np.where(x[:, :4] > 0, 1, -1) for x in (query, gallery))
    whole = evaluate_retrieval(query, gallery, *labels, metric=metric, per_query=True)
    monkeypatch.setattr(metrics, "block_rows", lambda columns: rows)
    blocked = evaluate_retrieval(query, gallery, *labels, metric=metric, per_query=True)
    assert blocked.to_dict() == whole.to_dict()


def test_no_result_depends_on_the_number_of_threads(monkeypatch):
    rng = np.random.default_rng(0)
    _, _, *labels = random_case(0, queries=300, gallery=400)
    query, gallery = rng.standard_normal((300, 37)), rng.standard_normal((400, 37))
    monkeypatch.setattr(metrics, "block_rows", lambda columns: 32)
    results = []
    for threads in (1, 4):
        monkeypatch.setattr(similarity, "MAX_THREADS", threads)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
        results.append(evaluate_retrieval(query, gallery, *labels, per_query=True).to_dict())
    assert results[0] == results[1]


# Worked by hand: one-dimensional embeddings, the query stands at 0, so the gallery value is the distance.


def at_distances(distances, pids, camids, **options):
    return evaluate_retrieval(
        np.zeros((1, 1)), np.array(distances)[:, None], [7], pids, [0], camids, metric="euclidean", **options
    )


def test_two_matches_at_ranks_one_and_three():
    results = at_distances([1, 2, 3, 4], [7, 5, 7, 5], [1, 1, 1, 1], max_rank=4)
    assert results.mAP == pytest.approx((1 + 2 / 3) / 2)
    assert results.mINP == pytest.approx(2 / 3)
    assert results.cmc.tolist() == [1, 1, 1, 1]


def test_images_of_the_same_person_and_camera_take_no_rank():
    results = at_distances([1, 2, 3, 4], [7, 5, 5, 7], [0, 0, 1, 1], max_rank=3)
    assert results.mAP == pytest.approx(1 / 3)
    assert results.cmc.tolist() == [0, 0, 1]


def test_junk_takes_no_rank_and_a_distractor_does():
    results = at_distances([1, 2, 3], [-1, 0, 7], [1, 1, 1], max_rank=3)
    assert results.mAP == pytest.approx(1 / 2)
    assert results.num_gallery == 3


def test_equal_distances_rank_by_gallery_position():
    assert at_distances([1, 1, 1], [5, 7, 5], [1, 1, 1]).mAP == pytest.approx(1 / 2)
    assert at_distances([1, -1, 1], [7, 5, 7], [1, 1, 1]).mAP == pytest.approx((1 + 2 / 3) / 2)


def test_an_unknown_camera_never_drops_an_image():
    case = np.zeros((1, 1)), np.array([[1.0], [2.0], [3.0]]), [7], [7, 5, 7]
    known = evaluate_retrieval(*case, [3], [3, 4, 4], metric="euclidean")
    unknown = evaluate_retrieval(*case, [-1], [-1, -1, -1], metric="euclidean")
    assert known.mAP == pytest.approx(1 / 2)
    assert unknown.mAP == pytest.approx((1 + 2 / 3) / 2)
    assert "are dropped" in known.protocol["same_camera"]
    assert "not applied" in unknown.protocol["same_camera"]


def test_identity_zero_is_a_person_where_a_query_has_it():
    assert evaluate_retrieval([[1.0]], [[1.0], [-1.0]], [0], [0, 1], [0], [1, 1]).mAP == 1


def test_a_junk_query_matches_nothing():
    results = evaluate_retrieval([[1.0], [1.0]], [[1.0], [1.0]], [-1, 3], [-1, 3], [0, 0], [1, 1], per_query=True)
    assert results.num_valid_queries == 1
    assert np.isnan(results.per_query[0])
    assert results.to_dict()["per_query"] == [None, 1.0]


def test_cmc_goes_on_beyond_a_small_gallery_and_ranks_do_not_depend_on_its_length():
    results = at_distances([1, 2, 3], [5, 5, 7], [1, 1, 1], max_rank=6)
    assert results.cmc.tolist() == [0, 0, 1, 1, 1, 1]
    assert at_distances([1, 2, 3], [5, 5, 7], [1, 1, 1], max_rank=2).rank5 == 1


def test_average_precision_of_hits_at_ranks_one_and_three():
    assert average_precision(torch.tensor([1.0, 0.0, 1.0])) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision([False, True]) == 0.5
    with pytest.raises(ValueError, match="at least one hit"):
        average_precision(np.zeros(4))


# Invariances and types.


@pytest.fixture
def float_case():
    rng = np.random.default_rng(5)
    _, _, *labels = random_case(5)
    return rng.standard_normal((40, 16)).astype(np.float32), rng.standard_normal((150, 16)).astype(np.float32), labels


def test_cosine_ignores_lengths_even_at_the_ends_of_float32(float_case):
    query, gallery, labels = float_case
    lengths = np.random.default_rng(0).choice([1e-30, 1e-3, 1.0, 1e20], (150, 1)).astype(np.float32)
    expected = evaluate_retrieval(query, gallery, *labels, per_query=True).to_dict()
    assert evaluate_retrieval(query * 1e-30, gallery * lengths, *labels, per_query=True).to_dict() == expected


def test_euclidean_on_unit_vectors_equals_cosine(float_case):
    query, gallery, labels = float_case
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (query, gallery)]
    euclidean = evaluate_retrieval(*unit, *labels, metric="euclidean", per_query=True)
    cosine = evaluate_retrieval(query, gallery, *labels, per_query=True)
    np.testing.assert_array_equal(euclidean.per_query, cosine.per_query)
    assert (euclidean.protocol["metric"], cosine.protocol["metric"]) == ("euclidean", "cosine")


@pytest.mark.parametrize(("scale", "offset"), [(1e-25, 0), (1e25, 0), (1, 1e5), (1e-3, -7)])
def test_euclidean_survives_scale_and_offset(float_case, scale, offset):
    query, gallery, labels = float_case
    query, gallery = ((x * np.float64(scale) + offset).astype(np.float32) for x in (query, gallery))
    results = evaluate_retrieval(query, gallery, *labels, metric="euclidean", max_rank=10, per_query=True)
    assert_equals_slow(results, squared_distances(query, gallery), labels, 10)


def test_permuting_a_gallery_without_ties_changes_nothing(float_case):
    query, gallery, (query_pids, gallery_pids, query_camids, gallery_camids) = float_case
    order = np.random.default_rng(0).permutation(len(gallery))
    one = evaluate_retrieval(query, gallery, query_pids, gallery_pids, query_camids, gallery_camids)
    other = evaluate_retrieval(
        query, gallery[order], query_pids, gallery_pids[order], query_camids, gallery_camids[order]
    )
    assert one.to_dict() == other.to_dict()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int32])
def test_types_give_the_result_of_their_values(dtype):
    query, gallery, *labels = random_case(8, spread=100)
    expected = evaluate_retrieval(query, gallery, *labels, metric="euclidean", per_query=True).to_dict()
    tensors = [torch.from_numpy(x).to(dtype) for x in (query, gallery)]
    assert (tensors[0].float().numpy() == query).all()
    labels = [torch.from_numpy(x).to(torch.int32) for x in labels]
    assert evaluate_retrieval(*tensors, *labels, metric="euclidean", per_query=True).to_dict() == expected
    if dtype is torch.int8:
        codes = [x.astype(np.int8) for x in (query, gallery)]
        assert evaluate_retrieval(*codes, *labels, metric="euclidean", per_query=True).to_dict() == expected


def test_inputs_are_left_as_they_were(float_case):
    query, gallery, labels = float_case
    before = [x.copy() for x in (query, gallery, *labels)]
    evaluate_retrieval(query, gallery, *labels, metric="euclidean", rerank=True)
    evaluate_retrieval(query, gallery, *labels)
    for old, new in zip(before, (query, gallery, *labels), strict=True):
        np.testing.assert_array_equal(old, new)


def test_results_go_to_json_and_back(float_case):
    query, gallery, labels = float_case
    results = evaluate_retrieval(query, gallery, *labels, max_rank=7)
    read = json.loads(json.dumps(results.to_dict(), allow_nan=False))
    assert read["mAP"] == results.mAP
    assert read["cmc"] == results.cmc.tolist()
    assert read["per_query"] is None
    assert (read["num_queries"], read["num_gallery"]) == (40, 150)
    assert "non-interpolated" in read["protocol"]["average_precision"]
    assert "earlier first" in read["protocol"]["ties"]


# Bad input.


def changed(case, position, row, value):
    case = [x.copy() for x in case]
    case[position][row] = value
    return case


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_rows_are_named(value):
    case = changed(random_case(0), 1, [4, 17], value)
    with pytest.raises(ValueError, match=r"gallery_embeddings: 2 of 150 rows hold NaN.*rows 4, 17"):
        evaluate_retrieval(*case)


def test_zero_vectors_have_no_cosine_but_a_distance():
    case = changed(random_case(0, dim=8), 0, slice(3, 12), 0)
    with pytest.raises(
        ValueError, match=r"query_embeddings: 9 of 40 rows have zero length.*rows 3, 4, 5, 6, 7, \.\.\."
    ):
        evaluate_retrieval(*case)
    evaluate_retrieval(*case, metric="euclidean")


def test_wrong_shapes_and_types_are_named():
    query, gallery, query_pids, gallery_pids, query_camids, gallery_camids = random_case(0)
    labels = query_pids, gallery_pids, query_camids, gallery_camids
    for bad, message in [
        ((query[:, :3], gallery, *labels), "same dimension, got 3 and 5"),
        ((query[0], gallery, *labels), r"query_embeddings must be numbers of shape .*got float32 of shape \(5,\)"),
        ((query, gallery[:0], *labels), r"gallery_embeddings must be .*shape \(0, 5\)"),
        ((query, gallery.astype(complex), *labels), "complex128"),
        ((query, gallery, query_pids[:-1], *labels[1:]), r"query_pids must be 40 integers.*shape \(39,\)"),
        ((query, gallery, *labels[:3], gallery_camids + 0.5), "gallery_camids must be 150 integers.*float64"),
    ]:
        with pytest.raises(ValueError, match=message):
            evaluate_retrieval(*bad, metric="euclidean")


def test_unknown_options_are_named():
    case = random_case(0)
    with pytest.raises(ValueError, match="metric must be one of cosine, euclidean, got 'l1'"):
        evaluate_retrieval(*case, metric="l1")
    with pytest.raises(ValueError, match="max_rank must be at least 1"):
        evaluate_retrieval(*case, max_rank=0)
    with pytest.raises(ValueError, match="rerank must be"):
        evaluate_retrieval(*case, rerank={"k1": 20})


def test_a_set_without_any_true_match_is_an_error():
    query, gallery, query_pids, gallery_pids, query_camids, gallery_camids = random_case(0)
    with pytest.raises(ValueError, match="none of the 40 queries has a true match"):
        evaluate_retrieval(
            query, gallery, query_pids + 100, gallery_pids, query_camids, gallery_camids, metric="euclidean"
        )
    with pytest.raises(ValueError, match="another camera"):
        evaluate_retrieval(
            query, gallery, query_pids, gallery_pids, 0 * query_camids, 0 * gallery_camids, metric="euclidean"
        )


def test_a_point_far_beyond_all_others_is_refused_under_euclidean():
    case = changed(random_case(0), 0, 2, 3e38)
    with pytest.raises(ValueError, match=r"query_embeddings: 1 of 40 rows lie too far.*rows 2"):
        evaluate_retrieval(*case, metric="euclidean")
