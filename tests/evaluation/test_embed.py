import os
import socket
import subprocess
import sys

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from reid_hub.data.images import ImageDataset
from reid_hub.evaluation import embed, evaluate_model, evaluate_retrieval
from reid_hub.models import ReIDConfig, ReIDModel


@pytest.fixture(autouse=True)
def _small(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = ReIDModel(ReIDConfig.from_variant("osnet-x0.25", image_size=[32, 16])).eval()
    with torch.no_grad():
        for module in model.modules():  # statistics as after training, so that evaluation mode differs from training
            if hasattr(module, "running_mean"):
                module.running_mean.uniform_(-0.1, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return model


def draw_images(count, seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 6, 3, 3), dtype=np.uint8)
    return [Image.fromarray(image).resize((20, 44), Image.Resampling.BICUBIC) for image in coarse]


def split(images, pids=None, camids=None):
    pids = list(range(len(images))) if pids is None else pids
    camids = [0] * len(images) if camids is None else camids
    columns = {"image": images, "pid": pids, "camid": camids, "path": [f"{n}.jpg" for n in range(len(images))]}
    number, text = datasets.Value("int64"), datasets.Value("string")
    features = datasets.Features(image=datasets.Image(), pid=number, camid=number, path=text)
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.mark.parametrize("flip", [False, True])
def test_embeddings_are_those_of_encode_which_goes_through_the_image_processor(model, flip):
    images = draw_images(7)
    result = embed(model, split(images, [5, 5, 3, 2, 2, 2, 9], [0, 1, 0, 1, 2, 3, -1]), flip=flip, batch_size=3)
    assert result.embeddings.dtype == np.float32
    np.testing.assert_allclose(result.embeddings, model.encode(images, flip=flip), atol=1e-5)
    assert result.pids.tolist() == [5, 5, 3, 2, 2, 2, 9]
    assert result.camids.tolist() == [0, 1, 0, 1, 2, 3, -1]
    assert np.abs(result.embeddings).max() > 0.1
    assert np.linalg.matrix_rank(result.embeddings) == 7


def test_flip_is_the_mean_of_an_image_and_its_mirror_image(model):
    images = draw_images(4)
    mirrored = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in images]
    both = [embed(model, split(which)).embeddings for which in (images, mirrored)]
    flipped = embed(model, split(images), flip=True).embeddings
    np.testing.assert_allclose(flipped, (both[0] + both[1]) / 2, atol=1e-5)
    assert np.abs(flipped - both[0]).max() > 1e-3


def test_batch_size_does_not_matter(model):
    data = split(draw_images(5))
    np.testing.assert_allclose(
        embed(model, data, batch_size=2).embeddings, embed(model, data, batch_size=5).embeddings, atol=1e-5
    )
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        embed(model, data, batch_size=0)


def test_model_is_left_as_it_was_found(model):
    model.train()
    model.neck.eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        embed(model, split(draw_images(3)))
        assert [module.training for module in model.modules()] == modes
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    finally:
        model.eval()


def test_split_may_be_decoded_already_but_only_to_the_right_size(model, tmp_path):
    data = split(draw_images(3))
    ready = ImageDataset(data, (32, 16), cache_dir=tmp_path)
    np.testing.assert_array_equal(embed(model, ready).embeddings, embed(model, data).embeddings)
    with pytest.raises(ValueError, match=r"wants images of \(32, 16\) pixels .* gives \(64, 32\)"):
        embed(model, ImageDataset(data, (64, 32), cache_dir=tmp_path))


def test_nan_is_reported_with_the_image(model):
    def spoil(module, inputs, output):
        output.embeddings[0, 3] = float("nan")

    hook = model.register_forward_hook(spoil)
    try:
        with pytest.raises(ValueError, match=r"NaN or Inf for 2 of 3 images \(0.jpg, 2.jpg\)"):
            embed(model, split(draw_images(3)), batch_size=2)
    finally:
        hook.remove()


def people(camids=True):
    """Twelve people, a query and three gallery images each: their own image and noise."""
    rng = np.random.default_rng(0)
    base = [np.asarray(image, np.int16) for image in draw_images(12)]

    def taken(pids):
        noisy = [np.clip(base[pid] + rng.normal(0, 25, base[pid].shape), 0, 255).astype(np.uint8) for pid in pids]
        return [Image.fromarray(image) for image in noisy]

    query, gallery = np.arange(12), np.repeat(np.arange(12), 3)
    cameras = (np.zeros(12, int), np.tile([0, 1, 2], 12)) if camids else (np.full(12, -1), np.full(36, -1))
    return {
        "query": split(taken(query), query.tolist(), cameras[0].tolist()),
        "gallery": split(taken(gallery), gallery.tolist(), cameras[1].tolist()),
    }


def test_evaluate_model_is_encode_followed_by_evaluate_retrieval(model):
    splits = people()
    results = evaluate_model(model, splits, flip=True, per_query=True, max_rank=20)
    vectors = [model.encode(list(splits[name]["image"]), flip=True) for name in ("query", "gallery")]
    labels = [np.array(splits[name][column]) for column in ("pid", "camid") for name in ("query", "gallery")]
    expected = evaluate_retrieval(*vectors, *labels, per_query=True, max_rank=20)
    np.testing.assert_allclose(results.per_query, expected.per_query)
    np.testing.assert_array_equal(results.cmc, expected.cmc)
    assert results.mAP == pytest.approx(expected.mAP)
    assert 0.2 < results.mAP <= 1
    assert results.protocol == {**expected.protocol, "flip": True, "cameras": True}


def test_options_reach_the_ranking(model):
    splits = people()
    results = evaluate_model(model, splits, metric="euclidean", rerank=True)
    assert results.protocol["metric"] == "euclidean"
    assert results.protocol["rerank"]["k1"] == 20
    assert results.protocol["flip"] is False


def test_missing_cameras_are_told(model):
    assert evaluate_model(model, people(camids=False)).protocol["cameras"] is False


def test_missing_split_is_named(model):
    with pytest.raises(ValueError, match="must hold query and gallery, got train"):
        evaluate_model(model, {"train": None})


SCRIPT = """
import sys
import datasets, numpy as np, torch
sys.path.insert(0, sys.argv[1])
import test_embed
from reid_hub.evaluation import embed
from reid_hub.models import ReIDModel

torch.set_num_threads(1)
datasets.config.HF_DATASETS_CACHE = sys.argv[2]
model = ReIDModel.from_pretrained(sys.argv[2] + "/model")
for count in (7, 1):
    data = test_embed.split(test_embed.draw_images(count))
    result = embed(model, data, batch_size=2)
    np.savez(f"{sys.argv[2]}/{count}-{sys.argv[3]}.npz", **result._asdict())
"""


def test_two_processes_share_the_work_and_both_get_all_of_it(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "script.py").write_text(SCRIPT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, str(tmp_path / "script.py"), os.path.dirname(__file__), str(tmp_path)]
    ranks = [
        subprocess.Popen(
            [*command, str(rank)],
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=240)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], errors
    for count in (7, 1):  # an uneven split, and a process without any image
        alone = embed(model, split(draw_images(count)), batch_size=2)
        for rank in range(2):
            shared = np.load(tmp_path / f"{count}-{rank}.npz")
            np.testing.assert_allclose(shared["embeddings"], alone.embeddings, atol=1e-5)
            assert shared["pids"].tolist() == alone.pids.tolist() == list(range(count))
