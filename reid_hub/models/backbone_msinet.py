"""MSINet, a network of two interacting branches (arXiv:2303.07065), with the tensor names of its checkpoint."""

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers import initialization as init

from .backbone_osnet import CHANNELS, WIDTH, ChannelGate, ConvLayer, declare_stages, declare_stream, lite_stream
from .families import Family, Foreign, Variant, register
from .width_groups import WidthGroups

# Effect of an interaction on the channels of its two branches: `ties` means that both must use the same channel order;
# `width_groups` takes the groups of the branches' last layers and returns those of the branches after the interaction.


class Unchanged(nn.Module):
    """No interaction: (a, b) -> (a, b)."""

    ties = False

    def __init__(self, channels: int):
        super().__init__()

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return a, b

    def width_groups(self, groups: WidthGroups, a: str, b: str) -> tuple[str, str]:
        return a, b


class Exchange(Unchanged):
    """Swap the branches: (a, b) -> (b, a)."""

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return b, a

    def width_groups(self, groups: WidthGroups, a: str, b: str) -> tuple[str, str]:
        return b, a


class SharedGate(ChannelGate):
    """OSNet's channel gate, applied to each branch separately with shared weights."""

    ties = True

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(a), super().forward(b)

    def width_groups(self, groups: WidthGroups, a: str, b: str) -> tuple[str, str]:
        super().width_groups(groups, a)
        return a, b


class CrossAttention(nn.Module):
    """Channel attention that favours channels with low correlation to the other branch (paper, section 3.3).

    With a and b as (C, h * w) matrices: a + gamma * softmax(-a b') a and b + gamma * softmax(-b a') b, with the softmax
    over each row. The published code uses max(E) - E instead of -E, which only shifts each row. Attention weights
    indexed by b's channels multiply a's channels, so both branches must use the same channel order.
    """

    ties = True

    def __init__(self, channels: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))

    def initialise(self) -> None:
        """Start as the identity."""
        init.zeros_(self.gamma)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        energy = a.flatten(2) @ b.flatten(2).mT
        return self._attend(a, energy), self._attend(b, energy.mT)

    def _attend(self, x: Tensor, energy: Tensor) -> Tensor:
        return x + self.gamma * ((-energy).softmax(2) @ x.flatten(2)).view_as(x)

    def width_groups(self, groups: WidthGroups, a: str, b: str) -> tuple[str, str]:
        return a, b


INTERACTIONS = {
    "none": Unchanged,
    "exchange": Exchange,
    "gate": SharedGate,
    "cross_attention": CrossAttention,
}


@strict
class MSINetConfig(PreTrainedConfig):
    """MSINet (arXiv:2303.07065) backbone.

    Args:
        channels: channels of the stem and the three stages.
        genotype: for each of the six cells, the interactions of its two branches in the middle and at the tail: "none",
            "exchange", "gate" or "cross_attention". The default is the released genotype, searched on MSMT17.

    Raises:
        ValueError: if the number of cells is not six, or an interaction is unknown.
    """

    model_type = "reid_msinet"
    channels: list[int] | tuple[int, ...] = (64, 256, 384, 512)
    genotype: list | tuple = (
        ("gate", "gate"), ("exchange", "gate"), ("cross_attention", "gate"), ("gate", "none"),
        ("gate", "cross_attention"), ("exchange", "cross_attention"),
    )  # fmt: skip

    def __post_init__(self, **kwargs):
        self.channels = list(self.channels)
        self.genotype = [list(cell) for cell in self.genotype]
        if [len(cell) for cell in self.genotype] != [2] * 6:
            raise ValueError(f"genotype must be six pairs of interactions, got {self.genotype}")
        unknown = {name for cell in self.genotype for name in cell} - set(INTERACTIONS)
        if unknown:
            raise ValueError(f"genotype must be made of {', '.join(INTERACTIONS)}, got {sorted(unknown)}")
        super().__post_init__(**kwargs)


