"""Configurations of the backbones that no library has, by their model_type."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

MSINET_INTERACTIONS = ("none", "exchange", "gate", "cross_attention")


@strict
class OSNetConfig(PreTrainedConfig):
    """OSNet (arXiv:1905.00953) trunk: `channels` of the stem and the three stages; `ibn` adds instance norms."""

    model_type = "reid_osnet"
    channels: list[int] | tuple[int, ...] = (64, 256, 384, 512)
    blocks: int = 2
    ibn: bool = False

    def __post_init__(self, **kwargs):
        self.channels = list(self.channels)
        super().__post_init__(**kwargs)


@strict
class MSINetConfig(PreTrainedConfig):
    """MSINet (arXiv:2303.07065) trunk.

    Args:
        channels: of the stem and the three stages.
        genotype: of each of the six cells, the interactions of its two branches in its middle and at its tail: "none",
            "exchange", "gate" or "cross_attention". The default is the released one, found on MSMT17.

    Raises:
        ValueError: for another number of cells, or an unknown interaction.
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
        unknown = {name for cell in self.genotype for name in cell} - set(MSINET_INTERACTIONS)
        if unknown:
            raise ValueError(f"genotype must be made of {', '.join(MSINET_INTERACTIONS)}, got {sorted(unknown)}")
        super().__post_init__(**kwargs)


@strict
class SqueezeNetConfig(PreTrainedConfig):
    """SqueezeNet 1.0 (arXiv:1602.07360) trunk without its classifier."""

    model_type = "reid_squeezenet"


@strict
class PartViTConfig(PreTrainedConfig):
    """ViT with part tokens (PASS, arXiv:2203.03931) and a free width (OSKT, arXiv:2511.06016).

    Args:
        embed_dim: width E of the patch embedding, the tokens and the positions.
        width: width D of the blocks and of the output.
        depth, heads, mlp_ratio: of the blocks.
        patch_size, stride: of the square patches, in pixels.
        drop_path: probability that the last block's branches are skipped in training, rising from 0 linearly.
        image_size: (height, width); a `ReIDConfig` sets its own here.

    Raises:
        ValueError: if the heads do not divide the width, `drop_path` is no probability below 1, or the picture is
            smaller than a patch.
    """

    model_type = "reid_part_vit"
    embed_dim: int = 384
    width: int = 384
    depth: int = 12
    heads: int = 6
    mlp_ratio: float = 4.0
    patch_size: int = 16
    stride: int = 16
    drop_path: float = 0.1
    layer_norm_eps: float = 1e-6
    image_size: list[int] | tuple[int, ...] = (256, 128)

    def __post_init__(self, **kwargs):
        self.image_size = list(self.image_size)
        self.validate_blocks()
        self.validate_grid()
        super().__post_init__(**kwargs)

    @property
    def mlp_width(self) -> int:
        """Channels between the two layers of an MLP."""
        return int(self.width * self.mlp_ratio)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along (height, width)."""
        rows, columns = ((size - self.patch_size) // self.stride + 1 for size in self.image_size)
        return rows, columns

    def validate_blocks(self):
        if self.width % self.heads or self.width < self.heads:
            below = max(self.width // self.heads, 1) * self.heads
            raise ValueError(
                f"width must be a multiple of the {self.heads} heads, got {self.width}: the nearest are {below} and "
                f"{below + self.heads}"
            )
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path must be a probability below 1, got {self.drop_path}")

    def validate_grid(self):
        if min(self.image_size) < self.patch_size:
            raise ValueError(f"image_size {self.image_size} is smaller than a patch of {self.patch_size} pixels")


@strict
class DenseNetConfig(PreTrainedConfig):
    """DenseNet-BC (arXiv:1608.06993) trunk; the default is DenseNet-161.

    Args:
        growth: channels that a layer adds; its 1x1 convolution makes `bottleneck` times as many first.
        blocks: layers of each block; a transition between two halves the channels.
        stem: channels of the first convolution.
        small_input: for pictures of 32x32: a first convolution of 3x3 that keeps their size, without norm and pool.
        dropout: probability behind every convolution but the first, in training.

    Raises:
        ValueError: if `dropout` is no probability below 1.
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


@strict
class MGNConfig(PreTrainedConfig):
    """MGN (arXiv:1804.01438) trunk and branches, made of a bottleneck ResNet.

    Args:
        width: channels of the stem; the four stages put out 4, 8, 16 and 32 times as many.
        depths: blocks of the stages.

    Raises:
        ValueError: unless there are four stages, of which the third has a block for the trunk and one for the branches.
    """

    model_type = "reid_mgn"
    width: int = 64
    depths: list[int] | tuple[int, ...] = (3, 4, 6, 3)

    def __post_init__(self, **kwargs):
        self.depths = list(self.depths)
        if len(self.depths) != 4 or min(self.depths) < 1 or self.depths[2] < 2:
            raise ValueError(f"depths must be four numbers from 1, the third from 2, got {self.depths}")
        super().__post_init__(**kwargs)


OWN_BACKBONES = {
    config.model_type: config
    for config in (OSNetConfig, MSINetConfig, PartViTConfig, SqueezeNetConfig, DenseNetConfig, MGNConfig)
}
