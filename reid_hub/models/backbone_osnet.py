"""OSNet, omni-scale feature learning (arXiv:1905.00953), with the tensor names of torchreid's checkpoints."""

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import PreTrainedConfig

from .families import Family, Foreign, Variant, Width, register, scale_channels
from .width_groups import WidthGroups

GATE_REDUCTION = 16


@strict
class OSNetConfig(PreTrainedConfig):
    """OSNet (arXiv:1905.00953) backbone.

    Args:
        channels: channels of the stem and the three stages.
        blocks: residual blocks per stage.
        ibn: add instance norms (the IBN variant).
    """

    model_type = "reid_osnet"
    channels: list[int] | tuple[int, ...] = (64, 256, 384, 512)
    blocks: int = 2
    ibn: bool = False

    def __post_init__(self, **kwargs):
        self.channels = list(self.channels)
        super().__post_init__(**kwargs)


class ConvLayer(nn.Module):
    """Convolution, norm (batch norm, or instance norm in the IBN stem) and ReLU (except at the end of a block)."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 1, stride: int = 1, relu: bool = True, instance_norm=False):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.InstanceNorm2d(c_out, affine=True) if instance_norm else nn.BatchNorm2d(c_out)
        self.relu = nn.ReLU() if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(x)))

    def width_groups(self, groups: WidthGroups, writes: str, reads: str | tuple[str, ...] = ()) -> None:
        """Declare the channels of the convolution and the norm."""
        groups.layer("conv", reads=reads, writes=writes)
        groups.layer("bn", writes=writes)


class LiteLayer(nn.Module):
    """1x1 convolution without norm, depthwise 3x3 convolution, batch norm, ReLU (paper, figure 3b)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv2(self.conv1(x))))

    def width_groups(self, groups: WidthGroups, writes: str, reads: str) -> None:
        """Declare the channels; the depthwise kernels follow the output channels of the 1x1 convolution before them."""
        groups.layer("conv1", reads=reads, writes=writes)
        groups.layer("conv2", writes=writes)
        groups.layer("bn", writes=writes)


def lite_stream(channels: int, depth: int) -> nn.Module:
    """A sequence of Lite layers; a single layer has no index in its name, as in the published checkpoints."""
    return LiteLayer(channels) if depth == 1 else nn.Sequential(*(LiteLayer(channels) for _ in range(depth)))


def declare_stream(groups: WidthGroups, path: str, writes: str, reads: str) -> None:
    """Declare the Lite layers of a `lite_stream`; each but the last writes its own group, named after the layer."""
    stream = groups.module.get_submodule(path)
    layers = [path] if isinstance(stream, LiteLayer) else [f"{path}.{number}" for number in range(len(stream))]
    for layer in layers:
        target = writes if layer == layers[-1] else f"{groups.prefix}.{layer}"
        groups.module.get_submodule(layer).width_groups(groups.inside(layer), target, reads)
        reads = target


class ChannelGate(nn.Module):
    """Channel gate computed from the stream's global average, (B, C, h, w) -> (B, C, h, w) (paper, eq. 3)."""

    def __init__(self, channels: int, reduction: int = GATE_REDUCTION):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1)
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(self.relu(self.fc1(x.mean((2, 3), keepdim=True)))).sigmoid()

    def width_groups(self, groups: WidthGroups, gated: str) -> None:
        """Declare a gate on the channels `gated`; its hidden layer has a group of its own."""
        hidden = f"{groups.prefix}.hidden"
        groups.layer("fc1", reads=gated, writes=hidden)
        groups.layer("fc2", reads=hidden, writes=gated)


STREAMS = ("conv2a", "conv2b", "conv2c", "conv2d")


class OSBlock(nn.Module):
    """Residual block of four streams with 1 to 4 Lite layers, fused by one shared gate (paper, figure 4)."""

    def __init__(self, c_in: int, c_out: int, instance_norm: bool = False):
        super().__init__()
        middle = c_out // 4
        self.conv1 = ConvLayer(c_in, middle)
        for depth, name in enumerate(STREAMS, start=1):
            setattr(self, name, lite_stream(middle, depth))
        self.gate = ChannelGate(middle)
        self.conv3 = ConvLayer(middle, c_out, relu=False)
        self.downsample = ConvLayer(c_in, c_out, relu=False) if c_in != c_out else nn.Identity()
        if instance_norm:
            self.IN = nn.InstanceNorm2d(c_out, affine=True)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        entry = self.conv1(x)
        joined = sum(self.gate(getattr(self, name)(entry)) for name in STREAMS)
        out = self.conv3(joined) + self.downsample(x)
        return self.relu(self.IN(out) if hasattr(self, "IN") else out)

    def width_groups(self, groups: WidthGroups, writes: str, reads: str) -> None:
        """Declare the block's channels; the streams end in one group because they are summed and share the gate."""
        entry, joined = f"{groups.prefix}.entry", f"{groups.prefix}.sum"
        self.conv1.width_groups(groups.inside("conv1"), entry, reads)
        for name in STREAMS:
            declare_stream(groups, name, joined, entry)
        self.gate.width_groups(groups.inside("gate"), joined)
        self.conv3.width_groups(groups.inside("conv3"), writes, joined)
        if isinstance(self.downsample, ConvLayer):
            self.downsample.width_groups(groups.inside("downsample"), writes, reads)
        if hasattr(self, "IN"):
            groups.layer("IN", writes=writes)


