"""MGN, Multiple Granularity Network (arXiv:1804.01438): a ResNet whose end exists three times."""

import copy

from torch import Tensor, nn
from transformers import ResNetConfig

from .backbone_library import LibraryBackbone, set_stride


class MGN(nn.Module):
    """MGN's trunk and branches, (B, 3, H, W) -> three maps, the first half as high and wide as the others.

    The trunk is a ResNet up to the first block of its third stage; each branch goes on with a third and fourth stage
    of its own, the second and third branch without the last stride.

    Attributes:
        branches: how many of the maps that `stages` returns, the last ones, stand side by side.
        stage_channels, stage_reductions: of those maps.
    """

    branches = 3

    def __init__(self, config):
        super().__init__()
        widths = [factor * config.width for factor in (4, 8, 16, 32)]
        resnet = ResNetConfig(embedding_size=config.width, hidden_sizes=widths, depths=config.depths)
        self.trunk = LibraryBackbone(resnet)
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
        """The third branch's map, (B, C, H/16, W/16)."""
        return self.stages(pixel_values)[-1]

    def stages(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """The four maps of the trunk, then those of the branches."""
        trunk = self.trunk.stages(pixel_values)
        return *trunk, *(tail(trunk[-1]) for tail in self.tails)
