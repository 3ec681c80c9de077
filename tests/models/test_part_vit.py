"""The part-token ViT against a second writing of it: loops over patches, pictures, heads and channels."""

import math
import sys

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, dynamic_module_utils

from reid_hub import ReIDConfig, ReIDModel
from reid_hub.methods import SupervisedMethod
from reid_hub.models.backbone_part_vit import Block, PartViT, PartViTConfig
from reid_hub.training.optimizers import build_optimizer
from reid_hub.training.recipes import RECIPES

TINY = {
    "model_type": "reid_part_vit", "embed_dim": 12, "width": 8, "depth": 2, "heads": 2, "mlp_ratio": 2.0,
    "patch_size": 16, "drop_path": 0.2,
}  # fmt: skip
SIZE = (64, 32)


def make(seed: int = 0, width: int = 8, stride: int = 16, **overrides) -> ReIDModel:
    """A small model whose every tensor is random, so that none could be lost or swapped unseen."""
    torch.manual_seed(seed)
    backbone = {**TINY, "width": width, "stride": stride, **overrides.pop("backbone", {})}
    model = ReIDModel(ReIDConfig.from_variant("vit-s", backbone_config=backbone, image_size=SIZE, **overrides))
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5 if name.endswith("running_var") else torch.randn_like(tensor))
    return model.eval()


