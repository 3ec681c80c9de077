"""Foreign ViT files, written here by their tensor names, read back and used to the last tensor."""

import argparse

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from transformers import AutoModel

from reid_hub import ReIDConfig, ReIDModel
from reid_hub.hub.convert import Conversion, convert_checkpoint, load_foreign, read_checkpoint

WIDTH, DEPTH, HEADS = 12, 2, 3
BACKBONE = {
    "model_type": "reid_part_vit", "embed_dim": WIDTH, "width": WIDTH, "depth": DEPTH, "heads": HEADS,
}  # fmt: skip
PARTS = [f"part_token{i}" for i in (1, 2, 3)] + [f"part{i}_pos" for i in (1, 2, 3)]


def build(image_size=(64, 32), **changes) -> ReIDModel:
    torch.manual_seed(9)
    return ReIDModel(
        ReIDConfig.from_variant("vit-s", backbone_config={**BACKBONE, **changes}, image_size=image_size)
    ).eval()


def vit_state(positions: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """A ViT with a class token, as timm names it; `pos_embed` has `positions` rows."""
    shapes = {
        "cls_token": (1, 1, WIDTH), "pos_embed": (1, positions, WIDTH), "patch_embed.proj.weight": (WIDTH, 3, 16, 16),
        "patch_embed.proj.bias": (WIDTH,), "norm.weight": (WIDTH,), "norm.bias": (WIDTH,),
    }  # fmt: skip
    for i in range(DEPTH):
        rows = {"norm1": 0, "norm2": 0, "attn.qkv": 3, "attn.proj": 1, "mlp.fc1": 4, "mlp.fc2": 1}
        for name, times in rows.items():
            out, columns = max(times, 1) * WIDTH, (4 if name == "mlp.fc2" else 1) * WIDTH
            shapes[f"blocks.{i}.{name}.weight"] = (out, columns) if times else (out,)
            shapes[f"blocks.{i}.{name}.bias"] = (out,)
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def pass_state(positions: int = 8, seed: int = 0) -> dict[str, torch.Tensor]:
    """The same with PASS's four tokens, whose positions are tensors of their own."""
    generator = torch.Generator().manual_seed(seed + 100)
    tokens = {name: torch.randn(1, 1, WIDTH, generator=generator) for name in (*PARTS, "cls_pos")}
    return {**vit_state(positions, seed), **tokens}


def saved(content, tmp_path):
    torch.save(content, tmp_path / "file.pth")
    return tmp_path / "file.pth"


def load(content, tmp_path, model: ReIDModel) -> Conversion:
    return load_foreign(model, read_checkpoint(saved(content, tmp_path)))


def assert_backbone(model: ReIDModel, state: dict[str, torch.Tensor]) -> None:
    backbone = model.backbone.state_dict()
    for name, tensor in state.items():
        assert torch.equal(backbone[name], tensor), name


def raw_layout(state):
    """PASS's own file: two networks behind their projections, and the command line of the run."""
    teacher = {f"module.backbone.{name}": tensor for name, tensor in state.items()}
    student = {f"module.backbone.{name}": tensor + 1 for name, tensor in state.items()}
    projection = {"module.head.mlp.0.weight": torch.zeros(2), "module.projection.weight": torch.zeros(2)}
    return {
        "student": student | projection, "teacher": teacher | projection,
        "optimizer": {"state": {}, "param_groups": []}, "epoch": 100,
        "args": argparse.Namespace(lr=5e-4, arch="vit_small"),
    }  # fmt: skip


@pytest.mark.parametrize("layout", ["flat", "raw"])
def test_pass_file_fills_the_backbone(layout, tmp_path):
    state = pass_state()
    if layout == "raw":
        content, ignored = raw_layout(state), []
    else:
        extra = {"head.weight": 0, "fc.weight": 0, "fc.bias": 0, "pre_logits.fc.weight": 0, "head_dist.bias": 0}
        content, ignored = state | {name: torch.zeros(3) for name in extra}, sorted(extra)
    model = build()
    conversion = load(content, tmp_path, model)
    assert conversion.ignored == ignored
    assert conversion.made == ["backbone.dw.weight"]
    assert conversion.used == sorted(f"backbone.{name}" for name in (*state, "dw.weight"))
    assert all(name.startswith("neck.parts.") for name in conversion.fresh)
    assert len(conversion.fresh) == 4 * 3
    assert_backbone(model, {**state, "dw.weight": torch.eye(WIDTH)})


def test_a_command_line_in_the_file_does_not_let_code_through(tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return (print, ("code ran",))

    path = saved({**raw_layout(pass_state()), "args": argparse.Namespace(lr=Evil())}, tmp_path)
    with pytest.raises(ValueError, match="unpickling it could run code: refused"):
        read_checkpoint(path)
    assert "code ran" not in capsys.readouterr().out


def test_trained_file_brings_the_necks_and_its_own_dw(tmp_path):
    state = {**pass_state(), "dw.weight": torch.randn(WIDTH, WIDTH)}
    content, generator = {f"base.{name}": tensor for name, tensor in state.items()}, torch.Generator().manual_seed(4)
    statistics = {}
    for part, name in enumerate(["bottleneck", "bottleneck_1", "bottleneck_2", "bottleneck_3"]):
        for tensor in ("weight", "running_mean", "running_var"):
            values = torch.rand(WIDTH, generator=generator) + 0.5
            content[f"{name}.{tensor}"] = statistics[part, tensor] = values
        content |= {f"{name}.bias": torch.zeros(WIDTH), f"{name}.num_batches_tracked": torch.tensor(7)}
    content["classifier.weight"] = torch.zeros(9, 2 * WIDTH)
    _, conversion = convert_checkpoint(
        saved({"state_dict": content}, tmp_path), "vit-s", tmp_path / "out", backbone_config=BACKBONE,
        image_size=(64, 32), retrieve="neck",
    )  # fmt: skip
    assert conversion.ignored == sorted(
        ["classifier.weight", *(n for n in content if "bottleneck" in n and "bias" in n)]
    )
    assert (conversion.fresh, conversion.made) == ([], [])
    loaded = AutoModel.from_pretrained(tmp_path / "out")
    assert_backbone(loaded, state)
    with torch.no_grad():
        output = loaded(torch.randn(2, 3, 64, 32))
    g, *parts = [
        (output.feature_map[:, i] - statistics[i, "running_mean"])
        / (statistics[i, "running_var"] + 1e-5).sqrt()
        * statistics[i, "weight"]
        for i in range(4)
    ]
    torch.testing.assert_close(output.embeddings, torch.cat([g, sum(parts) / 3], 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["timm", "distilled DeiT", "TransReID"])
def test_one_class_token_becomes_four_tokens(kind, tmp_path):
    state = vit_state(positions=8 + (2 if kind == "distilled DeiT" else 1))
    positions, content, ignored, fresh = state["pos_embed"], dict(state), ["head.bias", "head.weight"], 4 * 3
    content |= {"head.weight": torch.zeros(5, WIDTH), "head.bias": torch.zeros(5)}
    if kind == "distilled DeiT":
        content |= {"dist_token": torch.ones(1, 1, WIDTH), "head_dist.weight": torch.zeros(5, WIDTH)}
        ignored = ["dist_token", "head.bias", "head.weight", "head_dist.weight"]
    if kind == "TransReID":
        content = {f"module.base.{name}": tensor for name, tensor in state.items()}
        content |= {
            f"module.bottleneck.{n}": torch.ones(WIDTH) for n in ("weight", "bias", "running_mean", "running_var")
        }
        content["module.classifier.weight"] = torch.zeros(5, WIDTH)
        ignored, fresh = ["bottleneck.bias", "classifier.weight"], 3 * 3
    model, again = build(), build()
    conversion = load({"model": content}, tmp_path, model)
    load({"model": content}, tmp_path, again)
    assert conversion.ignored == ignored
    assert len(conversion.fresh) == fresh
    assert conversion.made == sorted(f"backbone.{name}" for name in ("cls_pos", "dw.weight", *PARTS))
    rest = {name: tensor for name, tensor in state.items() if name != "pos_embed"}
    patches = positions[:, 2:] if kind == "distilled DeiT" else positions[:, 1:]
    assert_backbone(model, {**rest, "cls_pos": positions[:, :1], "pos_embed": patches})
    assert_backbone(again, model.backbone.state_dict())  # the noise is always the same
    backbone = model.backbone.state_dict()
    noise = torch.cat([backbone[name] - backbone["cls_token" if "token" in name else "cls_pos"] for name in PARTS])
    assert noise.std().item() == pytest.approx(0.02, rel=0.3)
    assert len(torch.unique(noise)) > 0.95 * noise.numel()


def test_converted_network_computes_what_timm_computes(tmp_path):
    """timm's own ViT, with our part tokens as its register tokens, which have no positions there."""
    options = {"img_size": (64, 32), "patch_size": 16, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}
    plain = VisionTransformer(**options, num_classes=7)
    state = vit_state(positions=9)
    plain.load_state_dict(state, strict=False)
    model = build()
    load(plain.state_dict(), tmp_path, model)
    ours = model.backbone.state_dict()
    reference = VisionTransformer(**options, num_classes=0, reg_tokens=3, no_embed_class=True).eval()
    tokens = {
        "cls_token": state["cls_token"] + state["pos_embed"][:, :1],
        "reg_token": torch.cat([ours[f"part_token{i}"] + ours[f"part{i}_pos"] for i in (1, 2, 3)], 1),
        "pos_embed": state["pos_embed"][:, 1:],
    }
    reference.load_state_dict({**state, **tokens})
    x = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        torch.testing.assert_close(model.backbone(x), reference.forward_features(x), rtol=1e-4, atol=1e-5)


def bilinear(old: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """(h, w, E) -> (rows, columns, E): pixel centres half a step from the edge, which is repeated beyond."""
    new = torch.zeros(rows, columns, old.shape[2])
    for i in range(rows):
        for j in range(columns):
            y = min(max((i + 0.5) * old.shape[0] / rows - 0.5, 0), old.shape[0] - 1)
            x = min(max((j + 0.5) * old.shape[1] / columns - 0.5, 0), old.shape[1] - 1)
            top, left = int(y), int(x)
            down, right = min(top + 1, old.shape[0] - 1), min(left + 1, old.shape[1] - 1)
            a, b = y - top, x - left
            new[i, j] = (1 - a) * ((1 - b) * old[top, left] + b * old[top, right])
            new[i, j] += a * ((1 - b) * old[down, left] + b * old[down, right])
    return new


@pytest.mark.parametrize(
    ("state", "old"),
    [(pass_state(8), (4, 2)), (vit_state(1 + 16), (4, 4)), (vit_state(1 + 36), (6, 6)), (vit_state(1 + 18), (6, 3))],
    ids=["PASS", "square", "square of as many patches", "as it is"],
)
def test_positions_of_another_grid_are_resized(state, old, tmp_path):
    size = {36: (192, 48), 18: (96, 48)}.get(old[0] * old[1], (80, 48))  # 12 x 3, 6 x 3, 5 x 3
    model = build(size)
    load(state, tmp_path, model)
    rows, columns = size[0] // 16, size[1] // 16
    patches = state["pos_embed"][0, -old[0] * old[1] :].view(*old, WIDTH)
    expected = patches if (rows, columns) == old else bilinear(patches, rows, columns)
    torch.testing.assert_close(model.backbone.pos_embed.view(rows, columns, WIDTH), expected)


def test_positions_of_overlapping_patches_fit_their_own_network_only(tmp_path):
    state = vit_state(1 + 5 * 2)
    model = build(stride=12)  # 5 x 2, neither a square nor twice as high as wide
    load(state, tmp_path, model)
    assert torch.equal(model.backbone.pos_embed, state["pos_embed"][:, 1:])
    with pytest.raises(ValueError, match="cannot tell the grid of 10 positions"):
        load(state, tmp_path, build())


@pytest.mark.parametrize(
    ("change", "model", "message"),
    [
        (lambda s: s.pop("pos_embed"), {}, r"missing 1 \(backbone.pos_embed\)"),
        (lambda s: s.update(pos_embed=torch.zeros(8, WIDTH)), {}, r"pos_embed \(8, 12\) instead of \(1, 8, 12\)"),
        (lambda s: s.pop("part2_pos"), {}, r"missing 1 \(backbone.part2_pos\)"),
        (lambda s: s.pop("blocks.1.mlp.fc1.bias"), {}, r"missing 1 \(backbone.blocks.1.mlp.fc1.bias\)"),
        (lambda s: s.update({"b1.0.norm1.weight": torch.ones(WIDTH)}), {}, r"unknown 1 \(b1.0.norm1.weight\)"),
        (lambda s: s.update({"bottleneck_4.weight": torch.ones(WIDTH)}), {}, r"unknown 1 \(bottleneck_4.weight\)"),
        (lambda s: None, {"width": 6}, r"missing 1 \(backbone.dw.weight\).*norm.weight \(12,\) instead of \(6,\)"),
        (lambda s: None, {"depth": 3}, "missing 12"),
        (lambda s: None, {"depth": 1}, "unknown 12"),
    ],
)
def test_file_that_does_not_fit_is_refused_and_changes_nothing(change, model, message, tmp_path):
    state, model = pass_state(), build(**model)
    change(state)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load(state, tmp_path, model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_timm_positions_follow_the_grid_and_the_class_token_keeps_its_own(tmp_path):
    """An ImageNet ViT, 14 x 14 patches, and TransReID's neck, on images of 16 x 8 patches."""
    model = ReIDModel(ReIDConfig.from_variant("timm/vit_tiny_patch16_224", image_size=(256, 128)))
    torch.manual_seed(0)
    tensors = {
        f"base.{name}": tensor for name, tensor in timm.create_model("vit_tiny_patch16_224").state_dict().items()
    }
    ramp = torch.linspace(0, 1, 14)[:, None].expand(14, 14).flatten()  # grows downwards
    tensors["base.pos_embed"] = torch.cat([torch.full((1,), 7.0), ramp])[None, :, None].expand(1, 197, 192).clone()
    tensors["bottleneck.weight"] = torch.full((192,), 3.0)
    torch.save(tensors, tmp_path / "vit.pth")
    conversion = load_foreign(model, read_checkpoint(tmp_path / "vit.pth"))
    positions = model.backbone.model.timm_model.pos_embed[0]
    assert (positions[0] == 7).all()
    rows = positions[1:].view(16, 8, 192)
    torch.testing.assert_close(rows, rows[:, :1, :1].expand(16, 8, 192))
    # Bilinear, cells in the middle: row r of 16 looks at 14 / 16 * (r + 0.5) - 0.5 of 14, clamped at the edges.
    expected = ((torch.arange(16) + 0.5) * 14 / 16 - 0.5).clamp(0, 13) / 13
    torch.testing.assert_close(rows[:, 0, 0], expected)
    assert (model.neck.weight == 3).all()
    assert conversion.ignored == ["head.bias", "head.weight"]
