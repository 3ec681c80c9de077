"""The part-token ViT of PASS (arXiv:2203.03931) and OSKT (arXiv:2511.06016), with PASS's tensor names."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig
from transformers import initialization as init

from .families import BNNECK, Family, Foreign, Variant, Width, register
from .layers import NormalLinear
from .width_groups import WidthGroups

TOKENS = ("cls_token", "part_token1", "part_token2", "part_token3")
TOKEN_POSITIONS = ("cls_pos", "part1_pos", "part2_pos", "part3_pos")
INIT_STD = 0.02  # timm and PASS truncate at +-2, which is 100 standard deviations: effectively a plain normal


@strict
class PartViTConfig(PreTrainedConfig):
    """ViT with part tokens (PASS, arXiv:2203.03931) and adjustable width (OSKT, arXiv:2511.06016).

    Args:
        embed_dim: width E of the patch embedding, tokens and position embeddings.
        width: width D of the blocks and the output.
        depth, heads, mlp_ratio: number of blocks, attention heads per block, and MLP width as a multiple of `width`.
        patch_size, stride: size and stride of the square patches, in pixels.
        drop_path: stochastic depth rate of the last block; rates increase linearly from 0.
        image_size: (height, width) in pixels; overwritten by the `ReIDConfig`.

    Raises:
        ValueError: if `width` is not divisible by `heads`, `drop_path` is not in [0, 1), or the image is smaller than a
            patch.
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
        """Hidden width of the MLPs."""
        return int(self.width * self.mlp_ratio)

    @property
    def grid(self) -> tuple[int, int]:
        """Number of patches along (height, width)."""
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


class PatchEmbedding(nn.Module):
    """Patch embedding, (B, 3, H, W) -> (B, n, E), with patches in row-major order."""

    def __init__(self, config: PartViTConfig):
        super().__init__()
        self.proj = PatchConvolution(3, config.embed_dim, config.patch_size, config.stride)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.proj(pixel_values).flatten(2).transpose(1, 2)


class PatchConvolution(nn.Conv2d):
    """Patch projection; weight and bias start uniform within +-1 / sqrt(fan-in), as in timm."""

    def initialise(self) -> None:
        bound = self.weight[0].numel() ** -0.5
        init.uniform_(self.weight, -bound, bound)
        init.uniform_(self.bias, -bound, bound)


class WidthLayer(nn.Linear):
    """Projection from the embedding width to the block width; initialised to the identity if they are equal."""

    def initialise(self) -> None:
        if self.in_features == self.out_features:
            init.eye_(self.weight)
        else:
            init.normal_(self.weight, std=INIT_STD)


