"""Codecs by hand, and that one class is all that a new one takes: in the model, the index and the evaluation."""

import numpy as np
import pytest
import torch

from reid_hub import ReIDConfig, ReIDModel
from reid_hub.evaluation import stored
from reid_hub.index import GalleryIndex
from reid_hub.models.codes import CODECS, STORED_AS, Codec, Int8, bytes_per_vector

DIM = 16


class FourLevels(Codec):
    """Two bits a dimension: -3, -1, 1 or 3 times a step, four dimensions to a byte."""

    name, dtype = "four_levels", np.dtype(np.uint8)

    def __init__(self, dim: int, step=0.5):
        super().__init__(dim)
        self.step = np.float32(step)

    @property
    def width(self):
        return -(-self.dim // 4)

    def state(self):
        return {"step": self.step}

    def encode(self, vectors):
        levels = np.clip(np.floor(torch.as_tensor(vectors).cpu().numpy() / (2 * self.step)) + 2, 0, 3).astype(np.uint8)
        levels = np.pad(levels, ((0, 0), (0, 4 * self.width - self.dim))).reshape(len(levels), self.width, 4)
        return (levels << np.arange(0, 8, 2, dtype=np.uint8)).sum(2, dtype=np.uint8)

    def decode(self, codes):
        levels = (codes[:, :, None] >> np.arange(0, 8, 2, dtype=np.uint8) & 3).reshape(len(codes), -1)[:, : self.dim]
        return (2 * levels.astype(np.float32) - 3) * self.step


@pytest.fixture
def four_levels(monkeypatch):
    monkeypatch.setitem(CODECS, "four_levels", FourLevels)


def vectors(rows, seed=0, dim=DIM):
    return np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)


def model():
    torch.manual_seed(0)
    backbone = {"embedding_size": 4, "hidden_sizes": [8, DIM], "depths": [1, 1], "layer_type": "basic"}
    return ReIDModel(ReIDConfig(backbone_config={"model_type": "resnet", **backbone}, image_size=(32, 16))).eval()


def by_hand(vector):
    """Each value to the nearest of four levels."""
    return [min((-1.5, -0.5, 0.5, 1.5), key=lambda level: abs(level - value)) for value in vector.tolist()]


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("dim", [16, 10])
def test_a_new_codec_is_searched_saved_and_loaded(four_levels, metric, dim, tmp_path):
    gallery, queries = vectors(300, dim=dim), vectors(9, 1, dim)
    index = GalleryIndex(dim, FourLevels(dim), metric)
    index.add(gallery, map(str, range(300)))
    distances, ids = index.search(queries, 7)
    # Float queries against what is left of the gallery.
    left, asked = np.array([by_hand(row) for row in gallery]), queries.astype(np.float64)
    if metric == "cosine":
        left, asked = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (left, asked))
        expected = 1 - asked @ left.T
    else:
        expected = np.linalg.norm(asked[:, None] - left, axis=2)
    order = np.lexsort((np.arange(300) + np.zeros((9, 1)), expected.round(12)))[:, :7]
    np.testing.assert_array_equal(ids.astype(int), order)
    np.testing.assert_allclose(distances, np.take_along_axis(expected, order, 1), atol=1e-6)
    assert index.bytes_per_vector == {"memory": -(-dim // 4), "disk": 0}

    index.save(tmp_path / "index")
    again = GalleryIndex.load(tmp_path / "index")
    assert again.codec.state() == {"step": np.float32(0.5)}
    again.update(FourLevels(dim).encode(gallery[200:]), map(str, range(200, 300)))  # codes are taken as they are
    for one, other in zip((distances, ids), again.search(queries, 7), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_new_codec_ranks_the_candidates_of_bits(four_levels):
    gallery, queries = vectors(200), vectors(5, 1)
    fine, both = GalleryIndex(DIM, FourLevels(DIM)), GalleryIndex(DIM, "binary", rescore=FourLevels(DIM))
    for index in (fine, both):
        index.add(gallery, map(str, range(200)))
    both.rescore_factor = 1000
    for one, other in zip(fine.search(queries, 9), both.search(queries, 9), strict=True):
        np.testing.assert_array_equal(one, other)
    assert both.bytes_per_vector == {"memory": 2, "disk": 4}


def test_a_new_codec_is_one_of_the_model_and_of_the_evaluation(four_levels):
    made, images = model(), list(np.random.default_rng(0).integers(0, 255, (3, 32, 16, 3), dtype=np.uint8))
    floats = made.encode(images)
    np.testing.assert_array_equal(made.encode(images, precision="four_levels"), FourLevels(DIM).encode(floats))
    rows = vectors(20)
    np.testing.assert_array_equal(stored(made, rows, "four_levels"), [by_hand(row) for row in rows])
    assert bytes_per_vector(10, "four_levels") == 3
    assert bytes_per_vector(10, "binary+four_levels") == 2 + 3


@pytest.mark.parametrize("name", list(CODECS))
def test_codes_of_a_tensor_are_those_of_the_array_and_survive_their_state(name, monkeypatch):
    rows = vectors(50) * 3
    codec = CODECS[name](DIM)
    codes = codec.encode(rows)
    np.testing.assert_array_equal(codec.encode(torch.from_numpy(rows).requires_grad_()), codes)
    monkeypatch.setattr("reid_hub.models.codes.PIECE", 7)
    again = CODECS[name](DIM, **codec.state())
    np.testing.assert_array_equal(again.encode(rows), codes)
    assert codes.dtype == codec.dtype
    assert codes.nbytes == 50 * codec.bytes_per_vector
    assert not any(rows.any() for rows, _ in codec.faults(codes, rows))
    left = codec.approximate(rows)
    assert left.dtype == np.float32
    if name == "binary":
        np.testing.assert_array_equal(left, np.sign(rows))
    else:
        cosines = (left * rows).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(rows, axis=1)
        assert cosines.min() > 0.999


def test_what_a_gallery_can_be_stored_as():
    assert STORED_AS == [
        "float32", "float16", "int8", "binary", "binary+float32", "binary+float16", "binary+int8",
    ]  # fmt: skip


def test_an_index_takes_the_codecs_of_a_model():
    made, rows = model(), vectors(40)
    index = GalleryIndex(DIM, made.codec("binary"), rescore=made.codec("int8"))
    index.add(rows, map(str, range(40)))
    assert index.search(rows, 1)[1][:, 0].tolist() == [str(row) for row in range(40)]
    with pytest.raises(ValueError, match="must be of 8 dimensions like the index, got 16"):
        GalleryIndex(8, made.codec("int8"))
    with pytest.raises(ValueError, match="unknown rescore codec 'binary'"):
        GalleryIndex(DIM, "binary", rescore=made.codec("binary"))
    with pytest.raises(ValueError, match="has no scale"):
        GalleryIndex(DIM, Int8(DIM, 0.1), scale=0.2)
    with pytest.raises(ValueError, match="precision must be one of float32"):
        made.codec("int7")
