import numpy as np
import pytest
import torch

from reid_hub.index import GalleryIndex
from reid_hub.index.backends import BACKENDS

BOTH = pytest.mark.parametrize("backend", list(BACKENDS))
METRICS = pytest.mark.parametrize("metric", ["cosine", "euclidean"])


def names(count, start=0):
    return [f"img/{number}.jpg" for number in range(start, start + count)]


def vectors(count, dim=16, seed=0):
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)


def slow_search(gallery, queries, k, metric):
    """Distances and rows by the textbook formula, one pair at a time in Python numbers; a stable sort keeps ties."""
    all_distances, all_rows = [], []
    for query in queries.tolist():
        distances = []
        for vector in gallery.tolist():
            if metric == "cosine":
                dot = sum(a * b for a, b in zip(query, vector, strict=True))
                norms = sum(a * a for a in query) ** 0.5 * sum(b * b for b in vector) ** 0.5
                distances.append(1 - dot / norms)
            else:
                distances.append(sum((a - b) ** 2 for a, b in zip(query, vector, strict=True)) ** 0.5)
        rows = sorted(range(len(gallery)), key=distances.__getitem__)[:k]
        all_rows.append(rows)
        all_distances.append([distances[row] for row in rows])
    return np.array(all_distances), np.array(all_rows)


@BOTH
@METRICS
def test_search_equals_a_plain_python_loop(backend, metric):
    gallery, queries = vectors(300), vectors(7, seed=1)
    index = GalleryIndex(16, metric=metric, backend=backend)
    index.add(gallery, names(300))
    distances, ids = index.search(queries, 20)
    expected, rows = slow_search(gallery, queries, 20, metric)
    np.testing.assert_allclose(distances, expected, atol=2e-6)
    assert ids.tolist() == [[f"img/{row}.jpg" for row in line] for line in rows]
    assert distances.dtype == np.float32
    assert ids.dtype == object


@BOTH
@METRICS
def test_blocks_of_queries_and_gallery_do_not_change_the_answer(backend, metric, monkeypatch):
    gallery, queries = vectors(500, dim=24), vectors(50, dim=24, seed=1)
    index = GalleryIndex(24, metric=metric, backend=backend)
    index.add(gallery, names(500))
    whole = index.search(queries, 60)
    monkeypatch.setattr("reid_hub.index.search.GALLERY_BLOCK", (37, 37))
    monkeypatch.setattr("reid_hub.index.search.QUERY_BLOCK", 7)
    blocked = index.search(queries, 60)
    np.testing.assert_array_equal(whole[0], blocked[0])
    np.testing.assert_array_equal(whole[1], blocked[1])


@METRICS
def test_backends_agree_bit_for_bit_on_a_gallery_full_of_near_ties(metric):
    rng = np.random.default_rng(0)
    centre = rng.standard_normal(64)
    gallery = (centre + 1e-4 * rng.standard_normal((3000, 64))).astype(np.float32)
    queries = (centre + 1e-4 * rng.standard_normal((20, 64))).astype(np.float32)
    answers = []
    for backend in BACKENDS:
        index = GalleryIndex(64, metric=metric, backend=backend)
        index.add(gallery, names(3000))
        answers.append(index.search(queries, 10))
    np.testing.assert_array_equal(answers[0][0], answers[1][0])
    np.testing.assert_array_equal(answers[0][1], answers[1][1])
    # The true order, in float64 over the whole gallery: float32 products alone get it wrong here.
    unit = [x.astype(np.float64) for x in (gallery, queries)]
    if metric == "cosine":
        unit = [(x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32).astype(np.float64) for x in unit]
    true = np.square(unit[1][:, None] - unit[0][None]).sum(2).argsort(1, kind="stable")[:, :10]
    assert answers[0][1].tolist() == [[f"img/{row}.jpg" for row in line] for line in true]


