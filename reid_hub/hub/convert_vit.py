"""Checkpoints of PASS, TransReID, DeiT and timm's ViT in the form of the part-token ViT, or on another grid."""

import math
import re

import torch
import torch.nn.functional as F
from torch import Tensor

from reid_hub.errors import ReIDError

NOISE_STD = 0.02
NOISE_SEED = 0


def part_vit_name(name: str) -> str:
    """PASS's names -> ours: trunk tensors keep theirs, `bottleneck` and `bottleneck_1..3` are the parts' BNNecks."""
    if match := re.fullmatch(r"bottleneck(?:_([123]))?\.(weight|running_mean|running_var|num_batches_tracked)", name):
        return f"neck.parts.{match[1] or 0}.{match[2]}"
    return f"backbone.{name}"


def to_part_tokens(tensors: dict[str, Tensor], config) -> dict[str, Tensor]:
    """The state dict of a ViT with everything that a part-token ViT of this `PartViTConfig` has; nothing is replaced.

    A network with one class token (`pos_embed` (1, 1 + n, E)) gives its position to the class token, and the part
    tokens begin as copies of the class token with a little noise, always the same. Positions of another grid are
    resized bilinearly. `dw`, which only OSKT has, is the identity where the widths agree.

    Raises:
        ValueError: if the grid of the positions cannot be told.
    """
    tensors = dict(tensors)
    positions, token = tensors.get("pos_embed"), tensors.get("cls_token")
    if positions is not None and positions.ndim != 3:
        positions = None  # stays as it is, to be named as misshaped
    if positions is not None and token is not None and "cls_pos" not in tensors:
        # Rows of a distilled DeiT: class, distillation, patches.
        patches_from = 2 if "dist_token" in tensors else 1
        tensors["cls_pos"], positions = positions[:, :1], positions[:, patches_from:]
        generator = torch.Generator().manual_seed(NOISE_SEED)
        for part in (1, 2, 3):
            for name, source in ((f"part_token{part}", token), (f"part{part}_pos", tensors["cls_pos"])):
                noise = torch.randn(source.shape, generator=generator, dtype=torch.float32)
                tensors.setdefault(name, source + NOISE_STD * noise.to(source.dtype))
    if positions is not None:
        tensors["pos_embed"] = _resized(positions, config.grid)
    if config.embed_dim == config.width:
        tensors.setdefault("dw.weight", torch.eye(config.width))
    return tensors


def to_grid(tensors: dict[str, Tensor], vit) -> dict[str, Tensor]:
    """The state dict of a ViT with a class token, its positions resized bilinearly to the grid of timm's model `vit`.

    The class token keeps its pretrained position (as TransReID, unlike UniCat); nothing is replaced.

    Raises:
        ValueError: if the grid of the positions cannot be told.
    """
    grid, positions = getattr(getattr(vit, "patch_embed", None), "grid_size", None), tensors.get("pos_embed")
    if grid is None or positions is None or positions.ndim != 3 or positions.shape[1] == 1 + grid[0] * grid[1]:
        return tensors
    return {**tensors, "pos_embed": torch.cat([positions[:, :1], _resized(positions[:, 1:], grid)], 1)}


def _resized(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Positions (1, n, E) on another grid, (1, rows * columns, E).

    ImageNet's grids are square, PASS's and TransReID's twice as high as wide; no number is both a square and twice one.
    """
    count = positions.shape[1]
    side, half = math.isqrt(count), math.isqrt(count // 2)
    old = (side, side) if side * side == count else (2 * half, half)
    if old[0] * old[1] != count:
        if count == grid[0] * grid[1]:  # overlapping patches, 21 x 10: right as they are
            return positions
        raise ReIDError(
            f"cannot tell the grid of {count} positions, which is neither n x n nor 2n x n, to resize it to "
            f"{grid[0]} x {grid[1]}: build the model with the stride and image size that the file was trained with"
        )
    if old == tuple(grid):
        return positions
    board = positions.float().unflatten(1, old).permute(0, 3, 1, 2)
    board = F.interpolate(board, size=tuple(grid), mode="bilinear", align_corners=False)
    return board.flatten(2).transpose(1, 2).to(positions.dtype)
