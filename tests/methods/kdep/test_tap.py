"""Where features are taken, against the network written out; what a tap leaves behind."""

import pytest
import timm
import torch
from timm.models.inception_v4 import InceptionC
from torch import nn
from torchvision.models import mobilenet_v2, resnet18
from transformers import (
    AutoModel,
    BertConfig,
    CLIPConfig,
    Dinov2Config,
    DINOv3ConvNextConfig,
    MobileNetV2Config,
    MobileViTConfig,
    MobileViTImageProcessor,
    ResNetConfig,
    SwinConfig,
    TimmWrapperConfig,
    ViTMAEConfig,
)

from reid_hub import ReIDConfig, ReIDModel
from reid_hub.hub.convert import load_foreign
from reid_hub.methods.kdep import Tap, TappedTeacher
from reid_hub.methods.kdep.tap import left_out, trailing_relus
from reid_hub.models.timm_model import TimmModel
from reid_hub.runs.teachers import open_teacher

from .small import model

SMALL_NETWORKS = [
    "res18-x0.25", "res50-s1", "osnet-x0.25", "msinet-x0.25", "squeezenet", "densenet-bc-100",
    "timm/resnet18", "timm/regnety_002", "timm/mobilenetv4_conv_small_035", "timm/ghostnet_050",
]  # fmt: skip


def shaken(network: nn.Module) -> nn.Module:
    """Norms away from where they start, so that no block is the identity."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if tensor.ndim == 1 and tensor.is_floating_point():
            low = 0.5 if name.endswith(("weight", "running_var")) else -0.3
            tensor.data.uniform_(low, low + 0.6, generator=generator)
    return network.eval()


def variant(name: str) -> ReIDModel:
    torch.manual_seed(0)
    return shaken(ReIDModel(ReIDConfig.from_variant(name, image_size=(64, 64))))


@pytest.mark.parametrize("name", SMALL_NETWORKS)
def test_what_is_left_out_is_the_relu_and_nothing_else(name):
    network, x = variant(name), torch.randn(2, 3, 64, 64)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    tap = Tap(network)
    last, whole = tap.last(x), network.backbone(x)
    assert tap.signed
    assert (last < 0).any()
    assert torch.equal(last.relu(), whole)
    assert torch.allclose(tap(x), last.mean((2, 3)))
    assert tap.dim == network.backbone.out_channels
    kept = Tap(network, relu=True)
    assert torch.equal(kept.last(x), whole)
    assert torch.equal(network.backbone(x), whole)  # the network itself is as it was
    for key, value in network.state_dict().items():
        assert torch.equal(value, before.pop(key)), key
    assert not before


def test_a_resnet_18_is_torchvisions_up_to_its_last_sum():
    """Written out with torchvision's blocks; what was tapped loads into the plain network, name by name."""
    torch.manual_seed(0)
    plain, x = shaken(resnet18()), torch.randn(2, 3, 64, 64)
    student = ReIDModel(ReIDConfig.from_variant("res18", image_size=(64, 64), last_stride=None)).eval()
    load_foreign(student, plain.state_dict())
    y = plain.maxpool(plain.relu(plain.bn1(plain.conv1(x))))
    y = plain.layer4[0](plain.layer3(plain.layer2(plain.layer1(y))))
    block = plain.layer4[1]
    y = block.bn2(block.conv2(block.relu(block.bn1(block.conv1(y))))) + y
    assert torch.allclose(Tap(student)(x), y.mean((2, 3)), atol=1e-5)


def test_a_mobilenet_is_torchvisions_without_its_relu6():
    torch.manual_seed(0)
    plain, student, x = mobilenet_v2().eval(), variant("mobilenetv2"), torch.randn(2, 3, 64, 64)
    ours = [t for key, t in student.backbone.state_dict().items()]
    theirs = {key: t for key, t in plain.state_dict().items() if key.startswith("features.")}
    assert [t.shape for t in ours] == [t.shape for t in theirs.values()]
    plain.load_state_dict({**plain.state_dict(), **dict(zip(theirs, ours, strict=True))})
    last = plain.features[:18](x)
    convolution, norm, _ = plain.features[18]
    expected = norm(convolution(last)).mean((2, 3))
    assert expected.shape == (2, 1280)
    assert (norm(convolution(last)) > 6).any()
    assert torch.allclose(Tap(student)(x), expected, atol=1e-4)
    # and with the ReLU6 back it is timm's own network again, under the same names
    network = timm.create_model("mobilenetv2_100", num_classes=0)
    network.load_state_dict({k.removeprefix("model.timm_model."): v for k, v in student.backbone.state_dict().items()})
    assert torch.allclose(network.eval()(x), Tap(student, relu=True)(x), atol=1e-5)


