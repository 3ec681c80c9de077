"""OSNet, omni-scale feature learning (arXiv:1905.00953), with the tensor names of torchreid's checkpoints."""

from torch import Tensor, nn


class ConvLayer(nn.Module):
    """Convolution, norm (batch norm, or instance norm in the IBN stem) and, unless it closes a block, ReLU."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 1, stride: int = 1, relu: bool = True, instance_norm=False):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.InstanceNorm2d(c_out, affine=True) if instance_norm else nn.BatchNorm2d(c_out)
        self.relu = nn.ReLU() if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(x)))


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


class ChannelGate(nn.Module):
    """Gates of a stream from its own global average, (B, C, h, w) -> (B, C, h, w) (paper, eq. 3)."""

    def __init__(self, channels: int, reduction: int = 16):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1)
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(self.relu(self.fc1(x.mean((2, 3), keepdim=True)))).sigmoid()


class OSBlock(nn.Module):
    """Four streams of 1 to 4 Lite layers, joined by one shared gate, in a residual block (paper, figure 4)."""

    def __init__(self, c_in: int, c_out: int, instance_norm: bool = False):
        super().__init__()
        middle = c_out // 4
        self.conv1 = ConvLayer(c_in, middle)
        self.conv2a = LiteLayer(middle)
        self.conv2b = nn.Sequential(*(LiteLayer(middle) for _ in range(2)))
        self.conv2c = nn.Sequential(*(LiteLayer(middle) for _ in range(3)))
        self.conv2d = nn.Sequential(*(LiteLayer(middle) for _ in range(4)))
        self.gate = ChannelGate(middle)
        self.conv3 = ConvLayer(middle, c_out, relu=False)
        self.downsample = ConvLayer(c_in, c_out, relu=False) if c_in != c_out else nn.Identity()
        if instance_norm:
            self.IN = nn.InstanceNorm2d(c_out, affine=True)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        entry = self.conv1(x)
        streams = (self.conv2a, self.conv2b, self.conv2c, self.conv2d)
        joined = sum(self.gate(stream(entry)) for stream in streams)
        out = self.conv3(joined) + self.downsample(x)
        return self.relu(self.IN(out) if hasattr(self, "IN") else out)


class OSNet(nn.Module):
    """OSNet trunk up to conv5, (B, 3, H, W) -> (B, C, H/16, W/16); the 512-d FC behind it is the model's head."""

    def __init__(self, config):
        super().__init__()
        stem, *stages = config.channels
        self.out_channels = stages[-1]
        self.conv1 = ConvLayer(3, stem, kernel=7, stride=2, instance_norm=config.ibn)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        width = stem
        for number, channels in enumerate(stages, start=2):
            # In the IBN variant only the blocks of conv2 carry the extra instance norm.
            sizes = [width] + [channels] * (config.blocks - 1)
            layers = [OSBlock(size, channels, instance_norm=config.ibn and number == 2) for size in sizes]
            if number < len(stages) + 1:
                layers.append(nn.Sequential(ConvLayer(channels, channels), nn.AvgPool2d(2, stride=2)))
            setattr(self, f"conv{number}", nn.Sequential(*layers))
            width = channels
        self.conv5 = ConvLayer(width, width)

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = self.maxpool(self.conv1(pixel_values))
        return self.conv5(self.conv4(self.conv3(self.conv2(x))))
