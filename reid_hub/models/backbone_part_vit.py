"""The part-token ViT of PASS (arXiv:2203.03931) and OSKT (arXiv:2511.06016), with PASS's tensor names."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import initialization as init

from .width_groups import WidthGroups

TOKENS = ("cls_token", "part_token1", "part_token2", "part_token3")
TOKEN_POSITIONS = ("cls_pos", "part1_pos", "part2_pos", "part3_pos")
INIT_STD = 0.02  # timm and PASS truncate this normal at +-2, a hundred deviations out: it is a plain normal


class PatchEmbedding(nn.Module):
    """Cut into patches and embed each, (B, 3, H, W) -> (B, n, E), row by row."""

    def __init__(self, config):
        super().__init__()
        self.proj = PatchConvolution(3, config.embed_dim, config.patch_size, config.stride)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.proj(pixel_values).flatten(2).transpose(1, 2)


class PatchConvolution(nn.Conv2d):
    """Starts uniform within 1 / sqrt(fan-in), weight and bias, as timm leaves it."""

    def initialise(self) -> None:
        bound = self.weight[0].numel() ** -0.5
        init.uniform_(self.weight, -bound, bound)
        init.uniform_(self.bias, -bound, bound)


class WidthLayer(nn.Linear):
    """From the width of the embedding to that of the blocks; the identity at the start where they are equal."""

    def initialise(self) -> None:
        if self.in_features == self.out_features:
            init.eye_(self.weight)
        else:
            init.normal_(self.weight, std=INIT_STD)


class Attention(nn.Module):
    """Self-attention, (B, N, D) -> (B, N, D); rows of `qkv` are queries, keys, values, each head after head."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = _linear(width, 3 * width)
        self.proj = _linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        queries, keys, values = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        # The scale is that of this network's own heads, also in a student that was cut out of wider ones.
        mixed = F.scaled_dot_product_attention(queries, keys, values, scale=(width // self.heads) ** -0.5)
        return self.proj(mixed.transpose(1, 2).reshape(batch, length, width))


class MLP(nn.Module):
    """Two linear layers with the exact GELU between them, (B, N, D) -> (B, N, D)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = _linear(width, hidden)
        self.fc2 = _linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block; in training each picture skips a branch with probability `drop_path`."""

    def __init__(self, config, drop_path: float):
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

    Tokens and positions have the width E of the patch embedding. `dw`, which OSKT adds, takes their sum to the width D
    of the blocks, so that a student of any width keeps its teacher's embedding.

    Raises:
        ValueError: for a picture of another size than the positions are made for.
    """

    # OSKT clusters the rows of a ViT by angle, those of a CNN by Euclidean distance.
    row_distance = "cosine"

    def __init__(self, config):
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
        """Draw the tokens and positions; the layers below are initialised on their own."""
        for tensor in self.parameters(recurse=False):
            init.normal_(tensor, std=INIT_STD)

    def forward(self, pixel_values: Tensor) -> Tensor:
        if tuple(pixel_values.shape[2:]) != self.image_size:
            got = "x".join(map(str, pixel_values.shape[2:]))
            due = "x".join(map(str, self.image_size))
            raise ValueError(
                f"the positions of this ViT are for pictures of {due}, got {got} (height x width): resize the pictures "
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
        """Declare the channels of the blocks; patch embedding, tokens and positions keep the teacher's width E."""
        groups.layer("dw", writes="residual")
        for i in range(len(self.blocks)):
            block, heads, hidden = f"blocks.{i}", f"blocks.{i}.attn", f"blocks.{i}.mlp"
            # A query channel meets the key of the same number, and the attention mixes values within a head.
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
        """Keep only each block's input for the backward, and run the block again there; `options` go to torch.

        Raises:
            ValueError: for the refinements that transformers' own models have.
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


def _linear(in_features: int, out_features: int) -> nn.Linear:
    layer = nn.Linear(in_features, out_features)
    layer.init_std = INIT_STD  # read by ReIDModel._init_weights, which sees leaves only
    return layer
