"""Each codec against the textbook formula on its dequantised vectors, in Python's exact numbers where it is exact."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from reid_hub.index import CODECS, GalleryIndex
from reid_hub.index.backends import BACKENDS
from reid_hub.index.columns import columns_for
from reid_hub.models.codes import Int8

BOTH = pytest.mark.parametrize("backend", list(BACKENDS))
PER_DIM = np.linspace(0.01, 0.05, 16).tolist()
FORMS = {
    "float32": {"codec": "float32"},
    "float32-euclidean": {"codec": "float32", "metric": "euclidean"},
    "float16": {"codec": "float16"},
    "float16-euclidean": {"codec": "float16", "metric": "euclidean"},
    "int8-own-scale": {"codec": "int8"},
    "int8": {"codec": "int8", "scale": 0.03},
    "int8-euclidean": {"codec": "int8", "scale": 0.03, "metric": "euclidean"},
    "int8-per-dim": {"codec": "int8", "scale": PER_DIM},
    "int8-per-dim-euclidean": {"codec": "int8", "scale": PER_DIM, "metric": "euclidean"},
    "binary": {"codec": "binary", "center": 0.1},
    "binary-float32": {"codec": "binary", "rescore": "float32", "rescore_factor": 3},
    "binary-float16-euclidean": {"codec": "binary", "rescore": "float16", "rescore_factor": 3, "metric": "euclidean"},
    "binary-int8": {"codec": "binary", "rescore": "int8", "rescore_factor": 3, "scale": 0.03},
}
EVERY = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def vectors(count, dim=16, seed=0):
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)


def names(count):
    return [f"img/{number}.jpg" for number in range(count)]


def built(form, gallery, ids=None, **more):
    index = GalleryIndex(gallery.shape[1], **form, **more)
    index.add(gallery, names(len(gallery)) if ids is None else ids)
    return index


def quantise(x, scale):
    """Round half to even, one number at a time: Python's round."""
    scale = np.broadcast_to(np.float32(scale), x.shape)
    return [
        [max(-127, min(127, round(float(v / s)))) for v, s in zip(row, steps, strict=True)]
        for row, steps in zip(x, scale, strict=True)
    ]


def exact_order(gallery, query, metric, k):
    """Rows of integer vectors by exact distance to one of them, ties by row: cosines compared as signed squares."""

    def key(row):
        vector = gallery[row]
        dot, square = sum(map(int.__mul__, query, vector)), sum(v * v for v in vector)
        return Fraction(-dot * abs(dot), square) if metric == "cosine" else square - 2 * dot

    return sorted(range(len(gallery)), key=lambda row: (key(row), row))[:k]


@BOTH
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_integer_ranking_is_that_of_the_dequantised_vectors_ties_included(backend, metric):
    random = np.random.default_rng(0)
    # Few different values, and multiples of one another: the same angle, or the same distance, many times over.
    codes = random.integers(-2, 3, (400, 6)) * random.integers(1, 4, (400, 1))
    codes[(codes == 0).all(1)] = 1
    queries = np.unique(codes, axis=0)[::40]
    index = built({"codec": "int8", "metric": metric, "scale": 0.25}, codes.astype(np.int8), backend=backend)
    distances, ids = index.search(queries.astype(np.int8), 50)
    for query, row in zip(queries.tolist(), ids, strict=True):
        assert [int(id[4:-4]) for id in row] == exact_order(codes.tolist(), query, metric, 50)
    wide = (codes * 0.25, queries * 0.25)
    if metric == "cosine":
        unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in wide]
        expected = np.sort(1 - unit[1] @ unit[0].T, 1)[:, :50]
    else:
        expected = np.sort(np.linalg.norm(wide[1][:, None] - wide[0], axis=2), 1)[:, :50]
    np.testing.assert_allclose(distances, expected, atol=1e-6)
    assert (np.diff(distances, axis=1) >= 0).all()


@pytest.mark.parametrize("scale", [0.03, PER_DIM])
def test_int8_codes_are_round_half_even_clamped_and_stored_bit_for_bit(scale):
    x = vectors(50) * 3
    x[0] = np.float32(scale) * (np.arange(16) + 0.5).astype(np.float32)  # halves
    codec = Int8(16, scale)
    columns = columns_for(codec, "cosine")
    codes = columns.encode(x)["codes"]
    assert codes.tolist() == quantise(x, scale)
    assert codes.min() == -127
    assert codes.max() == 127
    # What is dequantised and stored again is the same, and codes given are the codes stored.
    assert np.array_equal(columns.encode(codec.decode(codes))["codes"], codes)
    assert np.array_equal(columns.encode(codes)["codes"], codes)
    assert np.array_equal(columns.encode(-x)["codes"], -codes)
    np.testing.assert_array_equal(codec.decode(codes), codes * np.float32(scale))


def test_own_scale_of_every_vector_uses_the_whole_range_and_ignores_length():
    x = vectors(20)
    columns = columns_for(Int8(16), "cosine")
    codes = columns.encode(x)["codes"]
    assert (np.abs(codes.astype(int)).max(1) == 127).all()
    assert np.array_equal(codes, columns.encode(x * 1024)["codes"])
    assert quantise(x[:1], np.abs(x[0]).max() / np.float32(127)) == codes[:1].tolist()


