"""Classifiers and trunks for dense prediction: the same numbers as their parts, saved, loaded and refused."""

import json
import math
import os
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision import transforms
from transformers import (
    AutoBackbone,
    AutoImageProcessor,
    AutoModelForImageClassification,
    DetrConfig,
    DetrForObjectDetection,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    pipeline,
)

from reid_hub import ReIDBackbone, ReIDBackboneConfig, ReIDConfig, ReIDForImageClassification, ReIDModel

BACKBONE = {
    "model_type": "resnet",
    "embedding_size": 4,
    "hidden_sizes": [4, 8],
    "depths": [1, 1],
    "layer_type": "basic",
}
NAMES = {0: "ant", 1: "bee", 2: "cat"}


def config(**changes) -> ReIDConfig:
    fields = {"backbone_config": BACKBONE, "image_size": (16, 24), "neck": "none", "id2label": NAMES, **changes}
    return ReIDConfig(**fields)


@pytest.fixture
def classifier() -> ReIDForImageClassification:
    torch.manual_seed(0)
    return ReIDForImageClassification(config(classifier_hidden=[5])).eval()


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(4, 3, 16, 24, generator=torch.Generator().manual_seed(1))


def test_logits_and_loss_by_hand(classifier, pixels):
    """Pooled map, two layers with ReLU between them; loss as minus the mean log of the true class's share."""
    labels = torch.tensor([0, 2, 1, 2])
    output = classifier(pixels, labels=labels)
    vectors = classifier.reid(pixels).feature_map.flatten(2).mean(2)
    first, last = classifier.classifier[0], classifier.classifier[2]
    hidden = torch.clamp(torch.einsum("bi,oi->bo", vectors, first.weight) + first.bias, min=0)
    logits = torch.einsum("bi,oi->bo", hidden, last.weight) + last.bias
    torch.testing.assert_close(output.logits, logits)
    by_hand = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        by_hand -= math.log(math.exp(row[label]) / sum(map(math.exp, row))) / len(logits)
    assert output.loss.item() == pytest.approx(by_hand, rel=1e-5)
    assert [layer.out_features for layer in (first, last)] == [5, 3]


def test_a_linear_classifier_starts_as_torch_starts_one():
    torch.manual_seed(0)
    weight = ReIDForImageClassification(config(num_labels=400, id2label=None)).classifier.weight
    assert weight.shape == (400, 8)
    assert weight.abs().max() <= 8**-0.5
    assert weight.std().item() == pytest.approx((1 / (3 * 8)) ** 0.5, rel=0.05)  # that of U(-8^-1/2, 8^-1/2)


def test_the_published_size_of_densenet_on_cifar10():
    with torch.device("meta"):
        model = ReIDForImageClassification(ReIDConfig.from_variant("densenet-bc-100", num_labels=10))
    assert sum(parameter.numel() for parameter in model.parameters()) == 769_162


def test_saved_and_loaded_by_the_auto_class(classifier, pixels, tmp_path):
    classifier.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(pixels).logits, classifier(pixels).logits)
    assert loaded.fingerprint() == classifier.fingerprint()
    assert loaded.config.id2label == NAMES
    assert not (tmp_path / "modules.json").exists()
    [best] = pipeline("image-classification", model=str(tmp_path), top_k=1)(Image.new("RGB", (30, 20), (200, 9, 0)))
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    logits = loaded(**processor(Image.new("RGB", (30, 20), (200, 9, 0)), return_tensors="pt")).logits
    assert best["label"] == NAMES[logits.argmax().item()]
    assert best["score"] == pytest.approx(logits.softmax(1).max().item(), rel=1e-5)


@pytest.mark.slow
def test_loads_without_the_package(classifier, pixels, tmp_path):
    classifier.save_pretrained(tmp_path / "model")
    save_file({"pixels": pixels, "logits": classifier(pixels).logits}, tmp_path / "expected.safetensors")
    code = (
        "import sys, torch\n"
        "from safetensors.torch import load_file\n"
        "from transformers import AutoModelForImageClassification\n"
        "expected = load_file(sys.argv[2])\n"
        "model = AutoModelForImageClassification.from_pretrained(sys.argv[1], trust_remote_code=True).eval()\n"
        "assert 'reid_hub' not in sys.modules\n"
        "assert torch.equal(model(expected['pixels']).logits, expected['logits'])\n"
    )
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-c", code, tmp_path / "model", tmp_path / "expected.safetensors"]
    ran = subprocess.run(list(map(str, command)), env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]


def test_a_reid_model_starts_a_classifier_and_a_broken_classifier_does_not(classifier, pixels, tmp_path):
    start = ReIDModel(config()).eval()
    start.save_pretrained(tmp_path / "reid")
    begun = ReIDForImageClassification.from_pretrained(tmp_path / "reid", id2label={0: "x", 1: "y"}).eval()
    assert torch.equal(begun.reid(pixels).embeddings, start(pixels).embeddings)
    assert begun.classifier.weight.shape == (2, 8)
    classifier.save_pretrained(tmp_path / "cut")
    file = tmp_path / "cut" / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(file).items() if name != "classifier.2.weight"}
    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing 1 tensors \(classifier.2.weight\)"):
        ReIDForImageClassification.from_pretrained(tmp_path / "cut")


def test_what_is_classified_must_be_what_is_used():
    with pytest.raises(ValueError, match="neck must be 'none', got 'bnneck'"):
        ReIDForImageClassification(config(neck="bnneck", retrieve="features"))
    with pytest.raises(ValueError, match=r"classifier_hidden must be widths, at least 1, got \[0\]"):
        config(classifier_hidden=[0])
    with pytest.raises(ValueError, match=r"must leave \[16, 24\] to cut out, got 20"):
        config(resize_shortest=20)