def declare_stages(groups: WidthGroups, paths: list[str], stream: str) -> list[str]:
    """Declare consecutive residual blocks and transitions after a layer that writes `stream`; return the output groups.

    A residual stream is one group, named after its first block, the one with a shortcut convolution.
    """
    outputs = []
    for path in paths:
        layer, reads = groups.module.get_submodule(path), stream
        if isinstance(layer, nn.Sequential):  # transition: convolution and average pool
            path, layer = f"{path}.0", layer[0]
        if isinstance(getattr(layer, "downsample", None), ConvLayer) or isinstance(layer, ConvLayer):
            stream = f"{groups.prefix}.{path}"
        layer.width_groups(groups.inside(path), stream, reads)
        outputs.append(stream)
    return outputs


class OSNet(nn.Module):
    """OSNet up to conv5, (B, 3, H, W) -> (B, C, H/16, W/16); the 512-d FC after it is the model's embedding layer.

    Attributes:
        stage_channels, stage_reductions: channels and strides of the feature maps returned by `stages`.
    """

    gives = ("map", "stages")
    stage_reductions = (4, 8, 16, 16)

    def __init__(self, config: OSNetConfig):
        super().__init__()
        stem, *stages = config.channels
        self.out_channels = stages[-1]
        self.stage_channels = tuple(config.channels)
        self.conv1 = ConvLayer(3, stem, kernel=7, stride=2, instance_norm=config.ibn)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        width = stem
        for number, channels in enumerate(stages, start=2):
            # In the IBN variant, only the blocks of conv2 have the extra instance norm.
            sizes = [width] + [channels] * (config.blocks - 1)
            layers = [OSBlock(size, channels, instance_norm=config.ibn and number == 2) for size in sizes]
            if number < len(stages) + 1:
                layers.append(nn.Sequential(ConvLayer(channels, channels), nn.AvgPool2d(2, stride=2)))
            setattr(self, f"conv{number}", nn.Sequential(*layers))
            width = channels
        self.conv5 = ConvLayer(width, width)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.stages(pixel_values)[-1]

    def stages(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of the stem, of the first two stages after their transitions, and of conv5."""
        stem = self.maxpool(self.conv1(pixel_values))
        second = self.conv2(stem)
        third = self.conv3(second)
        return stem, second, third, self.conv5(self.conv4(third))

    def width_groups(self, groups: WidthGroups) -> tuple[str, ...]:
        """Declare the channels; return the group of the last feature map."""
        self.conv1.width_groups(groups.inside("conv1"), "stem")
        paths = [f"conv{stage}.{number}" for stage in (2, 3, 4) for number in range(len(getattr(self, f"conv{stage}")))]
        *_, stream = declare_stages(groups, paths, "stem")
        self.conv5.width_groups(groups.inside("conv5"), "conv5", stream)
        return ("conv5",)


def set_width(backbone: PreTrainedConfig, width: int) -> None:
    """Scale all channels of an OSNet or MSINet configuration to a stem of `width` channels.

    Raises:
        ValueError: if the stem is too narrow for the gates, or a number of channels would not be an integer.
    """
    if width < GATE_REDUCTION:
        raise ValueError(
            "the gates of OSNet and MSINet have one hidden channel in sixteen: the width must be "
            f"{GATE_REDUCTION} or more, got {width}"
        )
    backbone.channels = scale_channels(backbone.channels, backbone.channels[0], width)


WIDTH = Width(
    get=lambda backbone: backbone.channels[0],
    set=set_width,
    fields=("channels",),
    out=lambda backbone: backbone.channels[-1],
)
# OSNet and MSINet have the same widths.
CHANNELS = {
    "x1.0": [64, 256, 384, 512], "x0.75": [48, 192, 288, 384], "x0.5": [32, 128, 192, 256], "x0.25": [16, 64, 96, 128],
}  # fmt: skip


def _osnet(channels: list[int], backbone_parameters: int, parameters: int) -> Variant:
    """A variant that uses the 512-d vector after FC, BN and ReLU for classification, metric losses and retrieval."""
    embedding = {"name": "linear", "dim": 512, "bias": True, "relu": True, "init_std": 0.01}
    return Variant({"channels": channels}, {"embedding": embedding, "neck": "none"}, backbone_parameters, parameters)


OSNET = register(
    Family(
        name=OSNetConfig.model_type,
        title="OSNet",
        config=OSNetConfig,
        network=OSNet,
        variants={
            "osnet-x1.0": _osnet(CHANNELS["x1.0"], 1_905_828, 2_169_508),
            "osnet-x0.75": _osnet(CHANNELS["x0.75"], 1_087_610, 1_285_754),
            "osnet-x0.5": _osnet(CHANNELS["x0.5"], 497_426, 630_034),
            "osnet-x0.25": _osnet(CHANNELS["x0.25"], 134_792, 201_864),
        },
        width=WIDTH,
        # torchreid
        foreign=Foreign(
            names=((r"fc\.0\.(\w+)", r"head.fc.\1"), (r"fc\.1\.(\w+)", r"head.bn.\1"), (r"(.+)", r"backbone.\1"))
        ),
        citation="""@inproceedings{zhou2019osnet,
  title     = {Omni-Scale Feature Learning for Person Re-Identification},
  author    = {Zhou, Kaiyang and Yang, Yongxin and Cavallaro, Andrea and Xiang, Tao},
  booktitle = {ICCV}, year = {2019}
}""",
    )
)