def test_a_module_that_is_called_often_is_left_out_once():
    """As torchvision's blocks do it: one ReLU, in place, for all layers of a block."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.relu = nn.Conv2d(3, 3, 1), nn.ReLU(inplace=True)

        def forward(self, x):
            return self.relu(self.conv(self.relu(self.conv(x))))

    block, x = Block(), torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        calls = trailing_relus(block, lambda: block(x))
        assert [(module, number) for module, number in calls] == [(block.relu, 1)]
        with left_out(calls):
            tapped = block(x)
        assert torch.equal(tapped, block.conv(block.conv(x).relu()))
        assert block.relu.inplace
        assert torch.equal(block(x), tapped.relu())
        assert trailing_relus(block, lambda: block.conv(block(x))) == []


def test_relus_of_branches_are_left_out_though_others_are_called_between_them():
    torch.manual_seed(0)
    block, x = shaken(InceptionC()), torch.randn(2, 1536, 3, 3)
    with torch.no_grad():
        whole = block(x)
        calls = trailing_relus(block, lambda: block(x))
        with left_out(calls):
            tapped = block(x)
        deep = block.branch2_2(block.branch2_1(block.branch2_0(x)))
    ends = [block.branch0, block.branch1_1a, block.branch1_1b, block.branch2_3a, block.branch2_3b, block.branch3[1]]
    assert [module for module, _ in calls] == [end.bn.act for end in ends]
    assert torch.equal(tapped.relu(), whole)
    for part in tapped.split(256, 1):
        assert (part < 0).any()
    norm = block.branch2_3a.bn
    expected = nn.functional.batch_norm(
        block.branch2_3a.conv(deep), norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
    )
    assert torch.allclose(tapped.split(256, 1)[3], expected, atol=1e-4)


def test_a_sum_with_a_branch_that_starts_at_zero_ends_in_no_relu():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.branch = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
            self.first, self.second, self.gain = nn.ReLU(), nn.ReLU(), 0

        def forward(self, x):
            y = self.first(self.stem(x))
            return y + self.gain * self.second(self.branch(y))

    block, x = Block(), torch.randn(2, 3, 4, 4)
    assert trailing_relus(block, lambda: block(x)) == []
    assert trailing_relus(block, lambda: torch.cat([block.first(x), x], 1)) == []


def test_behind_a_head_the_features_are_those_of_its_norm():
    osnet, x = variant("osnet-x0.25"), torch.randn(2, 3, 64, 64)
    expected = osnet.head.bn(osnet.head.fc(osnet.backbone(x).mean((2, 3))))
    tap = Tap(osnet, behind_head=True)
    assert torch.allclose(tap(x), expected)
    assert (tap.dim, Tap(osnet).dim) == (512, 128)
    assert torch.equal(tap(x).relu(), osnet(x).features)


def test_tokens_are_pooled_as_the_model_pools_them():
    vit = ReIDModel(
        ReIDConfig.from_variant("vit-s-s1", image_size=(32, 16), backbone_config={
            "model_type": "reid_part_vit", "embed_dim": 12, "width": 12, "heads": 2, "depth": 1,
        })
    ).eval()  # fmt: skip
    x = torch.randn(2, 3, 32, 16)
    assert torch.equal(Tap(vit)(x), vit(x).features)


@pytest.mark.parametrize(
    ("name", "arguments", "pooling"),
    [
        ("vit_tiny_patch16_224", {}, "cls"),
        ("vit_tiny_patch16_224", {"reg_tokens": 3}, "cls"),
        ("vit_tiny_patch16_224", {"global_pool": "avg"}, "patches"),
        ("vit_tiny_patch16_224", {"global_pool": "avg", "pool_include_prefix": True}, "avg"),
        ("vit_tiny_patch16_224", {"global_pool": "avg", "class_token": False}, "avg"),
        ("vit_wee_patch16_reg1_gap_256", {}, "patches"),
        ("eva02_tiny_patch14_224", {}, "patches"),
    ],
)
def test_tokens_of_timm_are_pooled_as_its_own_classifier_pools_them(name, arguments, pooling, tmp_path):
    """Loaded from its checkpoint and from ours, against timm's own; a norm behind the average is its head's."""
    torch.manual_seed(0)
    data = {"input_size": [3, 56, 56], "mean": [0.5] * 3, "std": [0.5] * 3}
    arguments = {"depth": 2, "img_size": [56, 56], "patch_size": 14, **arguments}
    network = TimmModel(TimmWrapperConfig(architecture=name, model_args=arguments, pretrained_cfg=data)).eval()
    for parameter in network.parameters():
        parameter.data.add_(0.05 * torch.randn(parameter.shape))  # positions and class token may start at 0
    teacher, x = open_teacher(saved(tmp_path / "timm", network)), torch.randn(2, 3, 56, 56)
    assert teacher.config.pooling["name"] == pooling
    teacher.save_pretrained(tmp_path / "ours")
    with torch.no_grad():
        for model in (teacher, open_teacher(tmp_path / "ours")):
            assert torch.allclose(network.timm_model.fc_norm(TappedTeacher(model)(x)), network.timm_model(x), atol=1e-5)
            assert torch.equal(model(x).features, TappedTeacher(model)(x))
    if not arguments.keys() - {"depth", "img_size", "patch_size"}:
        assert ReIDConfig.from_variant(f"timm/{name}", image_size=(56, 56)).pooling == {"name": pooling}


def saved(folder, network, **processor):
    network.save_pretrained(folder)
    if processor:
        from transformers import ViTImageProcessor

        ViTImageProcessor(**processor).save_pretrained(folder)
    return str(folder)


ENDS_IN_RELU = {"resnet", "mobilenet_v2"}
LIBRARY_CONFIGS = {
    "resnet": ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic"),
    "swin": SwinConfig(image_size=32, embed_dim=6, depths=[1, 1], num_heads=[1, 2], window_size=4),
    "dinov2": Dinov2Config(image_size=28, hidden_size=12, num_hidden_layers=2, num_attention_heads=2),
    # Of these the configuration does not say the width, or another one.
    "mobilenet_v2": MobileNetV2Config(depth_multiplier=0.1, image_size=32),
    "mobilevit": MobileViTConfig(
        image_size=32, hidden_sizes=[8, 8, 8], neck_hidden_sizes=[4, 4, 4, 4, 4, 4, 24], num_attention_heads=2
    ),
    "dinov3_convnext": DINOv3ConvNextConfig(image_size=32, hidden_sizes=[4, 4, 8, 12], depths=[1, 1, 1, 1]),
}


@pytest.mark.parametrize("kind", LIBRARY_CONFIGS)
def test_teachers_of_transformers(kind, tmp_path):
    """Loaded by name, against the library's own pooling; where a ReLU was left out, what it makes of the map."""
    torch.manual_seed(0)
    config = LIBRARY_CONFIGS[kind]
    network, size = shaken(AutoModel.from_config(config)), 28 if kind == "dinov2" else 32
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.25]
    name = saved(tmp_path, network, size={"height": size, "width": size}, image_mean=mean, image_std=std)
    teacher = open_teacher(name)
    assert (teacher.config.image_size, teacher.config.image_mean, teacher.config.image_std) == ([size] * 2, mean, std)
    x = torch.rand(2, 3, size, size)
    theirs = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.no_grad():
        output = network(theirs)
    pooled = output.pooler_output.flatten(1)
    imagenet = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    shown = (x - torch.tensor(imagenet[0]).view(3, 1, 1)) / torch.tensor(imagenet[1]).view(3, 1, 1)
    for relu in (True, False):
        said = TappedTeacher(teacher, mean=imagenet[0], std=imagenet[1], relu=relu)(shown)
        if relu or kind not in ENDS_IN_RELU:
            assert torch.allclose(said, pooled, atol=1e-5)
        else:
            assert (said < pooled - 1e-3).any()
            assert TappedTeacher(teacher)(theirs).equal(Tap(teacher)(theirs))


