"""DenseNet (arXiv:1608.06993), also for 32x32 images, with the tensor names of torchvision's `densenet161`."""

from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import PreTrainedConfig

from .families import Family, Foreign, Variant, register
from .variant_fields import progressive


@strict
class DenseNetConfig(PreTrainedConfig):
    """DenseNet-BC (arXiv:1608.06993) backbone; the default is DenseNet-161.

    Args:
        growth: channels added by each layer (growth rate).
        blocks: number of layers in each block; a transition between blocks halves the channels.
        stem: output channels of the first convolution.
        bottleneck: output channels of a layer's 1x1 convolution, as a multiple of `growth`.
        small_input: use a 3x3 first convolution with stride 1 and no norm or pooling, for 32x32 images.
        dropout: dropout probability after every convolution except the first.

    Raises:
        ValueError: if `dropout` is not in [0, 1).
    """

    model_type = "reid_densenet"
    growth: int = 48
    blocks: list[int] | tuple[int, ...] = (6, 12, 36, 24)
    stem: int = 96
    bottleneck: int = 4
    small_input: bool = False
    dropout: float = 0.0

    def __post_init__(self, **kwargs):
        self.blocks = list(self.blocks)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be a probability below 1, got {self.dropout}")
        super().__post_init__(**kwargs)


class DenseLayer(nn.Module):
    """Norm-ReLU-1x1 and norm-ReLU-3x3, concatenated to the input: (B, c, h, w) -> (B, c + growth, h, w)."""

    def __init__(self, c_in: int, growth: int, bottleneck: int, dropout: float):
        super().__init__()
        self.dropout = dropout
        self.norm1 = nn.BatchNorm2d(c_in)
        self.conv1 = nn.Conv2d(c_in, bottleneck * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(bottleneck * growth)
        self.conv2 = nn.Conv2d(bottleneck * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        new = F.dropout(self.conv1(self.norm1(x).relu()), self.dropout, self.training)
        new = F.dropout(self.conv2(self.norm2(new).relu()), self.dropout, self.training)
        return torch.cat([x, new], 1)


class Transition(nn.Module):
    """Norm, ReLU, 1x1 convolution and 2x2 average pooling: (B, c, h, w) -> (B, c_out, h // 2, w // 2)."""

    def __init__(self, c_in: int, c_out: int, dropout: float):
        super().__init__()
        self.dropout = dropout
        self.norm = nn.BatchNorm2d(c_in)
        self.conv = nn.Conv2d(c_in, c_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(F.dropout(self.conv(self.norm(x).relu()), self.dropout, self.training), 2)


class DenseNet(nn.Module):
    """DenseNet up to and including the last norm and ReLU, (B, 3, H, W) -> (B, C, h, w).

    Attributes:
        stage_channels, stage_reductions: channels and strides of the feature maps returned by `stages`.
    """

    gives = ("map", "stages")

    def __init__(self, config: DenseNetConfig):
        super().__init__()
        layers = {"conv0": nn.Conv2d(3, config.stem, 7, stride=2, padding=3, bias=False)}
        if config.small_input:
            layers = {"conv0": nn.Conv2d(3, config.stem, 3, padding=1, bias=False)}
        else:
            layers |= {"norm0": nn.BatchNorm2d(config.stem), "relu0": nn.ReLU(), "pool0": nn.MaxPool2d(3, 2, 1)}
        width, reduction = config.stem, 1 if config.small_input else 4
        channels, reductions = [width], [reduction]
        for number, depth in enumerate(config.blocks, start=1):
            block = nn.Sequential()
            for layer in range(1, depth + 1):
                block.add_module(
                    f"denselayer{layer}", DenseLayer(width, config.growth, config.bottleneck, config.dropout)
                )
                width += config.growth
            layers[f"denseblock{number}"] = block
            channels.append(width)
            reductions.append(reduction)
            if number < len(config.blocks):
                layers[f"transition{number}"] = Transition(width, width // 2, config.dropout)
                width, reduction = width // 2, 2 * reduction
        layers["norm5"] = nn.BatchNorm2d(width)
        self.features = nn.Sequential()
        for name, layer in layers.items():
            self.features.add_module(name, layer)
        self.relu = nn.ReLU()  # a module, so that code that searches for the final ReLU finds it
        self.out_channels = width
        self.stage_channels, self.stage_reductions = tuple(channels), tuple(reductions)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.relu(self.features(pixel_values))

    def stages(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of the stem and of each block before its transition; the last one after norm and ReLU."""
        x, maps = pixel_values, []
        for name, layer in self.features.named_children():
            if name == "denseblock1" or name.startswith("transition"):
                maps.append(x)
            x = layer(x)
        return *maps, self.relu(x)


# ResNet-50 matches the size stated in the paper with the published widths and three pairs, but not with four.
# DenseNet-161 matches it with the published widths unscaled, although its stem is wider.
D161_SIDE = {"stem": [16, 32], "pairs": [[64, 64], [128, 256], [256, 512], [512, 128]]}


def _cifar(fields: dict[str, Any] | None = None) -> Variant:
    """DenseNet-BC-100-12 for 32x32 images."""
    backbone = {"growth": 12, "blocks": [16, 16, 16], "stem": 24, "small_input": True}
    image = {
        "image_size": (32, 32),
        "image_mean": (0.4914, 0.4822, 0.4465),
        "image_std": (0.2470, 0.2435, 0.2616),
    }
    return Variant(backbone, {"neck": "none", **image, **(fields or {})}, backbone_parameters=765_732)


DENSENET = register(
    Family(
        name=DenseNetConfig.model_type,
        title="DenseNet",
        config=DenseNetConfig,
        network=DenseNet,
        # Progressive Transfer Learning: baselines and models with a side network.
        variants={
            "densenet161": Variant({}, progressive(2208), backbone_parameters=26_472_000),
            "densenet161-ptl": Variant({}, progressive(2208, D161_SIDE), backbone_parameters=26_472_000),
            "densenet-bc-100": _cifar(),
            "densenet-bc-100-ptl": _cifar(progressive(342, {"stem": [16], "pairs": [[32, 32], [64, 64], [128, 128]]})),
        },
        # torchvision; its published files name a layer's `norm1` `norm.1`.
        foreign=Foreign(
            names=(
                (r"(features\..+)\.(norm|conv)\.([12])\.(\w+)", r"backbone.\1.\2\3.\4"),
                (r"(features\..+)", r"backbone.\1"),
            )
        ),
        citation="""@inproceedings{huang2017densely,
  title     = {Densely Connected Convolutional Networks},
  author    = {Huang, Gao and Liu, Zhuang and van der Maaten, Laurens and Weinberger, Kilian Q.},
  booktitle = {CVPR}, year = {2017}
}""",
    )
)