class Cell(nn.Module):
    """Residual block of two branches, of 2 and 6 Lite layers, that interact in the middle and at the tail.

    (B, c_in, h, w) -> (B, c_out, h, w); paper, figure 3.
    """

    def __init__(self, c_in: int, c_out: int, middle: str, tail: str):
        super().__init__()
        width = c_out // 4
        for branch, depth in (("a", 1), ("b", 3)):
            setattr(self, f"conv1{branch}", ConvLayer(c_in, width))
            setattr(self, f"conv2{branch}", lite_stream(width, depth))
            setattr(self, f"conv3{branch}", lite_stream(width, depth))
            setattr(self, f"conv4{branch}", ConvLayer(width, c_out, relu=False))
        self._op2 = INTERACTIONS[middle](width)
        self._op3 = INTERACTIONS[tail](width)
        self.downsample = ConvLayer(c_in, c_out, relu=False) if c_in != c_out else nn.Identity()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        a, b = self._op2(self.conv2a(self.conv1a(x)), self.conv2b(self.conv1b(x)))
        a, b = self._op3(self.conv3a(a), self.conv3b(b))
        return self.relu(self.conv4a(a) + self.conv4b(b) + self.downsample(x))

    def width_groups(self, groups: WidthGroups, writes: str, reads: str) -> None:
        """Declare the cell's channels; the last layers of branches tied by an interaction write the same group."""
        name = groups.prefix
        streams = (f"{name}.conv1a", f"{name}.conv1b")
        for branch, stream in zip("ab", streams, strict=True):
            getattr(self, f"conv1{branch}").width_groups(groups.inside(f"conv1{branch}"), stream, reads)
        for level in (2, 3):
            interaction = f"_op{level}"
            tied = getattr(self, interaction).ties
            ends = [f"{name}.conv{level}" if tied else f"{name}.conv{level}{branch}.end" for branch in "ab"]
            for branch, stream, end in zip("ab", streams, ends, strict=True):
                declare_stream(groups, f"conv{level}{branch}", end, stream)
            streams = getattr(self, interaction).width_groups(groups.inside(interaction), *ends)
        for branch, stream in zip("ab", streams, strict=True):
            getattr(self, f"conv4{branch}").width_groups(groups.inside(f"conv4{branch}"), writes, stream)
        if isinstance(self.downsample, ConvLayer):
            self.downsample.width_groups(groups.inside("downsample"), writes, reads)


class MSINet(nn.Module):
    """MSINet, (B, 3, H, W) -> (B, C, H/16, W/16): OSNet's stem, then three stages of two cells.

    Attributes:
        stage_channels, stage_reductions: channels and strides of the feature maps returned by `stages`.
    """

    gives = ("map", "stages")
    stage_reductions = (4, 8, 16, 16)

    def __init__(self, config: MSINetConfig):
        super().__init__()
        stem, *stages = config.channels
        self.stage_channels = tuple(config.channels)
        self.out_channels = stages[-1]
        self.conv1 = ConvLayer(3, stem, kernel=7, stride=2)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.cells = nn.ModuleList()
        width = stem
        for number, channels in enumerate(stages):
            if number:
                self.cells.append(nn.Sequential(ConvLayer(width, width), nn.AvgPool2d(2, stride=2)))
            for interactions in config.genotype[2 * number : 2 * number + 2]:
                self.cells.append(Cell(width, channels, *interactions))
                width = channels

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.stages(pixel_values)[-1]

    def stages(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of the stem, of the first two stages after their transitions, and of the last stage."""
        x = self.maxpool(self.conv1(pixel_values))
        maps = [x]
        for cell in self.cells:
            x = cell(x)
            if not isinstance(cell, Cell):
                maps.append(x)
        return *maps, x

    def width_groups(self, groups: WidthGroups) -> tuple[str, str]:
        """Declare the channels; return the groups of the last two feature maps returned by `stages`."""
        self.conv1.width_groups(groups.inside("conv1"), "stem")
        outputs = declare_stages(groups, [f"cells.{number}" for number in range(len(self.cells))], "stem")
        return outputs[-3], outputs[-1]


def _msinet(channels: list[int], backbone_parameters: int) -> Variant:
    """A variant that retrieves with the global and striped vectors, and classifies them after their necks."""
    vector = {"pooling": "global_stripes", "neck": "linear_bnneck", "retrieve": "features"}
    return Variant({"channels": channels}, vector, backbone_parameters)


MSINET = register(
    Family(
        name=MSINetConfig.model_type,
        title="MSINet",
        config=MSINetConfig,
        network=MSINet,
        variants={
            # Only x1.0 was released.
            "msinet-x1.0": _msinet(CHANNELS["x1.0"], 1_949_539),
            "msinet-x0.75": _msinet(CHANNELS["x0.75"], 1_110_698),
            "msinet-x0.5": _msinet(CHANNELS["x0.5"], 506_355),
            "msinet-x0.25": _msinet(CHANNELS["x0.25"], 136_026),
        },
        width=WIDTH,
        # The authors' names; their BNNecks, head and f_head, follow the linear layers fc and f_fc. Ignored: the second
        # vector, if our model has none, and the spatial alignment module.
        foreign=Foreign(
            names=(
                (r"f_conv\.(\w+)", r"pooling.f_conv.\1"),
                (r"fc\.(\w+)", r"neck.fc.0.\1"),
                (r"head\.(\w+)", r"neck.norm.0.\1"),
                (r"f_fc\.(\w+)", r"neck.fc.1.\1"),
                (r"f_head\.(\w+)", r"neck.norm.1.\1"),
                (r"(.+)", r"backbone.\1"),
            ),
            ignored=r"f_(fc|classifier|head|conv)|align_module",
        ),
        citation="""@inproceedings{gu2023msinet,
  title     = {{MSINet}: Twins Contrastive Search of Multi-Scale Interaction for Object {ReID}},
  author    = {Gu, Jianyang and Wang, Kai and Luo, Hao and Chen, Chen and Jiang, Wei and Fang, Yuqiang and
               Zhang, Shanghang and You, Yang and Zhao, Jian},
  booktitle = {CVPR}, year = {2023}
}""",
    )
)
