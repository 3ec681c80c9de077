"""Metrics of stored codes, against rankings made by hand."""

import numpy as np
import pytest
import torch

from reid_hub import ReIDConfig, ReIDModel, evaluate_retrieval
from reid_hub.evaluation import Shortlist, average_precision, stored
from reid_hub.models.codes import bytes_per_vector

DIM = 16


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    backbone = {"embedding_size": 4, "hidden_sizes": [8, DIM], "depths": [1, 1], "layer_type": "basic"}
    return ReIDModel(ReIDConfig(backbone_config={"model_type": "resnet", **backbone}, image_size=(32, 16))).eval()


def people(rows, seed):
    """Vectors of ten people, each around a point of its own."""
    rng = np.random.default_rng(seed)
    pids = np.arange(rows) % 10
    points = np.random.default_rng(99).normal(size=(10, DIM))
    return (points[pids] + rng.normal(0, 0.9, (rows, DIM))).astype(np.float32), pids


def measured(query, gallery, pids, **options):
    cameras = np.zeros(len(query), int), np.ones(len(gallery), int)
    return evaluate_retrieval(query, gallery, *pids, *cameras, per_query=True, **options)


def test_shortlist_ranks_bits_first_and_its_nearest_again(model):
    (query, query_pids), (gallery, gallery_pids) = people(30, 0), people(90, 1)
    bits = [stored(model, vectors, "binary") for vectors in (query, gallery)]
    result = measured(query, gallery, (query_pids, gallery_pids), shortlist=Shortlist(*bits, 20))
    for q in range(len(query)):
        hamming = (bits[0][q] != bits[1]).sum(1)
        order = np.argsort(hamming, kind="stable")
        cosine = gallery @ query[q] / np.linalg.norm(gallery, axis=1)
        nearest = np.sort(order[:20])
        again = nearest[np.argsort(-cosine[nearest], kind="stable")]
        ranked = np.concatenate([again, order[20:]])
        assert result.per_query[q] == pytest.approx(average_precision(gallery_pids[ranked] == query_pids[q]))
    assert result.protocol["shortlist"] == 20


def test_a_shortlist_of_everything_is_no_shortlist_and_one_of_nothing_new_is_the_bits(model):
    (query, query_pids), (gallery, gallery_pids) = people(30, 0), people(90, 1)
    pids, bits = (query_pids, gallery_pids), [stored(model, vectors, "binary") for vectors in (query, gallery)]
    plain = measured(query, gallery, pids)
    everything = measured(query, gallery, pids, shortlist=Shortlist(*bits, 1000))
    np.testing.assert_allclose(everything.per_query, plain.per_query)
    one = measured(query, gallery, pids, shortlist=Shortlist(*bits, 1))
    np.testing.assert_allclose(one.per_query, measured(*bits, pids).per_query)
    assert plain.mAP > one.mAP


def test_bits_rank_by_hamming_distance(model):
    (query, _), (gallery, _) = people(5, 0), people(40, 1)
    bits = [stored(model, vectors, "binary") for vectors in (query, gallery)]
    packed = [model.codes(torch.from_numpy(vectors), "binary") for vectors in (query, gallery)]
    hamming = np.unpackbits(packed[0][:, None] ^ packed[1][None], axis=2).sum(2, dtype=int)
    np.testing.assert_array_equal(bits[0] @ bits[1].T, DIM - 2 * hamming)


def test_int8_of_a_plain_model_is_within_half_a_step_of_each_vector(model):
    vectors, _ = people(50, 2)
    step = np.abs(vectors).max(1, keepdims=True) / 127
    assert (np.abs(stored(model, vectors, "int8") - vectors) <= step * 0.5001).all()
    np.testing.assert_array_equal(stored(model, vectors, "float32"), vectors)
    np.testing.assert_allclose(stored(model, vectors, "float16"), vectors, rtol=1e-3, atol=1e-4)


def test_bytes_of_a_vector():
    assert [bytes_per_vector(768, codec) for codec in ("float32", "float16", "int8", "binary")] == [3072, 1536, 768, 96]
    assert bytes_per_vector(32, "int8") * 96 == bytes_per_vector(768, "float32")  # the paper's 96 times
    assert bytes_per_vector(12, "binary+float16") == 2 + 24


def test_what_cannot_be_is_refused(model):
    (query, query_pids), (gallery, gallery_pids) = people(5, 0), people(9, 1)
    with pytest.raises(ValueError, match="did you mean 'binary'"):
        stored(model, query, "binari")
    with pytest.raises(ValueError, match="exclude each other"):
        measured(query, gallery, (query_pids, gallery_pids), rerank=True, shortlist=Shortlist(query, gallery, 3))