@pytest.mark.parametrize("size", [(30, 41), (41, 30), (16, 64), (8, 5)])
def test_the_processor_resizes_the_shorter_side_and_cuts_the_centre_as_torchvision(classifier, tmp_path, size):
    classifier.config.resize_shortest, classifier.config.image_size = 20, [16, 16]
    classifier.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["size"] == {"shortest_edge": 20}
    picture = Image.effect_noise(size, 90).convert("RGB")
    ours = AutoImageProcessor.from_pretrained(tmp_path)(picture, return_tensors="pt")["pixel_values"][0]
    theirs = transforms.Compose(
        [
            transforms.Resize(20),
            transforms.CenterCrop(16),
            transforms.ToTensor(),
            transforms.Normalize(classifier.config.image_mean, classifier.config.image_std),
        ]
    )(picture)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["reid", "classifier"])
def test_a_trunk_gives_the_maps_of_the_checkpoint_it_is_taken_from(classifier, pixels, tmp_path, kind):
    model = classifier.reid if kind == "reid" else classifier
    model.save_pretrained(tmp_path)
    trunk = ReIDBackbone.from_pretrained(tmp_path, out_indices=[0, 2]).eval()
    assert (trunk.out_features, trunk.channels) == (["stem", "stage2"], [4, 8])
    stem, last = trunk(pixels).feature_maps
    assert torch.equal(last, classifier.reid(pixels).feature_map)
    assert torch.equal(stem, classifier.reid.backbone.model.embedder(pixels))
    trunk.save_pretrained(tmp_path / "trunk")
    again = ReIDBackbone.from_pretrained(tmp_path / "trunk").eval()
    assert torch.equal(again(pixels).feature_maps[1], last)


@pytest.mark.parametrize(
    "variant", ["res18-x0.25", "res50-s1", "osnet-x0.25", "msinet-x0.25", "squeezenet", "mobilenetv2"]
)
def test_upernet_takes_a_training_step_on_a_pre_trained_trunk(variant, tmp_path):
    torch.manual_seed(0)
    ReIDModel(ReIDConfig.from_variant(variant, image_size=(64, 64))).save_pretrained(tmp_path)
    trunk = ReIDBackbone.from_pretrained(tmp_path, out_features=["stem", "stage1", "stage2", "stage3"])
    options = {"hidden_size": 8, "pool_scales": [1, 2], "auxiliary_channels": 4}
    options["auxiliary_in_channels"] = trunk.channels[2]
    model = UperNetForSemanticSegmentation(UperNetConfig(backbone_config=trunk.config, num_labels=3, **options))
    assert isinstance(model.backbone, ReIDBackbone)
    model.backbone.load_state_dict(trunk.state_dict())
    pictures, labels = torch.randn(2, 3, 64, 64), torch.randint(0, 3, (2, 64, 64))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()(pictures, labels=labels).loss.backward()
    before = {name: tensor.clone() for name, tensor in model.backbone.named_parameters()}
    optimizer.step()
    # A stage behind the last map that is asked for meets no loss.
    reached = {name: tensor for name, tensor in model.backbone.named_parameters() if tensor.grad is not None}
    assert len(reached) > 0.4 * len(before)
    assert {name for name in before if name.startswith("backbone.model.embedder")} <= reached.keys()
    assert sum(bool(tensor.grad.any()) for tensor in reached.values()) > 0.9 * len(
        reached
    )  # of one pixel a norm has none
    for name, tensor in reached.items():
        torch.testing.assert_close(tensor, before[name] - 0.1 * tensor.grad)


def test_detr_takes_a_training_step_on_a_pre_trained_trunk(classifier, tmp_path):
    classifier.reid.save_pretrained(tmp_path)
    trunk = ReIDBackbone.from_pretrained(tmp_path)
    small = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "num_queries": 4, "num_labels": 2}
    small |= {f"{part}_attention_heads": 2 for part in ("encoder", "decoder")}
    small |= {f"{part}_ffn_dim": 8 for part in ("encoder", "decoder")}
    model = DetrForObjectDetection(DetrConfig(backbone_config=trunk.config, use_timm_backbone=False, **small)).train()
    (inside,) = [module for module in model.modules() if isinstance(module, ReIDBackbone)]
    inside.load_state_dict(trunk.state_dict(), strict=False)  # DETR freezes what norms count
    before = {name: tensor.clone() for name, tensor in inside.named_parameters()}
    assert all(torch.equal(tensor, trunk.state_dict()[name]) for name, tensor in before.items())
    boxes = {"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.4, 0.2]])}
    model(torch.randn(2, 3, 32, 32), labels=[boxes, boxes]).loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert all(not torch.equal(before[name], tensor) for name, tensor in inside.named_parameters())


def test_auto_backbone_takes_the_configuration_of_any_model_of_ours(classifier, pixels):
    trunk = AutoBackbone.from_config(classifier.config, out_features=["stem", "stage1"])
    assert trunk.channels == [4, 4]
    trunk.load_state_dict({f"backbone.{name}": t for name, t in classifier.reid.backbone.state_dict().items()})
    stem, _ = trunk.eval()(pixels).feature_maps
    assert torch.equal(stem, classifier.reid.backbone.model.embedder(pixels))
    assert classifier.config.model_type == "reid"  # what was given is as it was


def test_a_trunk_without_maps_says_so():
    vit = {"model_type": "vit", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    vit |= {"intermediate_size": 8, "image_size": 32, "patch_size": 16}
    with pytest.raises(ValueError, match="'vit' backbone has no stages of maps"):
        ReIDBackboneConfig(backbone_config=vit, image_size=(32, 32), pooling="cls")
