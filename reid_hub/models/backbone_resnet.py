"""transformers' ResNet (arXiv:1512.03385), with the variants used by several methods."""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig, ResNetConfig

from .backbone_library import LibraryBackbone, without_pooler
from .families import BNNECK, Family, Foreign, Variant, Width, register, scale_channels
from .variant_fields import factorized, progressive
from .width_groups import WidthGroups


class ResNet(LibraryBackbone):
    """transformers' ResNet, basic or bottleneck, (B, 3, H, W) -> (B, C, h, w)."""

    gives = ("map", "stages")

    def build(self, config: ResNetConfig) -> tuple[nn.Module, int]:
        return without_pooler(config), config.hidden_sizes[-1]

    def describe_stages(self, config: ResNetConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
        first = 8 if config.downsample_in_first_stage else 4
        reductions = (4, *(first * 2**stage for stage in range(len(config.hidden_sizes))))
        return (config.embedding_size, *config.hidden_sizes), reductions

    def stages(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of the stem and of each stage."""
        maps = [self.model.embedder(pixel_values)]
        for stage in self.model.encoder.stages:
            maps.append(stage(maps[-1]))
        return tuple(maps)

    def width_groups(self, groups: WidthGroups) -> tuple[str, ...]:
        """Declare the channels; return the group of the last feature map."""
        _conv_norm(groups, "model.embedder.embedder", writes="stem")
        stream = "stem"
        for s, stage in enumerate(self.model.encoder.stages):
            for b, block in enumerate(stage.layers):
                path, entering = f"model.encoder.stages.{s}.layers.{b}", stream
                # All blocks of a stage share one residual stream; a shortcut convolution starts a new one.
                if not isinstance(block.shortcut, nn.Identity):
                    stream = f"stage{s + 1}"
                    _conv_norm(groups, f"{path}.shortcut", reads=entering, writes=stream)
                inner = [f"stage{s + 1}.{b}.conv{c + 1}" for c in range(len(block.layer) - 1)]
                for c, (reads, writes) in enumerate(pairwise([entering, *inner, stream])):
                    _conv_norm(groups, f"{path}.layer.{c}", reads=reads, writes=writes)
        return (stream,)


def _conv_norm(groups: WidthGroups, path: str, *, writes: str, reads: str | tuple[str, ...] = ()) -> None:
    """Declare a convolution layer of transformers together with its norm."""
    groups.layer(f"{path}.convolution", reads=reads, writes=writes)
    groups.layer(f"{path}.normalization", writes=writes)


# Names of the layers in a block: torchvision -> transformers.
IN_BLOCK = {
    "conv1": "layer.0.convolution", "bn1": "layer.0.normalization",
    "conv2": "layer.1.convolution", "bn2": "layer.1.normalization",
    "conv3": "layer.2.convolution", "bn3": "layer.2.normalization",
    "downsample.0": "shortcut.convolution", "downsample.1": "shortcut.normalization",
}  # fmt: skip
BLOCK = "|".join(map(re.escape, IN_BLOCK))


def _in_stage(match: re.Match[str]) -> str:
    stage, block, layer, tensor = match.groups()
    return f"backbone.model.encoder.stages.{int(stage) - 1}.layers.{block}.{IN_BLOCK[layer]}.{tensor}"


def _set_width(backbone: PreTrainedConfig, width: int) -> None:
    backbone.hidden_sizes = scale_channels(backbone.hidden_sizes, backbone.embedding_size, width)
    backbone.embedding_size = width


R18 = {"depths": [2, 2, 2, 2], "layer_type": "basic"}
R34 = {"depths": [3, 4, 6, 3], "layer_type": "basic"}
R50 = {"depths": [3, 4, 6, 3], "layer_type": "bottleneck"}
R101 = {"depths": [3, 4, 23, 3], "layer_type": "bottleneck"}
R152 = {"depths": [3, 8, 36, 3], "layer_type": "bottleneck"}
FULL, QUARTER = [64, 128, 256, 512], [16, 32, 64, 128]


def _resnet(blocks: dict[str, Any], planes: Sequence[int], fields: dict[str, Any] | None = None, **published: int):
    """A variant with these stage widths; a bottleneck stage outputs four times its width.

    As usual in ReID, the last stage has stride 1 unless `fields` override it.
    """
    expansion = 1 if blocks["layer_type"] == "basic" else 4
    backbone = {"embedding_size": planes[0], "hidden_sizes": [expansion * width for width in planes], **blocks}
    return Variant(backbone, {"last_stride": 1, **(fields or {})}, **published)


def _planes(width: int, *multipliers: int) -> list[int]:
    return [width, *(width * multiplier for multiplier in multipliers)]


RESNET = register(
    Family(
        name="resnet",
        title="ResNet",
        network=ResNet,
        strided=True,
        variants={
            "res18": _resnet(R18, FULL, backbone_parameters=11_176_512),
            "res34": _resnet(R34, FULL, backbone_parameters=21_284_672),
            # Basic blocks at a quarter of the width: trains from scratch in minutes, unlike the narrow bottlenecks
            # below.
            "res18-x0.25": _resnet(R18, QUARTER),
            "res50": _resnet(R50, FULL, backbone_parameters=23_508_032),
            "res101": _resnet(R101, FULL, backbone_parameters=42_500_160),
            "res152": _resnet(R152, FULL, backbone_parameters=58_143_808),
            # OSKT (arXiv:2511.06016), table A1: stem width, and width multipliers of the second to fourth stage.
            "res50-s1": _resnet(R50, _planes(8, 2, 4, 8), backbone_parameters=374_152),
            "res50-s2": _resnet(R50, _planes(16, 2, 3, 4), backbone_parameters=611_088),
            "res50-s3": _resnet(R50, _planes(16, 2, 4, 8), backbone_parameters=1_480_976),
            "res50-s4": _resnet(R50, _planes(32, 2, 3, 4), backbone_parameters=2_421_280),
            "res50-s5": _resnet(R50, _planes(32, 2, 4, 8), backbone_parameters=5_892_640),
            "res50-s6": _resnet(R50, _planes(64, 2, 3, 4), backbone_parameters=9_638_976),
            # Factorized Distillation, table 1: backbone, embedding FC without bias, and BN.
            "res18a": _resnet(R18, FULL, factorized(512), parameters=11_439_680),
            "res50a": _resnet(R50, FULL, factorized(512), parameters=24_557_632),
            "res50b": _resnet(R50, FULL, factorized(2048), parameters=27_706_432),
            "res101a": _resnet(R101, FULL, factorized(512), parameters=43_549_760),
            "res152a": _resnet(R152, FULL, factorized(512), parameters=59_193_408),
            "res152b": _resnet(R152, FULL, factorized(2048), parameters=62_342_208),
            # Progressive Transfer Learning: baselines and models with a side network.
            "res18-x0.25-conv": _resnet(R18, QUARTER, progressive(128)),
            "res18-x0.25-ptl": _resnet(R18, QUARTER, progressive(128, {"pairs": 3})),
            "res50-conv": _resnet(R50, FULL, progressive(2048)),
            "res50-ptl": _resnet(R50, FULL, progressive(2048, {"pairs": 3})),
        },
        width=Width(
            get=lambda backbone: backbone.embedding_size,
            set=_set_width,
            fields=("embedding_size", "hidden_sizes", "layer_type", "depths"),
            out=lambda backbone: backbone.hidden_sizes[-1],
        ),
        # torchvision, timm, LUPerson; BoT names its BNNeck bottleneck.
        foreign=Foreign(
            names=(
                (r"conv1\.(\w+)", r"backbone.model.embedder.embedder.convolution.\1"),
                (r"bn1\.(\w+)", r"backbone.model.embedder.embedder.normalization.\1"),
                (rf"layer(\d)\.(\d+)\.({BLOCK})\.(\w+)", _in_stage),
                (rf"bottleneck\.({BNNECK})", r"neck.\1"),
            )
        ),
        citation="""@inproceedings{he2016deep,
  title     = {Deep Residual Learning for Image Recognition},
  author    = {He, Kaiming and Zhang, Xiangyu and Ren, Shaoqing and Sun, Jian},
  booktitle = {CVPR}, year = {2016}
}""",
    )
)