def pictures(batch: int = 3, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(batch, 3, *SIZE, generator=torch.Generator().manual_seed(1), dtype=dtype)


def layer_norm(row: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    mean = row.sum() / len(row)
    variance = ((row - mean) ** 2).sum() / len(row)
    return (row - mean) / (variance + 1e-6) ** 0.5 * weight + bias


def gelu(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([v / 2 * (1 + math.erf(v / math.sqrt(2))) for v in x])


def reference(state: dict[str, torch.Tensor], picture: torch.Tensor, heads: int, depth: int, stride: int):
    """Tokens (4 + n, D) of one picture (3, H, W) from the tensors by their published names."""
    t = {name.removeprefix("backbone."): tensor for name, tensor in state.items() if name.startswith("backbone.")}
    kernels, size = t["patch_embed.proj.weight"], t["patch_embed.proj.weight"].shape[-1]
    rows = [t["cls_token"][0, 0] + t["cls_pos"][0, 0]]
    rows += [t[f"part_token{i}"][0, 0] + t[f"part{i}_pos"][0, 0] for i in (1, 2, 3)]
    for top in range(0, picture.shape[1] - size + 1, stride):
        for left in range(0, picture.shape[2] - size + 1, stride):
            patch = picture[:, top : top + size, left : left + size]
            embedded = torch.stack([(kernel * patch).sum() for kernel in kernels]) + t["patch_embed.proj.bias"]
            rows.append(embedded + t["pos_embed"][0, len(rows) - 4])
    assert len(rows) == 4 + t["pos_embed"].shape[1]
    x = [t["dw.weight"] @ row for row in rows]
    width = len(x[0])
    head_width = width // heads
    for i in range(depth):
        b = {name.removeprefix(f"blocks.{i}."): tensor for name, tensor in t.items() if name.startswith(f"blocks.{i}.")}
        packed = [
            b["attn.qkv.weight"] @ layer_norm(row, b["norm1.weight"], b["norm1.bias"]) + b["attn.qkv.bias"] for row in x
        ]
        mixed = [[] for _ in x]
        for head in range(heads):
            q, k, v = ([row[part * width + head * head_width :][:head_width] for row in packed] for part in range(3))
            for n in range(len(x)):
                weights = torch.stack([math.sqrt(1 / head_width) * (q[n] * key).sum() for key in k]).exp()
                mixed[n].append(sum(w * value for w, value in zip(weights / weights.sum(), v, strict=True)))
        for n in range(len(x)):
            x[n] = x[n] + b["attn.proj.weight"] @ torch.cat(mixed[n]) + b["attn.proj.bias"]
            hidden = b["mlp.fc1.weight"] @ layer_norm(x[n], b["norm2.weight"], b["norm2.bias"]) + b["mlp.fc1.bias"]
            x[n] = x[n] + b["mlp.fc2.weight"] @ gelu(hidden) + b["mlp.fc2.bias"]
    return torch.stack([layer_norm(row, t["norm.weight"], t["norm.bias"]) for row in x])


@pytest.mark.parametrize(("width", "stride"), [(8, 16), (12, 16), (8, 12)])
def test_forward_equals_the_network_written_as_loops(width, stride):
    model = make(width=width, stride=stride).double()
    x = pictures(2, torch.float64)
    with torch.no_grad():
        output = model(x)
        expected = torch.stack([reference(model.state_dict(), picture, 2, 2, stride) for picture in x])
    torch.testing.assert_close(output.feature_map, expected, rtol=1e-10, atol=1e-10)
    g, *parts = expected[:, :4].unbind(1)
    torch.testing.assert_close(output.embeddings, torch.cat([g, sum(parts) / 3], 1), rtol=1e-10, atol=1e-10)


def test_tensors_have_the_names_and_shapes_of_pass_and_the_layer_of_oskt():
    shapes = {
        "cls_token": (1, 1, 12), "part_token1": (1, 1, 12), "part_token2": (1, 1, 12), "part_token3": (1, 1, 12),
        "cls_pos": (1, 1, 12), "part1_pos": (1, 1, 12), "part2_pos": (1, 1, 12), "part3_pos": (1, 1, 12),
        "pos_embed": (1, 8, 12), "patch_embed.proj.weight": (12, 3, 16, 16), "patch_embed.proj.bias": (12,),
        "dw.weight": (8, 12), "norm.weight": (8,), "norm.bias": (8,),
    }  # fmt: skip
    for i in range(2):
        block = {
            "norm1": (8,),
            "norm2": (8,),
            "attn.qkv": (24, 8),
            "attn.proj": (8, 8),
            "mlp.fc1": (16, 8),
            "mlp.fc2": (8, 16),
        }
        for name, shape in block.items():
            shapes |= {f"blocks.{i}.{name}.weight": shape, f"blocks.{i}.{name}.bias": shape[:1]}
    assert {name: tuple(tensor.shape) for name, tensor in make().backbone.state_dict().items()} == shapes


def test_each_token_has_its_own_bnneck_and_training_classifies_behind_them():
    model = make(backbone={"drop_path": 0.0}).train()
    x = pictures(5)
    with torch.no_grad():
        output = model(x)
        tokens = output.feature_map
        g, *parts = [
            F.batch_norm(tokens[:, i], None, None, model.neck.parts[i].weight, training=True) for i in range(4)
        ]
        torch.testing.assert_close(output.embeddings, torch.cat([g, sum(parts) / 3], 1))
        torch.testing.assert_close(output.features, torch.cat([tokens[:, 0], tokens[:, 1:4].mean(1)], 1))
        output = model.eval()(x, retrieve="neck")
        statistics = [(n.running_mean, n.running_var, n.weight) for n in model.neck.parts]
        g, *parts = [
            (output.feature_map[:, i] - mean) / (var + 1e-5).sqrt() * weight
            for i, (mean, var, weight) in enumerate(statistics)
        ]
        torch.testing.assert_close(output.embeddings, torch.cat([g, sum(parts) / 3], 1))
    assert model.feature_dim == model.embedding_dim == 16


def test_plain_neck_and_linear_head_take_the_fused_vector():
    model = make(neck="bnneck", retrieve="neck", head="linear", embedding_dim=5)
    assert (model.feature_dim, model.embedding_dim) == (5, 5)
    with torch.no_grad():
        output = model(pictures())
        tokens = output.feature_map
        features = model.head(torch.cat([tokens[:, 0], tokens[:, 1:4].mean(1)], 1))
        torch.testing.assert_close(output.features, features)
        torch.testing.assert_close(output.embeddings, model.neck(features))
    plain = make(neck="bnneck", retrieve="neck")
    with torch.no_grad():
        output = plain(pictures())
    torch.testing.assert_close(output.embeddings, plain.neck(output.features))


def assert_initialised(model: ReIDModel) -> None:
    """Every tensor as drawn at the start: kinds by name, deviations within what their number of values allows."""
    for name, tensor in model.backbone.state_dict().items():
        if name == "dw.weight" and tensor.shape[0] == tensor.shape[1]:
            assert torch.equal(tensor, torch.eye(len(tensor))), name
        elif "norm" in name or (name.endswith("bias") and "patch_embed" not in name):
            assert torch.equal(tensor, torch.full_like(tensor, float(name.endswith("weight")))), name
        elif "patch_embed" in name:
            bound = (3 * 16 * 16) ** -0.5
            assert 0.9 * bound < tensor.abs().max() <= bound, name
            assert tensor.std().item() == pytest.approx(bound / 3**0.5, rel=0.3), name
        else:
            assert tensor.std().item() == pytest.approx(0.02, rel=5 / tensor.numel() ** 0.5), name
            assert abs(tensor.mean().item()) < 5 * 0.02 / tensor.numel() ** 0.5, name


@pytest.mark.parametrize("width", [24, 48])
def test_initialisation_is_that_of_pass_also_for_what_a_checkpoint_lacks(width, tmp_path):
    torch.manual_seed(0)
    backbone = {**TINY, "embed_dim": 48, "width": width}
    model = ReIDModel(ReIDConfig.from_variant("vit-s", backbone_config=backbone, image_size=SIZE))
    assert_initialised(model)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    lacking = ["cls_token", "part2_pos", "pos_embed", "dw.weight", "patch_embed.proj.weight", "patch_embed.proj.bias"]
    lacking += ["blocks.1.attn.qkv.weight", "blocks.0.mlp.fc1.bias", "blocks.0.norm1.weight"]
    kept = {name: tensor for name, tensor in tensors.items() if name.removeprefix("backbone.") not in lacking}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, info = ReIDModel.from_pretrained(tmp_path, output_loading_info=True)
    assert {name.removeprefix("backbone.") for name in info["missing_keys"]} == set(lacking)
    assert_initialised(loaded)
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in kept.items())
    assert not torch.equal(loaded.backbone.cls_token, model.backbone.cls_token)


def test_a_saved_model_is_the_same_with_and_without_the_package(tmp_path, monkeypatch):
    model, x = make(), pictures()
    model.save_pretrained(tmp_path / "model")
    loaded = AutoModel.from_pretrained(tmp_path / "model")
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(loaded(x).embeddings, expected.embeddings)
    # The code that travelled, as trust_remote_code=True runs it where the package is absent.
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    reference = loaded.config.auto_map["AutoModel"]
    travelled = dynamic_module_utils.get_class_from_dynamic_module(reference, str(tmp_path / "model"))
    alone = travelled.from_pretrained(tmp_path / "model")
    assert type(alone.backbone).__module__.startswith("transformers_modules.")
    with torch.no_grad():
        assert torch.equal(alone(x).embeddings, expected.embeddings)


def test_the_size_of_the_picture_is_said_once():
    given = PartViTConfig(embed_dim=12, width=8, heads=2, depth=1, image_size=(32, 16))
    config = ReIDConfig.from_variant("vit-s", backbone_config=given, image_size=(128, 64))
    assert config.backbone_config.grid == (8, 4)
    assert given.image_size == [32, 16]  # what was given is not written to
    assert ReIDModel(config).backbone.pos_embed.shape == (1, 32, 12)
    assert ReIDConfig.from_variant("vit-s", image_size=(384, 128)).backbone_config.grid == (24, 8)
    model = make()
    with pytest.raises(ValueError, match=r"images of 64x32, got 32x64 .* build the model with image_size=\(32, 64\)"):
        model(torch.zeros(1, 3, 32, 64))  # as many patches, in another order
    with pytest.raises(ValueError, match="smaller than a patch"):
        ReIDConfig.from_variant("vit-s", image_size=(8, 64))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone_config": {**TINY, "width": 100, "heads": 6}}, "multiple of the 6 heads, got 100: .* 96 and 102"),
        ({"backbone_config": {**TINY, "width": 4, "heads": 6}}, "nearest are 6 and 12"),
        ({"backbone_config": {**TINY, "drop_path": 1.0}}, "probability below 1"),
        (
            {"backbone_config": {"model_type": "reid_osnet"}},
            "needs part tokens, but a 'reid_osnet' backbone gives a map",
        ),
        ({"pooling": "cls"}, "needs part tokens, but pooling='cls' gives a vector"),
        (
            {"head": "linear", "embedding_dim": 8},
            "needs part tokens, but embedding='linear' gives a vector: take neck bnneck",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ReIDConfig.from_variant("vit-s", **changes)


def test_the_class_token_alone_can_be_retrieved():
    model = make(pooling="cls", neck="bnneck")
    with torch.no_grad():
        output = model(pictures())
    assert torch.equal(output.embeddings, output.feature_map[:, 0])


def test_drop_path_skips_branches_per_picture_and_keeps_the_mean():
    config = PartViTConfig(embed_dim=8, width=8, heads=2, depth=3, drop_path=0.4, image_size=SIZE)
    rates = [block.drop_path for block in PartViT(config).blocks]
    assert rates == pytest.approx([0.0, 0.2, 0.4])
    torch.manual_seed(0)
    block = Block(config, 0.4).train()
    block.mlp.fc2 = nn.Linear(16, 8)
    nn.init.zeros_(block.mlp.fc2.weight)
    nn.init.zeros_(block.mlp.fc2.bias)  # only the attention is left
    block.mlp.fc1 = nn.Linear(8, 16)
    x = torch.randn(1, 5, 8).expand(4000, -1, -1)
    with torch.no_grad():
        branch = block.attn(block.norm1(x[:1]))[0]
        moved = block(x) - x
    kept = moved.abs().sum((1, 2)) > 0
    torch.testing.assert_close(moved[kept], (branch / 0.6).expand(int(kept.sum()), -1, -1), rtol=1e-4, atol=1e-5)
    assert kept.float().mean().item() == pytest.approx(0.6, abs=0.03)


def test_checkpointing_changes_no_gradient_even_where_branches_are_dropped():
    model, x, gradients = make(backbone={"drop_path": 0.5}).train(), pictures(4), []
    runs = []
    hook = model.backbone.blocks[1].mlp.register_forward_hook(lambda *_: runs.append(1))
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable()
        runs.clear()
        model.zero_grad()
        torch.manual_seed(3)
        model(x).features.square().sum().backward()
        assert len(runs) == 1 + checkpointing
        gradients.append({name: p.grad.clone() for name, p in model.backbone.named_parameters()})
    hook.remove()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)
    model.activation_checkpointing_disable()
    assert not model.backbone.gradient_checkpointing
    with pytest.raises(ValueError, match="every_n_layers=2"):
        model.activation_checkpointing_enable(every_n_layers=2)


def test_the_vit_recipe_trains_every_parameter_in_one_step():
    recipe = RECIPES["vit"]
    torch.manual_seed(0)
    backbone = {**TINY, "drop_path": 0.0}  # a dropped branch would have no gradient
    config = ReIDConfig.from_variant("vit-s", backbone_config=backbone, image_size=SIZE, **recipe.config)
    method = SupervisedMethod(ReIDModel(config), 4, **recipe.options).train()
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    optimiser = build_optimizer(
        method, recipe.optimizer, lr=recipe.learning_rate, weight_decay=recipe.weight_decay,
        bias_lr_factor=recipe.bias_lr_factor, options=recipe.optimizer_options,
    )  # fmt: skip
    outputs = method({"pixel_values": pictures(8), "pids": torch.arange(8) // 2})
    assert all(value.isfinite() for value in outputs.values())
    outputs["loss"].backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name
    optimiser.step()
    assert all(not torch.equal(p, before[name]) for name, p in method.named_parameters())


def test_the_fingerprint_knows_the_heads():
    """Another number of heads changes every vector and no tensor."""
    two, four = make(), make(backbone={"heads": 4})
    four.load_state_dict(two.state_dict())
    with torch.no_grad():
        assert not torch.allclose(two(pictures()).embeddings, four(pictures()).embeddings)
    assert two.fingerprint() != four.fingerprint()
