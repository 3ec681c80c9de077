"""The main run with fewer epochs: `make demo` makes what it promises, and training beats the mean colour by far."""

import json

import numpy as np
import pytest
from PIL import Image

from reid_hub import GalleryIndex, evaluate_retrieval, load_reid_dataset
from reid_hub.runs.demo import run_demo

EPOCHS = 6


def mean_colour_map(splits) -> float:
    """mAP of the nearest neighbour in mean RGB."""
    colours, pids, camids = {}, {}, {}
    for name in ("query", "gallery"):
        images = (np.asarray(row["image"], np.float32) for row in splits[name])
        colours[name] = np.stack([image.mean((0, 1)) for image in images])
        pids[name], camids[name] = np.array(splits[name]["pid"]), np.array(splits[name]["camid"])
    return evaluate_retrieval(
        colours["query"], colours["gallery"], pids["query"], pids["gallery"], camids["query"], camids["gallery"],
        metric="euclidean",
    ).mAP  # fmt: skip


def test_demo_makes_everything_and_learns_more_than_colour(tmp_path, capsys):
    made = run_demo(tmp_path, epochs=EPOCHS)
    for name in ("model/model.safetensors", "model/README.md", "model/results.json", "plots/rank_lists.png",
                 "plots/cmc.png", "plots/embedding_map.png", "plots/search.png"):  # fmt: skip
        assert (tmp_path / name).stat().st_size > 0
    for path in (tmp_path / "plots").iterdir():
        with Image.open(path) as image:
            assert min(image.size) > 200
    results = json.loads((tmp_path / "model/results.json").read_text())
    splits = load_reid_dataset("synthetic")
    trained, colour = results["metrics"]["mAP"], mean_colour_map(splits)
    with capsys.disabled():
        print(f"\nsynthetic people: mAP {trained:.3f} after {EPOCHS} epochs, {colour:.3f} by mean colour")
    assert colour < trained / 2
    assert made["mAP"] == f"{100 * trained:.1f} %"
    card = (tmp_path / "model/README.md").read_text()
    assert f"{100 * trained:.1f}" in card
    assert "surveillance" in card
    gallery = len(list((tmp_path / "gallery").iterdir()))
    assert (
        len(GalleryIndex.load(tmp_path / "gallery.index")) == gallery == len(load_reid_dataset("synthetic")["gallery"])
    )


@pytest.mark.slow
def test_demo_with_its_defaults_learns_to_find_people(tmp_path):
    run_demo(tmp_path)
    assert json.loads((tmp_path / "model/results.json").read_text())["metrics"]["mAP"] > 0.35
