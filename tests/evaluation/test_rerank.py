import numpy as np
import pytest
import torch

from reid_hub.evaluation import rerank as module
from reid_hub.evaluation.metrics import evaluate_retrieval
from reid_hub.evaluation.rerank import Rerank, rerank_distances


def dense_reranking(query, gallery, k1, k2, lambda_value):
    """The definition with whole matrices, Python sets and float64, for squared Euclidean distances."""
    images = np.concatenate([query, gallery]).astype(np.float64)
    count, queries = len(images), len(query)
    distance = np.array([[((a - b) ** 2).sum() for b in images] for a in images])
    if distance.max() > 0:
        distance = distance / distance.max(axis=1, keepdims=True)
    ranking = [sorted(range(count), key=lambda j, row=row: (row[j], j)) for row in distance]

    def reciprocal(i, k):
        return {j for j in ranking[i][: k + 1] if i in ranking[j][: k + 1]}

    codes = np.zeros((count, count))
    for i in range(count):
        neighbours = reciprocal(i, k1)
        expanded = set(neighbours)
        for c in neighbours:
            candidates = reciprocal(c, round(k1 / 2))
            if 3 * len(candidates & neighbours) > 2 * len(candidates):
                expanded |= candidates
        for j in expanded:
            codes[i, j] = np.exp(-distance[i, j])
        if expanded:
            codes[i] /= codes[i].sum()
    if k2 > 1:
        codes = np.array([codes[ranking[i][:k2]].mean(axis=0) for i in range(count)])
    result = np.zeros((queries, len(gallery)))
    for q in range(queries):
        for g in range(len(gallery)):
            shared = np.minimum(codes[q], codes[queries + g]).sum()
            jaccard = 1 - shared / (2 - shared)
            result[q, g] = (1 - lambda_value) * jaccard + lambda_value * distance[q, queries + g]
    return result


def people(seed, *, queries=20, gallery=90, dim=8, integers=False):
    """Ten people, several images each, some far off; query, gallery (float32) and their pids."""
    rng = np.random.default_rng(seed)
    centres = 3 * rng.standard_normal((10, dim))
    query_pids, gallery_pids = rng.integers(0, 10, queries), rng.integers(0, 10, gallery)
    query, gallery = (centres[pids] + rng.standard_normal((len(pids), dim)) for pids in (query_pids, gallery_pids))
    if integers:
        query, gallery = np.rint(query), np.rint(gallery)
    return query.astype(np.float32), gallery.astype(np.float32), query_pids, gallery_pids


def reranked(query, gallery, settings=None, metric="euclidean"):
    return np.concatenate(list(rerank_distances(query, gallery, settings, metric=metric)))


def unit(rows):
    return rows / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)


def assert_same_order(one, other):
    np.testing.assert_array_equal(np.argsort(one, axis=1, kind="stable"), np.argsort(other, axis=1, kind="stable"))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("k1", "k2", "lambda_value"), [(20, 6, 0.3), (7, 3, 0.0), (25, 1, 0.5), (1, 2, 0.3)])
def test_equals_the_dense_definition(seed, k1, k2, lambda_value):
    query, gallery, *_ = people(seed)
    expected = dense_reranking(query, gallery, k1, k2, lambda_value)
    found = reranked(query, gallery, Rerank(k1, k2, lambda_value))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    if lambda_value > 0:  # without the plain distance most of a row ties at one
        np.testing.assert_array_equal(
            np.argsort(found, axis=1, kind="stable")[:, :10], np.argsort(expected, axis=1, kind="stable")[:, :10]
        )


def test_equals_the_dense_definition_under_cosine_with_the_default_settings():
    query, gallery, *_ = people(11, queries=40, gallery=220, dim=16)
    expected = dense_reranking(unit(query), unit(gallery), 20, 6, 0.3)
    found = reranked(query, gallery, metric="cosine")
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert_same_order(found, expected)


@pytest.mark.parametrize("seed", range(4))
def test_ties_order_by_index(seed):
    query, gallery, *_ = people(seed, dim=3, integers=True)
    gallery[::7] = gallery[1]  # 13 exact copies
    np.testing.assert_allclose(
        reranked(query, gallery, Rerank(8, 4, 0.3)), dense_reranking(query, gallery, 8, 4, 0.3), atol=1e-6
    )


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_no_result_depends_on_the_block_size(monkeypatch, rows):
    query, gallery, *_ = people(2, integers=True)
    whole = reranked(query, gallery)
    monkeypatch.setattr(module, "block_rows", lambda columns: rows)
    monkeypatch.setattr(module, "_TILE", rows)
    blocks = list(rerank_distances(query, gallery, metric="euclidean"))
    assert [len(block) for block in blocks] == [min(rows, 20 - start) for start in range(0, 20, rows)]
    np.testing.assert_array_equal(np.concatenate(blocks), whole)


@pytest.mark.parametrize("sample", [1, 12, 10**6])
def test_no_result_depends_on_the_sample_that_bounds_the_neighbourhoods(monkeypatch, sample):
    query, gallery, *_ = people(3, queries=100, gallery=900, integers=True)
    expected = reranked(query, gallery)
    monkeypatch.setattr(module, "_SAMPLE", sample)
    np.testing.assert_array_equal(reranked(query, gallery), expected)


