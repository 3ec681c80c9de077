"""The contract of a model, run over variants of every kind of backbone."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, ViTConfig, pipeline
from transformers.image_utils import load_image

from reid_hub import ReIDConfig, ReIDImageProcessor, ReIDModel, list_variants
from reid_hub.models.neck import BNNeck

from ..data.image_files import DAMAGED_EXIF

DENSENET = {"model_type": "reid_densenet", "growth": 4, "blocks": [1, 2, 1], "stem": 8, "dropout": 0.1}
MGN = {"model_type": "reid_mgn", "width": 4, "depths": [1, 1, 2, 1]}
CONFIGS = {
    "resnet": lambda: ReIDConfig.from_variant("res50-s1", image_size=(128, 64)),
    "basic resnet": lambda: ReIDConfig.from_variant("res18", pooling="gem", image_size=(64, 32)),
    "fd": lambda: ReIDConfig.from_variant("squeezenet", pooling_window=2, image_size=(96, 48)),
    "osnet": lambda: ReIDConfig.from_variant("osnet-x0.25", image_size=(64, 32)),
    "osnet ibn": lambda: ReIDConfig.from_variant(
        "osnet-x0.25",
        backbone_config={"model_type": "reid_osnet", "channels": [16, 64, 96, 128], "ibn": True},
        image_size=(64, 32),
    ),
    "msinet": lambda: ReIDConfig.from_variant("msinet-x0.25", image_size=(64, 32)),
    "part vit": lambda: ReIDConfig.from_variant(
        "vit-s",
        backbone_config={"model_type": "reid_part_vit", "embed_dim": 24, "width": 16, "depth": 2, "heads": 2},
        image_size=(64, 32),
    ),
    "densenet": lambda: ReIDConfig.from_variant(
        "densenet161", backbone_config=DENSENET, embedding_dim=12, image_size=(64, 32)
    ),
    "mgn": lambda: ReIDConfig.from_variant("mgn", backbone_config=MGN, embedding_dim=8, image_size=(96, 32)),
    "ptl": lambda: ReIDConfig.from_variant("res18-x0.25-ptl", image_size=(61, 37)),
    "ptl version 2": lambda: ReIDConfig.from_variant(
        "densenet161-ptl",
        backbone_config=DENSENET,
        embedding_dim=12,
        side={"cell": "v2", "aggregate": "conv", "bias": True, "stem": [4, 4], "pairs": [[4, 8], [8, 4]]},
        image_size=(64, 32),
    ),
    "mgn ptl": lambda: ReIDConfig.from_variant(
        "mgn-ptl", backbone_config=MGN, embedding_dim=8, side={"cell": "plain"}, image_size=(96, 32)
    ),
    "timm cnn": lambda: ReIDConfig.from_variant("timm/resnet10t", image_size=(64, 32)),
    "timm vit": lambda: ReIDConfig.from_variant("timm/vit_tiny_patch16_224", image_size=(64, 32), retrieve="features"),
    "timm channels last": lambda: ReIDConfig.from_variant("timm/swin_tiny_patch4_window7_224", image_size=(112, 56)),
    "transformers vit": lambda: ReIDConfig(
        backbone_config=ViTConfig(
            hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=48, image_size=[128, 64]
        ),
        pooling="cls",
        image_size=(128, 64),
    ),
}


def make(kind: str) -> ReIDModel:
    torch.manual_seed(0)
    model = ReIDModel(CONFIGS[kind]())
    # Statistics that a lost or swapped buffer would show.
    for module in model.modules():
        if isinstance(getattr(module, "running_mean", None), torch.Tensor):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2.0)
    return model.eval()


def pixels(model: ReIDModel, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, *model.config.image_size, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=CONFIGS)
def model(request):
    return make(request.param)


def test_saved_model_loads_equal_through_auto_classes(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    loaded = AutoModel.from_pretrained(tmp_path / "model")
    assert not loaded.training
    x = pixels(model)
    with torch.no_grad():
        expected, got = model(x), loaded(x)
    assert torch.equal(expected.embeddings, got.embeddings)
    assert got.embeddings.isfinite().all()
    assert {"model.safetensors", "config.json", "preprocessor_config.json", "modeling_reid.py", "README.md"} <= {
        path.name for path in (tmp_path / "model").iterdir()
    }
    assert AutoConfig.from_pretrained(tmp_path / "model").to_dict()["image_size"] == model.config.image_size


def test_loading_leaves_nothing_trainable_that_was_not(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    loaded = ReIDModel.from_pretrained(tmp_path / "model")
    assert {n for n, p in loaded.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }
    assert not any(isinstance(module, BNNeck) and hasattr(module, "bias") for module in loaded.modules())


def test_evaluation_writes_no_state_and_does_not_depend_on_the_batch(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = pixels(model, 3)
    with torch.no_grad():
        together = model(x).embeddings
        alone = torch.cat([model(row[None]).embeddings for row in x])
    torch.testing.assert_close(together, alone, atol=2e-4, rtol=1e-3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_every_parameter_gets_a_gradient(model):
    model.train()
    (model(pixels(model, 4)).embeddings * torch.randn(model.embedding_dim)).sum().backward()
    idle = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not idle  # DistributedDataParallel stops at a parameter that takes no part


def test_built_on_meta_then_filled_equals_the_original(model):
    with torch.device("meta"):
        empty = ReIDModel(model.config)
    assert {p.device.type for p in empty.parameters()} == {"meta"}
    empty.load_state_dict(model.state_dict(), assign=True)
    rebuilt = {name for name, buffer in empty.named_buffers() if buffer.device.type == "meta"}
    # Buffers that no checkpoint holds are rebuilt by from_pretrained; only timm's Swin, of these models, has any.
    assert bool(rebuilt) == ("swin" in str(model.config.variant))
    for name in rebuilt:
        parent, _, leaf = name.rpartition(".")
        empty.get_submodule(parent)._buffers[leaf] = model.get_buffer(name)
    x = pixels(model)
    with torch.no_grad():
        assert torch.equal(empty.eval()(x).embeddings, model(x).embeddings)


def test_bfloat16_stays_close(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    half = AutoModel.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    x = pixels(model)
    with torch.no_grad():
        a, b = model(x).embeddings, half(x.bfloat16()).embeddings.float()
    assert torch.cosine_similarity(a, b).min() > 0.98


def test_two_builds_with_one_seed_are_equal_and_scaled_sensibly():
    a, b = make("resnet"), make("resnet")
    assert all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    conv = a.backbone.model.encoder.stages[3].layers[1].layer[1].convolution.weight
    fan_out = conv.shape[0] * 9
    assert conv.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)


def test_timm_keeps_its_own_initialisation():
    import timm

    torch.manual_seed(0)
    ours = ReIDModel(ReIDConfig.from_variant("timm/resnet10t")).backbone.model.timm_model
    theirs = timm.create_model("resnet10t", num_classes=0)
    for name in ("layer2.0.conv1.weight", "conv1.0.weight"):
        assert ours.state_dict()[name].std().item() == pytest.approx(theirs.state_dict()[name].std().item(), rel=0.1)


def test_neck_decides_what_is_classified_and_retrieve_what_is_searched():
    model = make("timm vit")
    x = pixels(model)
    with torch.no_grad():
        output = model(x)
        assert torch.equal(output.embeddings, output.features)  # retrieve="features"
        asked = model(x, retrieve="neck")
        assert torch.equal(asked.features, output.features)
        assert torch.equal(asked.embeddings, model.neck(output.features))
        assert torch.equal(model.embed(x, retrieve="neck"), asked.embeddings)
        trained = model.train()(x, retrieve="features")
    assert not torch.equal(trained.embeddings, trained.features)
    assert model.config.retrieve == "features"
    with pytest.raises(ValueError, match="retrieve must be one of neck, features, got 'head'"):
        model(x, retrieve="head")


def test_tuple_output_and_pooler_name():
    model = make("resnet")
    x = pixels(model)
    with torch.no_grad():
        output, plain = model(x), model(x, return_dict=False)
    assert torch.equal(output.pooler_output, output.embeddings)
    assert torch.equal(plain[0], output.embeddings)


def test_gradient_checkpointing_gives_the_same_gradients_for_a_transformer():
    for kind in ("transformers vit", "timm vit"):
        model = make(kind)
        x = pixels(model)
        grads = []
        for checkpointing in (False, True):
            if checkpointing:
                model.activation_checkpointing_enable()
            model.train()  # drop-path and dropout are zero in these models
            model.zero_grad()
            model(x).features.square().sum().backward()
            grads.append([p.grad.clone() for p in model.backbone.parameters() if p.grad is not None])
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b)
        flags = ("gradient_checkpointing", "grad_checkpointing")  # transformers', timm's
        switched = [(m, f) for m in model.modules() for f in flags if getattr(m, f, False)]
        assert switched
        model.activation_checkpointing_disable()
        assert not any(getattr(module, flag) for module, flag in switched)


@pytest.mark.parametrize("kind", ["resnet", "osnet", "timm cnn"])
def test_gradient_checkpointing_is_refused_where_it_would_be_wrong(kind):
    with pytest.raises(ValueError, match="running statistics"):
        make(kind).gradient_checkpointing_enable()


def test_encode_turns_files_by_their_exif_and_reads_those_whose_block_is_damaged(tmp_path):
    model, picture = make("basic resnet"), np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(picture).save(tmp_path / f"{orientation}.png", exif=exif)
    for name, (block, _) in DAMAGED_EXIF.items():
        Image.fromarray(picture).save(tmp_path / f"{name}.png", exif=block)
    turned = [np.asarray(load_image(str(tmp_path / f"{orientation}.png"))) for orientation in range(1, 9)]
    turned += [turned[orientation - 1] for _, orientation in DAMAGED_EXIF.values()]
    paths = [tmp_path / f"{name}.png" for name in (*range(1, 9), *DAMAGED_EXIF)]
    np.testing.assert_array_equal(model.encode(paths), model.encode(turned))
    assert len(np.unique(model.encode(turned[:8], flip=False).round(4), axis=0)) == 8


def test_encode_equals_forward_on_processed_pictures(tmp_path):
    model = make("resnet")
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (90, 41, 3), dtype=np.uint8) for _ in range(5)]
    processor = ReIDImageProcessor.from_config(model.config)
    x = processor(arrays, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        plain = model(x).embeddings
        flipped = (plain + model(x.flip(3)).embeddings) / 2
    Image.fromarray(arrays[0]).save(tmp_path / "a.png")
    pictures = [tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(arrays[2]), *arrays[3:]]
    expected = plain[[0, 0, 2, 3, 4]]
    got = model.encode(pictures, flip=False, batch_size=2)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected.numpy(), atol=2e-4, rtol=1e-3)
    np.testing.assert_allclose(model.encode(arrays), flipped.numpy(), atol=2e-4, rtol=1e-3)
    assert model.encode([]).shape == (0, model.embedding_dim)
    assert model.train().encode(arrays[:1]).shape == (1, model.embedding_dim)
    assert model.training


def test_processor_equals_the_transforms_of_published_results(tmp_path):
    from torchvision import transforms

    config = ReIDConfig.from_variant("res50-s1", image_size=(128, 64))
    ReIDModel(config).save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (130, 61, 3), dtype=np.uint8))
    reference = transforms.Compose(
        [
            transforms.Resize((128, 64)),
            transforms.ToTensor(),
            transforms.Normalize(config.image_mean, config.image_std),
        ]
    )
    torch.testing.assert_close(processor(picture, return_tensors="pt")["pixel_values"][0], reference(picture))


def test_pipeline_needs_no_question_answered(tmp_path, monkeypatch):
    model = make("resnet")
    model.save_pretrained(tmp_path / "model")

    def asked(*_):
        raise AssertionError("transformers asked whether to run the code of a registered model")

    monkeypatch.setattr("builtins.input", asked)
    extract = pipeline("image-feature-extraction", model=str(tmp_path / "model"), pool=True, return_tensors=True)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (130, 61, 3), dtype=np.uint8))
    np.testing.assert_allclose(extract(picture).numpy(), model.encode([picture], flip=False), rtol=1e-4, atol=1e-4)


def test_unknown_names_offer_the_nearest():
    assert "res50-s1" in list_variants()
    with pytest.raises(ValueError, match="did you mean 'res50-s1'"):
        ReIDConfig.from_variant("res50-s11")
    with pytest.raises(ValueError, match="resnet50"):
        ReIDConfig.from_variant("timm/resnet_50")
    with pytest.raises(ValueError, match="last_stirde"):
        ReIDConfig.from_variant("res50", last_stirde=1)
    with pytest.raises(ValueError, match="pooling must be one of avg"):
        ReIDConfig.from_variant("res50", pooling="median")
    with pytest.raises(
        ValueError, match="pooling='patches' needs tokens of patches behind others, but a 'resnet' backbone gives a map"
    ):
        ReIDModel(ReIDConfig.from_variant("res18-x0.25", pooling="patches"))
    with pytest.raises(ValueError, match="unknown options dim of embedding='none'; it has no options"):
        ReIDConfig.from_variant("res50", embedding_dim=64)
    with pytest.raises(ValueError, match="needs a backbone with a strided last stage"):
        ReIDModel(ReIDConfig.from_variant("timm/vit_tiny_patch16_224", last_stride=1))
    with pytest.raises(ValueError, match="pixel_values must be"):
        make("resnet")(torch.zeros(3, 128, 64))


@pytest.mark.parametrize("damage", ["missing", "extra", "misshaped"])
def test_checkpoint_that_does_not_fit_is_refused_by_name(tmp_path, damage):
    from safetensors.torch import load_file, save_file

    make("resnet").save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    if damage == "missing":
        del tensors["neck.weight"]
    elif damage == "extra":
        tensors["stranger.weight"] = torch.zeros(3)
    else:
        tensors["neck.weight"] = torch.zeros(3)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"stranger\.weight" if damage == "extra" else r"neck\.weight"):
        ReIDModel.from_pretrained(tmp_path / "model")


def test_unknown_key_in_a_saved_configuration_is_refused(tmp_path):
    make("resnet").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "poling": "max"}))
    with pytest.raises(ValueError, match="poling"):
        ReIDModel.from_pretrained(tmp_path)


def test_failed_save_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
    model = make("resnet")
    model.save_pretrained(tmp_path / "model")
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}

    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ReIDImageProcessor, "save_pretrained", full_disk)
    with torch.no_grad():
        model.neck.weight.add_(1)
    with pytest.raises(OSError, match="No space left"):
        model.save_pretrained(tmp_path / "model")
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_fingerprint_follows_what_decides_the_embedding(tmp_path):
    model = make("resnet")
    model.save_pretrained(tmp_path)
    fingerprint = model.fingerprint()
    assert ReIDModel.from_pretrained(tmp_path).fingerprint() == fingerprint
    model.config.image_size = [64, 32]
    assert model.fingerprint() != fingerprint
    model.config.image_size = [128, 64]
    assert model.fingerprint() == fingerprint
    model.neck.running_mean[0] += 1e-3
    assert model.fingerprint() != fingerprint


def test_results_of_earlier_weights_do_not_stay_beside_new_ones(tmp_path):
    model = make("resnet")
    model.save_pretrained(tmp_path)
    (tmp_path / "results.json").write_text("{}")
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"a shard of larger weights")
    (tmp_path / "checkpoint-8").mkdir()
    model.save_pretrained(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert "results.json" not in names
    assert [name for name in names if name.endswith(".safetensors")] == ["model.safetensors"]
    assert "checkpoint-8" in names


def test_sentence_transformers_loads_a_checkpoint_as_an_image_model(tmp_path):
    from sentence_transformers import SentenceTransformer

    model = make("resnet")
    model.save_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (90, 41, 3), dtype=np.uint8)) for _ in range(3)]
    loaded = SentenceTransformer(str(tmp_path), device="cpu")
    np.testing.assert_allclose(loaded.encode(pictures), model.encode(pictures, flip=False), rtol=1e-4, atol=1e-5)
    assert loaded.similarity_fn_name == "cosine"