@pytest.mark.parametrize("flips", [True, False])
def test_a_teacher_that_reads_bgr_is_shown_rgb(flips, tmp_path):
    """Pictures go through transformers' own processor on one side, ours is handed them in the usual order."""
    torch.manual_seed(0)
    network = AutoModel.from_config(LIBRARY_CONFIGS["mobilevit"]).eval()
    for module in network.modules():  # of those it starts with, none lets a picture leave a trace
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, 1.3)
    size = {"height": 32, "width": 32}
    processor = MobileViTImageProcessor(size=size, crop_size=size, do_flip_channel_order=flips)
    processor.save_pretrained(tmp_path)
    teacher = open_teacher(saved(tmp_path, network))
    picture = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        expected = network(processor(picture, return_tensors="pt").pixel_values).pooler_output
    teacher = TappedTeacher(teacher, mean=[0.0] * 3, std=[1.0] * 3)
    assert torch.allclose(teacher(picture[None] / 255), expected, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(teacher(picture.flip(0)[None] / 255), expected, rtol=0.1, atol=0.1)


SMALL_VIT = {
    "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
}  # fmt: skip


def test_the_half_of_clip_that_sees(tmp_path):
    torch.manual_seed(0)
    text = {**SMALL_VIT, "vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1}
    config = CLIPConfig(text_config=text, vision_config={**SMALL_VIT, "image_size": 32, "patch_size": 8})
    clip, x = shaken(AutoModel.from_config(config)), torch.randn(2, 3, 32, 32)
    teacher = open_teacher(saved(tmp_path, clip))
    with torch.no_grad():
        token = clip.vision_model(x).last_hidden_state[:, 0]
    assert teacher.config.image_size == [32, 32]
    assert torch.allclose(TappedTeacher(teacher)(x), token, atol=1e-5)


def test_a_masked_autoencoder_sees_everything(tmp_path):
    torch.manual_seed(0)
    mae = AutoModel.from_config(ViTMAEConfig(**SMALL_VIT, image_size=32, patch_size=8))
    teacher, x = TappedTeacher(open_teacher(saved(tmp_path, mae))), torch.randn(2, 3, 32, 32)
    features = [teacher(x) for _ in range(3)]  # the order of its tokens is drawn anew each time
    for again in features[1:]:
        assert torch.allclose(features[0], again, atol=1e-5)


def test_teachers_of_timm_that_were_saved(tmp_path):
    """As its checkpoints lie on the Hub: the wrapper's configuration and timm's own weights."""
    network = shaken(variant("timm/mobilenetv2_050").backbone.model)
    teacher = open_teacher(saved(tmp_path, network))
    x = torch.randn(2, 3, 224, 224)
    assert teacher.config.image_size == [224, 224]
    assert torch.allclose(TappedTeacher(teacher, relu=True)(x), network.timm_model(x), atol=1e-5)


def test_the_layers_of_timm_s_head_are_no_part_of_the_trunk(tmp_path):
    """Not even in a checkpoint whose configuration asks for them, as all do."""
    network, x = variant("timm/mobilenetv4_conv_small_035"), torch.randn(2, 3, 64, 64)
    network.save_pretrained(tmp_path)
    loaded = ReIDModel.from_pretrained(tmp_path)
    assert loaded.config.backbone_config.do_pooling
    trunk, called = loaded.backbone.model.timm_model, []
    for module in (trunk.conv_head, trunk.norm_head):
        module.register_forward_hook(lambda *_: called.append(1))
    with torch.no_grad():
        assert torch.equal(loaded.backbone(x), trunk.forward_features(x))
        assert not called
        assert torch.equal(loaded.backbone.model(x, do_pooling=True).pooler_output, trunk(x))
    assert called
    assert {name: t.shape for name, t in loaded.state_dict().items()} == {
        name: t.shape for name, t in network.state_dict().items()
    }


def test_a_teacher_is_shown_its_own_size():
    teacher, x = model(6, 8), torch.randn(2, 3, 64, 32)
    small = nn.functional.interpolate(x, (32, 16), mode="bilinear", antialias=True)
    assert torch.equal(TappedTeacher(teacher)(x), Tap(teacher.eval())(small))


def test_the_student_s_half_precision_is_not_the_teacher_s():
    teacher, pixels = TappedTeacher(variant("res18-x0.25")), torch.randn(4, 3, 64, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        halved = teacher(pixels)
        assert teacher.model(pixels).feature_map.dtype == torch.bfloat16
    assert torch.equal(halved, teacher(pixels))


def test_what_is_no_teacher_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a teacher is a trained model.*got 'res18'"):
        open_teacher("res18")
    with pytest.raises(FileNotFoundError, match=r"it has no config\.json"):
        open_teacher(tmp_path)
    reads = saved(tmp_path / "bert", AutoModel.from_config(BertConfig(**SMALL_VIT, vocab_size=50)))
    with pytest.raises(ValueError, match=r"no image model whose feature is known.*makes no feature map of an image"):
        open_teacher(reads)
    config = LIBRARY_CONFIGS["mobilevit"].to_dict()
    twice = MobileViTConfig(**{**config, "neck_hidden_sizes": [3, *config["neck_hidden_sizes"][1:]]})
    MobileViTImageProcessor().save_pretrained(tmp_path / "bgr")
    with pytest.raises(ValueError, match=r"must read it by one convolution.* 2 of three channels: take another"):
        open_teacher(saved(tmp_path / "bgr", AutoModel.from_config(twice)))
    with pytest.raises(ValueError, match="choices are features, map"):
        TappedTeacher(model(6, 8), tap="logits")
