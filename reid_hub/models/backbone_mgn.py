"""MGN, Multiple Granularity Network (arXiv:1804.01438): a ResNet that splits into three branches."""

import copy
import re
from typing import Any

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import PreTrainedConfig, ResNetConfig

from .backbone_library import set_stride
from .backbone_resnet import BLOCK, IN_BLOCK, RESNET, ResNet
from .families import Family, Foreign, Variant, register


@strict
class MGNConfig(PreTrainedConfig):
    """MGN (arXiv:1804.01438): shared stages and branches, built from a bottleneck ResNet.

    Args:
        width: channels of the stem; the four stages output 4, 8, 16 and 32 times as many.
        depths: number of blocks in each stage.

    Raises:
        ValueError: unless there are four stages and the third has at least two blocks, one shared and one per branch.
    """

    model_type = "reid_mgn"
    width: int = 64
    depths: list[int] | tuple[int, ...] = (3, 4, 6, 3)

    def __post_init__(self, **kwargs):
        self.depths = list(self.depths)
        if len(self.depths) != 4 or min(self.depths) < 1 or self.depths[2] < 2:
            raise ValueError(f"depths must be four numbers from 1, the third from 2, got {self.depths}")
        super().__post_init__(**kwargs)


class MGN(nn.Module):
    """MGN's shared stages and branches, (B, 3, H, W) -> three maps, the first half as high and wide as the others.

    The shared part is a ResNet up to the first block of its third stage. Each branch continues with its own copy of the
    rest of the third stage and the fourth stage; the second and third branch drop the last stride.

    Attributes:
        branches: number of parallel branches; their maps are the last ones returned by `stages`.
        stage_channels, stage_reductions: channels and strides of the feature maps returned by `stages`.
    """

    gives = ("branches",)
    branches = 3

    def __init__(self, config: MGNConfig):
        super().__init__()
        widths = [factor * config.width for factor in (4, 8, 16, 32)]
        resnet = ResNetConfig(embedding_size=config.width, hidden_sizes=widths, depths=config.depths)
        self.trunk = ResNet(resnet)
        encoder = self.trunk.model.encoder
        third, fourth = encoder.stages[2], encoder.stages[3]
        tail = nn.Sequential(nn.Sequential(*third.layers[1:]), nn.Sequential(*fourth.layers))
        third.layers, encoder.stages = third.layers[:1], encoder.stages[:3]
        self.tails = nn.ModuleList([tail, copy.deepcopy(tail), copy.deepcopy(tail)])
        for late in self.tails[1:]:
            set_stride(late[1], 1)
        self.out_channels = widths[3]
        self.stage_channels = (config.width, *widths[:3], *[widths[3]] * self.branches)
        self.stage_reductions = (4, 4, 8, 16, 32, 16, 16)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Feature map of the third branch, (B, C, H/16, W/16)."""
        return self.stages(pixel_values)[-1]

    def stages(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """The four feature maps of the shared part, followed by those of the branches."""
        shared = self.trunk.stages(pixel_values)
        return *shared, *(tail(shared[-1]) for tail in self.tails)


# The names of a ResNet's parts in the public reproduction of MGN.
_SHARED = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3.0"}

# The blocks of torchvision's ResNet that each branch has its own copy of.
_TAIL = re.compile(rf"layer(?:(3)\.([1-9]\d*)|(4)\.(\d+))\.({BLOCK})\.(\w+)")


def _in_shared(name: str) -> str:
    return (RESNET.foreign.rename(name) or "").replace("backbone.", "backbone.trunk.", 1)


def _in_branch(branch: int, block: re.Match[str]) -> str:
    """Name of a tensor of such a block in the reproduction."""
    _, third, _, fourth, layer, tensor = block.groups()
    return f"p{branch}.0.{int(third) - 1}.{layer}.{tensor}" if third else f"p{branch}.1.{fourth}.{layer}.{tensor}"


def _to_branches(tensors: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
    """Complete a state dict for MGN's branches by copying a ResNet's last blocks to the second and third branch."""
    tensors = dict(tensors)
    for name, tensor in list(tensors.items()):
        if match := _TAIL.fullmatch(name):
            tensors |= {_in_branch(branch, match): tensor for branch in (2, 3)}
        elif name == "reduction.0.weight":
            tensors[name] = tensor.flatten(1)  # a 1x1 convolution there
    return tensors


def _reproduced(match: re.Match[str]) -> str:
    branch, part, block, layer, tensor = match.groups()
    return f"backbone.tails.{int(branch) - 1}.{part}.{block}.{IN_BLOCK[layer]}.{tensor}"


_BRANCH = rf"p([123])\.([01])\.(\d+)\.({BLOCK})\.(\w+)"


def _mgn(side: dict[str, Any] | None = None) -> Variant:
    """MGN as reproduced by the authors of Progressive Transfer Learning: eight 256-d vectors."""
    fields = {
        "pooling": "branch_stripes",
        "embedding": {"name": "shared_linear", "dim": 256, "bias": side is not None, "relu": True},
        "neck": "none",
        "side": side,
        "image_size": (384, 128),
        "interpolation": "bicubic",
    }
    return Variant({}, fields, backbone_parameters=2_957_376 + 3 * (5_585_920 + 14_964_736))


MGN_FAMILY = register(
    Family(
        name=MGNConfig.model_type,
        title="MGN",
        config=MGNConfig,
        network=MGN,
        variants={"mgn": _mgn(), "mgn-ptl": _mgn({"cell": "v1"})},
        # The public reproduction, which has a classifier for each vector; and torchvision's ResNet, whose last blocks
        # initialise the first branch and are copied to the others.
        foreign=Foreign(
            names=(
                (r"reduction\.0\.(\w+)", r"head.fc.\1"),
                (r"reduction\.1\.(\w+)", r"head.bn.\1"),
                (_BRANCH, _reproduced),
                (_TAIL.pattern, lambda match: re.sub(_BRANCH, _reproduced, _in_branch(1, match))),
                (r"(?:backbone\.)?([01456])\.(.+)", lambda match: _in_shared(f"{_SHARED[match[1]]}.{match[2]}")),
                (r"(?:conv1|bn1|layer[123])\..+", lambda match: _in_shared(match[0])),
            ),
            complete=_to_branches,
            ignored=r"fc_id_\w+",
        ),
        citation="""@inproceedings{wang2018mgn,
  title     = {Learning Discriminative Features with Multiple Granularities for Person Re-Identification},
  author    = {Wang, Guanshuo and Yuan, Yufeng and Chen, Xiong and Li, Jiwei and Zhou, Xi},
  booktitle = {ACM Multimedia}, year = {2018}
}""",
    )
)