class Attention(nn.Module):
    """Self-attention, (B, N, D) -> (B, N, D); the rows of `qkv` are queries, keys and values, each ordered by head."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = _linear(width, 3 * width)
        self.proj = _linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        queries, keys, values = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        # Scale by this network's own head width, also in a student with narrower heads than its teacher.
        mixed = F.scaled_dot_product_attention(queries, keys, values, scale=(width // self.heads) ** -0.5)
        return self.proj(mixed.transpose(1, 2).reshape(batch, length, width))


class MLP(nn.Module):
    """Two linear layers with an exact GELU in between, (B, N, D) -> (B, N, D)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = _linear(width, hidden)
        self.fc2 = _linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block; in training, each image skips a branch with probability `drop_path`."""

    def __init__(self, config: PartViTConfig, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.attn = Attention(config.width, config.heads)
        self.norm2 = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.mlp = MLP(config.width, config.mlp_width)
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._drop(self.attn(self.norm1(x)))
        return x + self._drop(self.mlp(self.norm2(x)))

    def _drop(self, branch: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0:
            return branch
        kept = branch.new_empty(len(branch), 1, 1).bernoulli_(1 - self.drop_path)
        return branch * kept / (1 - self.drop_path)


class PartViT(nn.Module):
    """ViT with a class token and three part tokens, (B, 3, H, W) -> (B, 4 + n, D): the four tokens, then the patches.

    Tokens and position embeddings have the width E of the patch embedding. `dw`, added by OSKT, projects their sum to
    the block width D, so a student of any width can keep its teacher's patch embedding.

    Raises:
        ValueError: if the image size differs from the one that the position embeddings are for.
    """

    gives = ("tokens", "part_tokens")

    # OSKT clusters rows by cosine distance for a ViT and by Euclidean distance for a CNN.
    row_distance = "cosine"

    def __init__(self, config: PartViTConfig):
        super().__init__()
        self.out_channels, self.heads = config.width, config.heads
        self.image_size = tuple(config.image_size)
        self.patch_embed = PatchEmbedding(config)
        for name in (*TOKENS, *TOKEN_POSITIONS):
            setattr(self, name, nn.Parameter(torch.zeros(1, 1, config.embed_dim)))
        rows, columns = config.grid
        self.pos_embed = nn.Parameter(torch.zeros(1, rows * columns, config.embed_dim))
        self.dw = WidthLayer(config.embed_dim, config.width, bias=False)
        rates = [config.drop_path * i / max(config.depth - 1, 1) for i in range(config.depth)]
        self.blocks = nn.ModuleList(Block(config, rate) for rate in rates)
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.gradient_checkpointing, self.checkpointing_options = False, {}

    def initialise(self) -> None:
        """Initialise the tokens and position embeddings; the submodules initialise themselves."""
        for tensor in self.parameters(recurse=False):
            init.normal_(tensor, std=INIT_STD)

    def forward(self, pixel_values: Tensor) -> Tensor:
        if tuple(pixel_values.shape[2:]) != self.image_size:
            got = "x".join(map(str, pixel_values.shape[2:]))
            due = "x".join(map(str, self.image_size))
            raise ValueError(
                f"the positions of this ViT are for images of {due}, got {got} (height x width): resize the images "
                f"to {due}, or build the model with image_size={tuple(pixel_values.shape[2:])}"
            )
        tokens = torch.cat([getattr(self, name) for name in TOKENS], 1)
        positions = torch.cat([getattr(self, name) for name in TOKEN_POSITIONS], 1)
        patches = self.patch_embed(pixel_values) + self.pos_embed
        x = self.dw(torch.cat([(tokens + positions).expand(len(patches), -1, -1), patches], 1))
        for block in self.blocks:
            if self.gradient_checkpointing and self.training:
                x = checkpoint(block, x, **self.checkpointing_options)
            else:
                x = block(x)
        return self.norm(x)

    def width_groups(self, groups: WidthGroups) -> tuple[str, ...]:
        """Declare the blocks' channels; patch embedding, tokens and position embeddings keep the teacher's width E."""
        groups.layer("dw", writes="residual")
        for i in range(len(self.blocks)):
            block, heads, hidden = f"blocks.{i}", f"blocks.{i}.attn", f"blocks.{i}.mlp"
            # Query and key channels are paired by index, and attention mixes values only within a head.
            groups.layer(
                f"{block}.attn.qkv", reads="residual", writes=(heads, heads, heads), blocks=self.heads, queries=True
            )
            groups.layer(f"{block}.attn.proj", reads=heads, writes="residual")
            groups.layer(f"{block}.mlp.fc1", reads="residual", writes=hidden)
            groups.layer(f"{block}.mlp.fc2", reads=hidden, writes="residual")
            groups.layer(f"{block}.norm1", writes="residual")
            groups.layer(f"{block}.norm2", writes="residual")
        groups.layer("norm", writes="residual")
        return ("residual",)

    def activation_checkpointing_enable(
        self, options: dict | None = None, every_n_layers: int = 1, offload: bool = False
    ) -> None:
        """Store only each block's input and recompute the block in the backward pass; `options` are passed to torch.

        Raises:
            ValueError: if `every_n_layers` or `offload`, which only transformers' own models support, is set.
        """
        if every_n_layers != 1 or offload:
            raise ValueError(
                f"the part-token ViT checkpoints every block on its device, got every_n_layers={every_n_layers} and "
                f"offload={offload}: leave both out"
            )
        self.gradient_checkpointing, self.checkpointing_options = True, {"use_reentrant": False, **(options or {})}

    def activation_checkpointing_disable(self) -> None:
        """Undo `activation_checkpointing_enable`."""
        self.gradient_checkpointing = False


def _linear(in_features: int, out_features: int) -> NormalLinear:
    return NormalLinear(in_features, out_features, std=INIT_STD)


NOISE_STD, NOISE_SEED = 0.02, 0

# Extra tensors in checkpoints of DeiT, of ImageNet training and of self-supervised training.
VIT_HEADS = "head_dist|dist_token|pre_logits"


def _to_part_tokens(tensors: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
    """Complete the state dict of a ViT for the part-token ViT without overwriting any of its tensors.

    If the ViT has one class token (`pos_embed` (1, 1 + n, E)), its first position embedding becomes that of the class
    token, and the part tokens start as copies of the class token plus a little noise from a fixed seed. Position
    embeddings of another grid are resized bilinearly. `dw`, which only OSKT has, is the identity if the widths agree.

    Raises:
        ValueError: if the grid of the position embeddings cannot be inferred.
    """
    tensors, config = dict(tensors), model.config.backbone_config
    positions, token = tensors.get("pos_embed"), tensors.get("cls_token")
    if positions is not None and positions.ndim != 3:
        positions = None  # left unchanged, so that loading reports the shape mismatch
    if positions is not None and token is not None and "cls_pos" not in tensors:
        # Rows of a distilled DeiT: class token, distillation token, patches.
        patches_from = 2 if "dist_token" in tensors else 1
        tensors["cls_pos"], positions = positions[:, :1], positions[:, patches_from:]
        generator = torch.Generator().manual_seed(NOISE_SEED)
        for part in (1, 2, 3):
            for name, source in ((f"part_token{part}", token), (f"part{part}_pos", tensors["cls_pos"])):
                noise = torch.randn(source.shape, generator=generator, dtype=torch.float32)
                tensors.setdefault(name, source + NOISE_STD * noise.to(source.dtype))
    if positions is not None:
        tensors["pos_embed"] = resize_positions(positions, config.grid)
    if config.embed_dim == config.width:
        tensors.setdefault("dw.weight", torch.eye(config.width))
    return tensors


def resize_positions(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resize position embeddings (1, n, E) bilinearly to another grid, (1, rows * columns, E).

    ImageNet grids are square; those of PASS and TransReID are twice as high as wide. No number is both a square and
    twice a square, so n determines the old grid.
    """
    count = positions.shape[1]
    side, half = math.isqrt(count), math.isqrt(count // 2)
    old = (side, side) if side * side == count else (2 * half, half)
    if old[0] * old[1] != count:
        if count == grid[0] * grid[1]:  # overlapping patches, 21 x 10: already the right size
            return positions
        raise ValueError(
            f"cannot tell the grid of {count} positions, which is neither n x n nor 2n x n, to resize it to "
            f"{grid[0]} x {grid[1]}: build the model with the stride and image size that the file was trained with"
        )
    if old == tuple(grid):
        return positions
    board = positions.float().unflatten(1, old).permute(0, 3, 1, 2)
    board = F.interpolate(board, size=tuple(grid), mode="bilinear", align_corners=False)
    return board.flatten(2).transpose(1, 2).to(positions.dtype)


def _set_width(backbone: PreTrainedConfig, width: int) -> None:
    if width % backbone.heads:
        raise ValueError(
            f"the width of a ViT must be a multiple of its {backbone.heads} heads, from {backbone.heads} to the "
            f"teacher's {backbone.width}, got {width}"
        )
    backbone.width = width


def _set_size(backbone: PreTrainedConfig, image_size: Sequence[int]) -> None:
    backbone.image_size = list(image_size)
    backbone.validate_grid()


def _part_vit(embed_dim: int, heads: int, width: int, backbone_parameters: int) -> Variant:
    """PASS as used by OSKT, where a student keeps its teacher's patch embedding."""
    fields = {
        "pooling": "part_tokens",
        "neck": "part_bnneck",
        "retrieve": "features",
        "image_mean": (0.5, 0.5, 0.5),
        "image_std": (0.5, 0.5, 0.5),
    }
    return Variant({"embed_dim": embed_dim, "width": width, "heads": heads}, fields, backbone_parameters)


PART_VIT = register(
    Family(
        name=PartViTConfig.model_type,
        title="the part-token ViT",
        config=PartViTConfig,
        network=PartViT,
        # OSKT (arXiv:2511.06016), table A3: teachers, and students with as many heads in narrower blocks. The paper
        # reports millions, excluding tokens and positions and with a patch embedding as narrow as the blocks.
        variants={
            "vit-s": _part_vit(384, 6, 384, 21_789_312),
            "vit-b": _part_vit(768, 12, 768, 86_340_864),
            "vit-s-s1": _part_vit(384, 6, 120, 2_486_160),
            "vit-s-s2": _part_vit(384, 6, 168, 4_502_832),
            "vit-b-s1": _part_vit(768, 12, 264, 10_975_728),
            "vit-b-s2": _part_vit(768, 12, 336, 17_263_200),
        },
        width=Width(get=lambda backbone: backbone.width, set=_set_width, fields=("embed_dim", "width", "heads")),
        # PASS, which names its part BNNecks bottleneck and bottleneck_1..3; also TransReID, DeiT and timm, with the
        # single class token extended to four tokens.
        foreign=Foreign(
            names=(
                (rf"bottleneck\.({BNNECK})", r"neck.parts.0.\1"),
                (rf"bottleneck_([123])\.({BNNECK})", r"neck.parts.\1.\2"),
                (r"(.+)", r"backbone.\1"),
            ),
            complete=_to_part_tokens,
            ignored=VIT_HEADS,
        ),
        fixes_size=lambda backbone: True,  # one position embedding per patch
        set_size=_set_size,
        vector_fields=("heads", "layer_norm_eps", "stride"),
        citation="""@inproceedings{zhu2022pass,
  title     = {{PASS}: Part-Aware Self-Supervised Pre-Training for Person Re-Identification},
  author    = {Zhu, Kuan and Guo, Haiyun and Yan, Tianyi and Zhu, Yousong and Wang, Jinqiao and Tang, Ming},
  booktitle = {ECCV}, year = {2022}
}""",
    )
)