@BOTH
@EVERY
def test_search_equals_float64_distances_of_the_decoded_vectors(form, backend):
    gallery, queries = vectors(300), vectors(9, seed=1)
    index = built(form, gallery, backend=backend)
    distances, ids = index.search(queries, 7)
    codec = index.codec
    rows = np.array([[int(id[4:-4]) for id in row] for row in ids])
    hamming = None
    if codec.name == "binary":
        hamming = np.array([[((q > codec.center) != (v > codec.center)).sum() for v in gallery] for q in queries])
    if codec.name == "binary" and index.rescore is None:
        expected = np.sort(hamming, 1, kind="stable")[:, :7]
        order = hamming.argsort(1, kind="stable")[:, :7]
    else:
        kept = index.rescore or codec
        quantised = kept.name == "int8"
        columns = columns_for(kept, index.metric)
        q, v = (
            kept.decode(columns.encode(x)["codes"]).astype(np.float64) if quantised or x is gallery else x.astype(float)
            for x in (queries, gallery)
        )
        if index.metric == "cosine":
            q, v = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, v))
            table = 1 - q @ v.T
        else:
            table = np.linalg.norm(q[:, None] - v, axis=2)
        if hamming is not None:  # only the first 3 x 7 by bits are ranked again
            table[np.arange(9)[:, None], hamming.argsort(1, kind="stable")[:, 21:]] = np.inf
        order = table.argsort(1, kind="stable")[:, :7]
        expected = np.take_along_axis(table, order, 1)
    np.testing.assert_allclose(distances, expected, atol=3e-6)
    assert np.array_equal(rows, order)


@EVERY
def test_backend_blocks_and_history_do_not_change_the_answer(form, monkeypatch, tmp_path):
    # Near ties, exact copies, and multiples.
    gallery = np.concatenate([vectors(150), vectors(150), 2 * vectors(150)[::-1], np.round(vectors(150, seed=3))])
    gallery[~gallery.any(1)] = 1
    queries = np.concatenate([vectors(20, seed=1), gallery[:20]])
    cameras, excluded = np.arange(len(gallery)) % 4 - 1, np.arange(40) % 5 - 1
    ids = names(len(gallery))

    def answers(index):
        return [*index.search(queries, 30), *index.search(queries, 11, exclude_camids=excluded)]

    first = GalleryIndex(16, **form)
    first.add(gallery, ids, cameras)
    expected = answers(first)
    monkeypatch.setattr("reid_hub.index.search.GALLERY_BLOCK", (37, 37))
    monkeypatch.setattr("reid_hub.index.search.QUERY_BLOCK", 7)
    monkeypatch.setattr("reid_hub.index.search.BITS_BLOCK", 41)
    monkeypatch.setattr("reid_hub.index.search.GATHERED_VALUES", 500)
    monkeypatch.setattr("reid_hub.index.scores.PIECE", 23)
    for backend in BACKENDS:
        index = GalleryIndex(16, backend=backend, **form)
        for start in range(0, len(gallery), 97):
            some = slice(start, start + 97)
            extra = [f"gone/{start}/{number}" for number in range(30)]
            index.add(gallery[:30], extra)  # removed again: leaves no trace
            index.add(gallery[some], ids[some], cameras[some])
            index.remove(extra[:15])
            index.save(tmp_path / backend)
            index = GalleryIndex.load(tmp_path / backend, backend=backend)
            index.remove(extra[15:])
        assert index.ids == ids
        for one, other in zip(expected, answers(index), strict=True):
            np.testing.assert_array_equal(one, other)


@BOTH
def test_hamming_ties_come_in_the_order_of_insertion(backend):
    random = np.random.default_rng(0)
    codes = random.integers(0, 4, (3000, 1), dtype=np.uint8)  # distances 0, 1, 2 only
    index = GalleryIndex(8, codec="binary", backend=backend)
    index.add(codes, names(3000))
    queries = np.arange(4, dtype=np.uint8)[:, None]
    distances, ids = index.search(queries, 1500)
    for query, row, near in zip(queries[:, 0].tolist(), ids, distances, strict=True):
        expected = sorted((bin(query ^ code).count("1"), number) for number, code in enumerate(codes[:, 0].tolist()))
        assert list(zip(near, row, strict=True)) == [(d, f"img/{number}.jpg") for d, number in expected[:1500]]


def test_bits_are_packed_as_numpy_packs_them_and_codes_are_taken_as_they_are():
    x = vectors(40, dim=20)
    packed = np.packbits(x > 0, axis=1)
    floats, bits = built({"codec": "binary"}, x), GalleryIndex(20, codec="binary")
    bits.add(torch.from_numpy(packed), names(40))
    for one, other in zip(floats.search(x, 10), bits.search(packed, 10), strict=True):
        np.testing.assert_array_equal(one, other)


