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


OWN_BACKBONES = {config.model_type: config for config in (OSNetConfig, MSINetConfig, PartViTConfig, SqueezeNetConfig)}
