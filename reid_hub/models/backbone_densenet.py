"""DenseNet (arXiv:1608.06993), also for pictures of 32x32, with the tensor names of torchvision's `densenet161`."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DenseLayer(nn.Module):
    """Norm, ReLU, 1x1 and norm, ReLU, 3x3, put beside the input: (B, c, h, w) -> (B, c + growth, h, w)."""

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
    """Norm, ReLU, 1x1 convolution and the mean of 2x2: (B, c, h, w) -> (B, c_out, h // 2, w // 2)."""

    def __init__(self, c_in: int, c_out: int, dropout: float):
        super().__init__()
        self.dropout = dropout
        self.norm = nn.BatchNorm2d(c_in)
        self.conv = nn.Conv2d(c_in, c_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(F.dropout(self.conv(self.norm(x).relu()), self.dropout, self.training), 2)


class DenseNet(nn.Module):
    """DenseNet trunk up to its last norm and ReLU, (B, 3, H, W) -> (B, C, h, w).

    Attributes:
        stage_channels, stage_reductions: of the maps that `stages` returns.
    """

    def __init__(self, config):
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
        self.relu = nn.ReLU()  # a module, so that what looks for the final ReLU finds it
        self.out_channels = width
        self.stage_channels, self.stage_reductions = tuple(channels), tuple(reductions)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.relu(self.features(pixel_values))

    def stages(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """The stem's map and those of the blocks, in front of the transitions; the last behind its norm and ReLU."""
        x, maps = pixel_values, []
        for name, layer in self.features.named_children():
            if name == "denseblock1" or name.startswith("transition"):
                maps.append(x)
            x = layer(x)
        return *maps, self.relu(x)
