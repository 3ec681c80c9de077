"""SqueezeNet 1.0 (arXiv:1602.07360), with the tensor names of torchvision's `squeezenet1_0`."""

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import PreTrainedConfig

from .families import Family, Foreign, Variant, register
from .variant_fields import factorized

# Fire modules between the three max pools: (squeeze, expand) channels; a module outputs 2 * expand.
STAGES = [[(16, 64), (16, 64), (32, 128)], [(32, 128), (48, 192), (48, 192), (64, 256)], [(64, 256)]]


@strict
class SqueezeNetConfig(PreTrainedConfig):
    """SqueezeNet 1.0 (arXiv:1602.07360) backbone without its classifier."""

    model_type = "reid_squeezenet"


class Fire(nn.Module):
    """1x1 squeeze, then concatenated 1x1 and 3x3 expansions, (B, c, h, w) -> (B, 2 * expand, h, w)."""

    def __init__(self, c_in: int, squeeze: int, expand: int):
        super().__init__()
        self.squeeze = nn.Conv2d(c_in, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.squeeze(x))
        return torch.cat([self.relu(self.expand1x1(x)), self.relu(self.expand3x3(x))], 1)


class SqueezeNet(nn.Module):
    """SqueezeNet 1.0, (B, 3, H, W) -> (B, 512, h, w) with stride 16; a 256x128 image gives a 15x7 map.

    Attributes:
        stage_channels, stage_reductions: channels and strides of the feature maps returned by `stages`.
    """

    gives = ("map", "stages")
    stage_channels = (96, *(2 * stage[-1][1] for stage in STAGES))
    stage_reductions = (4, 4, 8, 16)

    def __init__(self, config: SqueezeNetConfig):
        super().__init__()
        layers, width = [nn.Conv2d(3, 96, 7, stride=2), nn.ReLU()], 96
        for stage in STAGES:
            layers.append(nn.MaxPool2d(3, stride=2, ceil_mode=True))
            for squeeze, expand in stage:
                layers.append(Fire(width, squeeze, expand))
                width = 2 * expand
        self.out_channels = width
        self.features = nn.Sequential(*layers)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.features(pixel_values)

    def stages(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Feature maps after the first pooling layer, before each further pooling layer, and at the end."""
        x, maps = pixel_values, []
        for layer in self.features:
            pooled = isinstance(layer, nn.MaxPool2d)
            if pooled and maps:
                maps.append(x)
            x = layer(x)
            if pooled and not maps:
                maps.append(x)
        return *maps, x


SQUEEZENET = register(
    Family(
        name=SqueezeNetConfig.model_type,
        title="SqueezeNet",
        config=SqueezeNetConfig,
        network=SqueezeNet,
        # Student in Factorized Distillation, table 1.
        variants={"squeezenet": Variant({}, factorized(512), backbone_parameters=735_424, parameters=998_592)},
        # torchvision
        foreign=Foreign(names=((r"(features\..+)", r"backbone.\1"),)),
        citation="""@article{iandola2016squeezenet,
  title   = {{SqueezeNet}: {AlexNet}-level accuracy with 50x fewer parameters and <0.5{MB} model size},
  author  = {Iandola, Forrest N. and Han, Song and Moskewicz, Matthew W. and Ashraf, Khalid and Dally, William J. and
             Keutzer, Kurt},
  journal = {arXiv:1602.07360}, year = {2016}
}""",
    )
)
