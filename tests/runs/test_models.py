"""Models at another image size than their recipe or checkpoint."""

import numpy as np
import pytest
from PIL import Image

from reid_hub import ReIDConfig, ReIDModel, load_reid_dataset
from reid_hub.evaluation.embedding import open_images
from reid_hub.runs.classify import ClassifySettings, new_classifier
from reid_hub.runs.models import new_model, recipe_config, shortest_in
from reid_hub.runs.settings import TrainSettings
from reid_hub.runs.train import Train


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A backbone that was trained on the middle 224 of 256 pixels."""
    folder = tmp_path_factory.mktemp("backbone")
    backbone = {"embedding_size": 4, "hidden_sizes": [4], "depths": [1], "layer_type": "basic", "model_type": "resnet"}
    ReIDModel(ReIDConfig(backbone_config=backbone, image_size=(224, 224), resize_shortest=256)).save_pretrained(folder)
    return str(folder)


def test_the_cropped_margin_shrinks_with_the_image():
    assert shortest_in((112, 112), (224, 224), 256) == 128
    assert shortest_in((224, 224), (224, 224), 256) == 256
    assert shortest_in((256, 128), (224, 224), 256) is None
    assert shortest_in((112, 112), (224, 224), None) is None


def test_a_recipe_crops_images_of_another_size_in_proportion():
    kdep = TrainSettings.of(recipe="kdep")
    assert recipe_config(kdep)["resize_shortest"] == 256
    assert recipe_config(kdep.but(image_size=(64, 64)))["resize_shortest"] == 73
    said = kdep.but(image_size=(64, 64), set={"config.resize_shortest": 100})
    assert recipe_config(said)["resize_shortest"] == 100
    assert "resize_shortest" not in recipe_config(TrainSettings.of(image_size=(64, 64)))


@pytest.mark.parametrize(("size", "shortest"), [((64, 64), 73), ((64, 32), None)])
def test_a_checkpoint_in_another_size_crops_in_proportion(start, size, shortest):
    classifier = new_classifier(ClassifySettings.of(model=start, image_size=size), ["a", "b"])
    for config in (new_model(start, size).config, classifier.config):
        assert config.resize_shortest == shortest
        assert tuple(config.image_size) == size


def test_without_a_size_a_classifier_on_a_backbone_has_the_recipe_s(start):
    for recipe, size, shortest in (("classify-demo", [64, 64], 73), ("transfer", [224, 224], 256)):
        config = new_classifier(ClassifySettings.of(model=start, recipe=recipe), ["a", "b"]).config
        assert (config.image_size, config.resize_shortest) == (size, shortest)


def test_a_backbone_with_a_position_per_patch_keeps_its_size(tmp_path):
    vit = ReIDConfig.from_variant("vit-s-s1", image_size=(32, 32))
    vit.backbone_config.depth = 1
    ReIDModel(ReIDConfig.from_dict(vit.to_dict())).save_pretrained(tmp_path)
    config = new_classifier(ClassifySettings.of(model=tmp_path), ["a", "b"]).config
    assert config.image_size == [32, 32]


@pytest.mark.parametrize("size", [(64, 64), (64, 32)])
def test_people_are_trained_on_as_they_are_evaluated(start, tmp_path, size):
    """Without random augmentation, training and test images are the same."""
    (tmp_path / "bounding_box_train").mkdir()
    pixels = np.linspace(0, 255, 128 * 64 * 3).reshape(128, 64, 3).astype(np.uint8)
    for pid in (1, 2):
        for camera in (1, 2):
            path = tmp_path / "bounding_box_train" / f"{pid:04}_c{camera}s1_000001_00.jpg"
            Image.fromarray(pixels[:, ::-1] if pid == 2 else pixels).save(path, "PNG")
    (tmp_path / "query").mkdir()
    (tmp_path / "bounding_box_test").mkdir()
    for name in ("query", "bounding_box_test"):
        Image.fromarray(pixels).save(tmp_path / name / f"0003_c{1 + (name == 'query')}s1_000001_00.jpg", "PNG")
    split = load_reid_dataset("market_layout", tmp_path)["train"]
    settings = TrainSettings.of(
        out=tmp_path / "out", model=start, image_size=size, validation=0, set={"batch_size": 4, "num_instances": 2},
        arg={"use_cpu": True, "disable_tqdm": True},
    )  # fmt: skip
    trainer = Train(settings).trainer(split)
    trained = trainer.train_dataset.__getitems__([0, 3])["pixel_values"]
    tested = open_images(split, trainer.model.model.config, progress=False).__getitems__([0, 3])["pixel_values"]
    assert trained.equal(tested)