@BOTH
@METRICS
def test_ties_come_in_the_order_of_insertion_however_many_there_are(backend, metric):
    copies = 320
    same, other = vectors(1)[0], vectors(400, seed=2)
    index = GalleryIndex(16, metric=metric, backend=backend)
    index.add(other[:133], names(133, start=1000))
    index.add(np.tile(same, (copies, 1)), names(copies))
    index.add(other[133:], names(267, start=2000))
    distances, ids = index.search(same[None], 50)
    assert ids[0].tolist() == names(50)
    assert (distances == 0).all()


@METRICS
def test_distance_of_a_vector_to_itself_is_exactly_zero_and_never_negative(metric):
    gallery = 1000 * vectors(200, dim=128)
    index = GalleryIndex(128, metric=metric)
    index.add(gallery, names(200))
    distances, ids = index.search(gallery, 5)
    assert ids[:, 0].tolist() == names(200)
    assert (distances[:, 0] == 0).all()
    assert (distances >= 0).all()


def test_cosine_ignores_length_and_euclidean_does_not():
    gallery = np.array([[1.0, 0.0], [0.0, 10.0]])
    query = np.array([[1.0, 2.0]])
    for metric, nearest in (("cosine", "b"), ("euclidean", "a")):
        index = GalleryIndex(2, metric=metric)
        index.add(gallery, ["a", "b"])
        assert index.search(query, 1)[1][0, 0] == nearest


def test_k_beyond_the_gallery_gives_the_whole_gallery():
    index = GalleryIndex(16)
    index.add(vectors(3), names(3))
    distances, ids = index.search(vectors(2, seed=1), 10)
    assert distances.shape == ids.shape == (2, 3)
    assert sorted(ids[0]) == names(3)


def test_tensors_of_any_float_type_are_accepted_and_not_written_to():
    tensor = torch.randn(5, 16, generator=torch.Generator().manual_seed(0), requires_grad=True).bfloat16()
    before = tensor.clone()
    index = GalleryIndex(16)
    index.add(tensor, names(5))
    assert index.search(tensor, 1)[1][:, 0].tolist() == names(5)
    assert torch.equal(tensor, before)
    array = vectors(5)
    copy = array.copy()
    index.search(array, 1)
    np.testing.assert_array_equal(array, copy)


@BOTH
def test_adding_in_parts_and_removing_equals_building_at_once(backend):
    gallery, queries = vectors(90), vectors(9, seed=1)
    index = GalleryIndex(16, backend=backend)
    for start in range(0, 90, 7):
        index.add(gallery[start : start + 7], names(90)[start : start + 7])
    gone = names(90)[::3]
    index.remove(gone)
    rest = [row for row in range(90) if row % 3]
    once = GalleryIndex(16, backend=backend)
    once.add(gallery[rest], [names(90)[row] for row in rest])
    assert len(index) == 60
    assert index.ids == once.ids
    assert gone[0] not in index
    assert once.ids[0] in index
    for part, whole in zip(index.search(queries, 60), once.search(queries, 60), strict=True):
        np.testing.assert_array_equal(part, whole)
    index.add(gallery[::3], gone)
    assert len(index) == 90
    assert index.search(gallery[:1], 1)[1][0, 0] == gone[0]


def test_camera_of_the_query_is_left_out_and_short_rows_are_filled():
    gallery, queries = vectors(8), vectors(4, seed=1)
    camids = np.array([0, 0, 0, 1, 1, 1, 1, -1])
    index = GalleryIndex(16)
    index.add(gallery, names(8), camids)
    distances, ids = index.search(queries, 8, exclude_camids=[0, 1, -1, 5])
    plain_distances, plain_ids = index.search(queries, 8)
    for row, camid in enumerate([0, 1, -1, 5]):
        allowed = [
            (distance, id)
            for distance, id in zip(plain_distances[row], plain_ids[row], strict=True)
            if camid == -1 or camids[names(8).index(id)] != camid
        ]
        missing = 8 - len(allowed)
        assert ids[row].tolist() == [id for _, id in allowed] + [None] * missing
        assert distances[row].tolist() == [distance for distance, _ in allowed] + [np.inf] * missing
    assert [(ids[row] == None).sum() for row in range(4)] == [3, 4, 0, 0]  # noqa: E711 elementwise