def test_lambda_one_gives_the_plain_ranking():
    query, gallery, *_ = people(4)
    plain = ((query[:, None].astype(np.float64) - gallery[None]) ** 2).sum(axis=2)
    assert_same_order(reranked(query, gallery, Rerank(lambda_value=1)), plain)


def test_permuting_the_gallery_permutes_the_result():
    query, gallery, *_ = people(5)
    order = np.random.default_rng(0).permutation(len(gallery))
    np.testing.assert_allclose(reranked(query, gallery[order]), reranked(query, gallery)[:, order], atol=1e-6)


@pytest.mark.parametrize(
    ("queries", "gallery", "k1", "k2"), [(2, 9, 20, 6), (1, 1, 20, 6), (3, 5, 2, 30), (4, 6, 9, 10)]
)
def test_neighbourhoods_as_large_as_the_set(queries, gallery, k1, k2):
    query, gallery, *_ = people(6, queries=queries, gallery=gallery)
    np.testing.assert_allclose(
        reranked(query, gallery, Rerank(k1, k2)), dense_reranking(query, gallery, k1, k2, 0.3), atol=1e-6
    )


def test_a_set_of_copies_gives_finite_distances():
    query, gallery = np.ones((30, 4), np.float32), np.ones((40, 4), np.float32)
    found = reranked(query, gallery)
    np.testing.assert_allclose(found, dense_reranking(query, gallery, 20, 6, 0.3), atol=1e-6)
    assert np.isfinite(reranked(query, gallery, metric="cosine")).all()


def test_scale_and_offset_change_nothing():
    query, gallery, *_ = people(7, integers=True)
    expected = reranked(query, gallery)
    np.testing.assert_array_equal(reranked(query * 2.0**40, gallery * 2.0**40), expected)
    np.testing.assert_array_equal(reranked(query + 4096, gallery + 4096), expected)


def test_evaluation_ranks_by_the_reranked_distances_and_filters_afterwards():
    query, gallery, query_pids, gallery_pids = people(8)
    query_pids, gallery_pids = query_pids + 1, gallery_pids + 1
    gallery_pids[::9], gallery_pids[1::9] = -1, 0
    rng = np.random.default_rng(0)
    query_camids, gallery_camids = rng.integers(0, 3, len(query)), rng.integers(0, 3, len(gallery))
    settings = Rerank(10, 3, 0.2)
    results = evaluate_retrieval(
        torch.from_numpy(query), gallery, query_pids, gallery_pids, query_camids, gallery_camids,
        metric="euclidean", rerank=settings, per_query=True,
    )  # fmt: skip
    distances = dense_reranking(query, gallery, 10, 3, 0.2)
    for q, row in enumerate(distances):
        same = gallery_pids == query_pids[q]
        kept = (gallery_pids != -1) & ~(same & (gallery_camids == query_camids[q]))
        order = np.flatnonzero(kept)[np.argsort(row[kept])]
        ranks = np.flatnonzero(same[order]) + 1
        expected = sum((k + 1) / rank for k, rank in enumerate(ranks)) / len(ranks) if len(ranks) else np.nan
        assert results.per_query[q] == pytest.approx(expected, nan_ok=True)
    assert results.protocol["rerank"]["k1"] == 10
    assert "k-reciprocal" in results.protocol["rerank"]["method"]


def test_reranking_helps_where_people_form_clusters():
    query, gallery, query_pids, gallery_pids = people(9, queries=60, gallery=200, dim=24)
    noise = np.random.default_rng(1)
    query, gallery = (x + 3 * noise.standard_normal(x.shape) for x in (query, gallery))
    labels = query_pids, gallery_pids, np.zeros(60, int), np.ones(200, int)
    plain, better = (evaluate_retrieval(query, gallery, *labels, rerank=rerank) for rerank in (False, True))
    assert plain.mAP < 0.88
    assert better.mAP > plain.mAP + 0.05
    assert plain.protocol["rerank"] is None


@pytest.mark.parametrize("settings", [{"k1": 0}, {"k2": 0}, {"lambda_value": 1.5}, {"lambda_value": float("nan")}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match="re-ranking needs k1 >= 1"):
        Rerank(**settings)


def test_bad_embeddings_are_refused_before_the_first_block():
    query, gallery, *_ = people(0)
    gallery[3, 0] = np.nan
    with pytest.raises(ValueError, match=r"gallery_embeddings: 1 of 90 rows hold NaN"):
        rerank_distances(query, gallery)


def test_a_large_collapsed_set_is_refused(monkeypatch):
    monkeypatch.setattr(module, "_MAX_PAIRS", 2**16)
    monkeypatch.setattr(module, "_MAX_PAIRS_PER_IMAGE", 200)
    rng = np.random.default_rng(0)
    gallery = rng.standard_normal((2000, 4))
    reranked(gallery[:5], gallery)
    gallery[:1500] = gallery[0]
    with pytest.raises(ValueError, match=r"most of the 2005 embeddings coincide.*rerank=False"):
        rerank_distances(gallery[:5], gallery)