def test_rescoring_finds_what_bits_alone_confuse():
    x = vectors(2000, dim=32)
    queries = x[:50] + 0.5 * vectors(50, dim=32, seed=1)
    true = built({"codec": "float32"}, x).search(queries, 10)[1]

    def overlap(**form):
        found = built({"codec": "binary", **form}, x).search(queries, 10)[1]
        return np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, true, strict=True)])

    curve = [overlap(), overlap(rescore="float32", rescore_factor=10), overlap(rescore="float32", rescore_factor=200)]
    assert curve[0] < curve[1] < curve[2] == 1


def test_bytes_per_vector_are_those_of_the_arrays_and_of_the_file(tmp_path):
    x = vectors(2000, dim=32)
    for form, memory, disk in [
        ({"codec": "float32"}, 128, 0),
        ({"codec": "float16"}, 64, 0),
        ({"codec": "int8"}, 32, 0),  # 3072 bytes of a ViT-B's 768 floats: 96 times
        ({"codec": "binary"}, 4, 0),
        ({"codec": "binary", "rescore": "float16"}, 4, 64),
    ]:
        index = built(form, x)
        assert index.bytes_per_vector == {"memory": memory, "disk": disk}
        index.save(tmp_path / "index")
        columns = index._layout()
        stored = sum(dtype.itemsize * int(np.prod(shape)) for dtype, shape in columns.values())
        assert stored - memory - disk in (0, 4)  # the squared length of int8 codes is kept beside them


def test_codes_and_vectors_of_something_else_are_refused():
    codes, bits = np.ones((2, 16), np.int8), np.ones((2, 2), np.uint8)
    for form, values, message in [
        ({"codec": "float32"}, codes, "int8 are codes, which only an index of the codec 'int8' takes"),
        ({"codec": "binary"}, codes, "codec 'int8'"),
        ({"codec": "int8"}, bits, "codec 'binary'"),
        ({"codec": "binary", "rescore": "int8"}, bits, "without rescore"),
        ({"codec": "int8"}, codes[:, :8], r"codes must have the shape \(N, 16\), got \(2, 8\)"),
        ({"codec": "binary"}, np.ones((2, 16), np.uint8), r"codes must have the shape \(N, 2\)"),
        ({"codec": "int8"}, np.full((2, 16), -128, np.int8), "hold -128"),
        ({"codec": "int8"}, np.zeros((2, 16), np.int8), "no direction: is the scale right"),
        ({"codec": "int8", "scale": 1e6}, vectors(2), "no direction: is the scale right"),
        ({"codec": "int8"}, np.zeros((2, 16), np.float32), "all zero"),
        ({"codec": "float16", "metric": "euclidean"}, np.full((2, 16), 1e5), "beyond float16"),
        ({"codec": "float16", "metric": "euclidean"}, np.full((2, 16), 1e-12), "vanish in float16"),
        ({"codec": "int8"}, vectors(2, dim=8), r"\(N, 16\), got \(2, 8\)"),
        ({"codec": "binary"}, np.full((2, 16), np.nan), "NaN or Inf"),
    ]:
        index = GalleryIndex(16, **form)
        with pytest.raises(ValueError, match=message):
            index.add(values, ["a", "b"])
        assert len(index) == 0
        if "scale" not in form and form["codec"] != "float16":
            index.add(vectors(1), ["c"])
            with pytest.raises(ValueError, match=message):
                index.search(values, 1)
    odd = GalleryIndex(12, codec="binary")
    with pytest.raises(ValueError, match="bits beyond dim 12"):
        odd.add(np.full((1, 2), 0xFF, np.uint8), ["a"])


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"codec": "int8", "metric": "euclidean"}, "needs a scale for all vectors: give scale"),
        ({"codec": "int8", "scale": 0}, "positive number or 16"),
        ({"codec": "int8", "scale": [1, 2]}, "positive number or 16"),
        ({"codec": "int8", "scale": float("nan")}, "positive number or 16"),
        ({"codec": "float32", "scale": 1.0}, "'float32' has no scale: leave it out"),
        ({"codec": "int8", "rescore": "int8"}, "'int8' has no rescore: it takes scale"),
        ({"codec": "binary", "center": [1, 2]}, "center must be a number or 16"),
        ({"codec": "binary", "rescore": "binary"}, "unknown rescore codec 'binary'"),
        ({"codec": "binary", "rescore": "int8", "rescore_factor": 0}, "at least 1, got 0"),
        ({"codec": "binary", "rescore": "int8", "metric": "euclidean"}, "needs a scale"),
        ({"codec": "binary", "scale": 1.0}, "scale is for rescore='int8'"),
    ],
)
def test_options_that_do_not_fit_are_refused(form, message):
    with pytest.raises(ValueError, match=message):
        GalleryIndex(16, **form)


@pytest.mark.parametrize("name", list(CODECS))
def test_every_codec_answers_the_contract(name):
    codec = CODECS[name](16)
    columns = columns_for(codec, "cosine")
    found = columns.encode(vectors(5))
    assert {key: (value.dtype, value.shape[1:]) for key, value in found.items()} == columns.layout()
    assert found["codes"].nbytes == 5 * codec.bytes_per_vector
    again = type(codec)(16, **codec.state())
    assert again.state() == codec.state()
    assert codec.decode(found["codes"]).shape == (5, 16)