def test_query_with_every_entry_left_out_gets_no_id():
    index = GalleryIndex(16)
    index.add(vectors(3), names(3), [2, 2, 2])
    distances, ids = index.search(vectors(1), 2, exclude_camids=[2])
    assert ids.tolist() == [[None, None]]
    assert np.isinf(distances).all()


def test_ids_may_be_any_strings(tmp_path):
    ids = ["", " ", "a/b.jpg", "Zoë ☃", "line\nbreak", "\udcff undecodable", "../../etc", '"quoted"']
    index = GalleryIndex(16)
    index.add(vectors(8), np.array(ids, dtype=object))
    index.save(tmp_path / "index")
    again = GalleryIndex.load(tmp_path / "index")
    assert again.ids == ids
    assert again.search(vectors(8), 1)[1][:, 0].tolist() == ids


def test_wrong_input_is_refused_by_name_and_changes_nothing():
    index = GalleryIndex(16)
    index.add(vectors(3), names(3))
    broken = vectors(2)
    broken[1, 4] = np.nan
    zero = vectors(2)
    zero[0] = 0
    cases = [
        ((vectors(2), ["x", "x"]), r"'x' given more than once"),
        ((vectors(2), ["x", "img/1.jpg"]), r"already in the index: 'img/1.jpg'"),
        ((vectors(2), ["x"]), r"2 embeddings and 1 ids"),
        ((vectors(2), "xy"), r"pass \['xy'\]"),
        ((vectors(2), ["x", 7]), r"got int 7 at position 1"),
        ((vectors(2, dim=8), ["x", "y"]), r"\(N, 16\), got \(2, 8\)"),
        ((vectors(2)[0], ["x"]), r"\(N, 16\), got \(16,\)"),
        ((broken, ["x", "y"]), r"1 of 2 embeddings contain NaN or Inf: 'y'"),
        ((zero, ["x", "y"]), r"no direction for cosine: 'x'"),
        ((np.full((1, 16), 1e300), ["x"]), r"NaN or Inf: 'x'"),
        ((vectors(2), ["x", "y"], [1]), r"one whole camera number per embedding"),
        ((vectors(2), ["x", "y"], [0.5, 1]), r"one whole camera number per embedding"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            index.add(*arguments)
    with pytest.raises(ValueError, match="not in the index: 'nobody'"):
        index.remove(["img/0.jpg", "nobody"])
    assert index.ids == names(3)


def test_wrong_searches_are_refused():
    index = GalleryIndex(16)
    with pytest.raises(ValueError, match="empty: add embeddings"):
        index.search(vectors(1), 1)
    index.add(np.empty((0, 16)), [])
    assert len(index) == 0
    index.add(vectors(3), names(3))
    for queries, k, message in [
        (vectors(1), 0, "k must be at least 1"),
        (np.empty((0, 16)), 1, "at least one row"),
        (vectors(1, dim=4), 1, r"queries must have the shape \(N, 16\)"),
        (np.full((2, 16), np.inf), 1, "2 of 2 queries contain NaN or Inf: 0, 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            index.search(queries, k)
    with pytest.raises(ValueError, match="one whole camera number per query"):
        index.search(vectors(2), 1, exclude_camids=[1])


def test_vectors_too_long_for_float32_distances_are_refused():
    index = GalleryIndex(2, metric="euclidean")
    with pytest.raises(ValueError, match="too long"):
        index.add([[1e19, 0.0]], ["far"])


def test_unknown_names_are_answered_with_the_nearest(monkeypatch):
    for arguments, message in [
        ({"codec": "float23"}, "did you mean 'float32'"),
        ({"metric": "cosin"}, "did you mean 'cosine'"),
        ({"backend": "fais"}, "did you mean 'faiss'"),
        ({"dim": 0}, "at least 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            GalleryIndex(**{"dim": 4, **arguments})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"reid-hub\[faiss\]"):
        GalleryIndex(4, backend="faiss")
