"""Augmentation of whole training batches, on their device, with counter-based random numbers."""

from collections.abc import Sequence
from enum import IntEnum
from functools import lru_cache
from itertools import permutations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from reid_hub.data.augmentation_options import Augmentation
from reid_hub.data.batch import Batch
from reid_hub.data.draws import Draws
from reid_hub.data.resized_crop import TRIES as CROP_TRIES
from reid_hub.data.resized_crop import crop_and_resize, draw_crops, pad_and_crop
from reid_hub.errors import ReIDError

_TRIES = 100
_ASPECTS = 4096
_NOISE_OFFSETS = 1 << 22
_CACHED_PIXELS = 1 << 18


class BatchTransform:
    """Augment and normalise a whole batch: uint8 (B, C, H, W) in 0..255 -> float32 (B, C, H, W), same device.

    Args:
        augmentation: None only normalises (evaluation).
        mean, std: per channel, for values scaled to [0, 1].
        size: (height, width) of the output of a resized crop (default: that of the batch).
    """

    def __init__(
        self,
        augmentation: Augmentation | None,
        mean: Sequence[float],
        std: Sequence[float],
        size: Sequence[int] | None = None,
    ):
        means, stds = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
        if means.ndim != 1 or means.shape != stds.shape or not (stds > 0).all():
            raise ReIDError(f"mean and std must have one value per channel, std above 0, got {means} and {stds}")
        self.augmentation, self.size = augmentation, size
        # (x / 255 - mean) / std as one multiplication and one addition
        self._scale = (1 / (255 * stds)).float().view(-1, 1, 1)
        self._shift = (-means / stds).float().view(-1, 1, 1)
        if augmentation is not None:
            self._aspects = _aspects(augmentation.erasing_aspect, augmentation.erasing_aspect_scale)
            self._crop_aspects = _aspects(augmentation.resized_aspect, "log")
            fill = augmentation.erasing_fill
            self._fill = torch.zeros(len(mean)) if isinstance(fill, str) else torch.tensor(fill, dtype=torch.float32)
            if len(self._fill) != len(mean):
                raise ReIDError(f"erasing_fill must have {len(mean)} values like the mean, got {fill}")
            coloured = (augmentation.brightness, augmentation.contrast, augmentation.saturation, augmentation.lighting)
            if len(mean) != 3 and any(coloured):
                raise ReIDError(f"colour jitter and lighting need RGB images, got {len(mean)} channels")

    def __call__(
        self,
        pixel_values: Tensor,
        indices: Tensor | None = None,
        *,
        seed: int | None = None,
        step: int | None = None,
        sizes: Tensor | None = None,
        return_boxes: bool = False,
        unflip_boxes: bool = False,
        by_position: bool = True,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Transform a batch; the random numbers depend only on (seed, step, index, position in the batch).

        Args:
            pixel_values: uint8 (B, C, H, W).
            indices: (B,) rows of the data set; like `seed` and `step` required only with an augmentation.
            step: must differ between visits to the same image, e.g. the trainer's global step.
            sizes: int64 (B, 2), height and width of the original images before they were squeezed into the batch, so
                that resized crops keep their proportions (default: the size of the batch).
            return_boxes: also return the erased boxes, int64 (B, 4) as y0, x0, y1, x1 with ends exclusive, in
                coordinates of the returned image; rows of -1 where nothing was erased.
            unflip_boxes: return them in coordinates of the image before its flip instead.
            by_position: False makes the random numbers independent of the position in the batch.

        Raises:
            ValueError: if the pixels are not uint8 (B, C, H, W), or an augmentation is given no indices, seed or step.
        """
        channels = len(self._scale)
        if pixel_values.dtype != torch.uint8 or pixel_values.ndim != 4 or pixel_values.shape[1] != channels:
            got = f"{pixel_values.dtype} {tuple(pixel_values.shape)}"
            raise ReIDError(f"pixel_values must be uint8 (B, {channels}, H, W), got {got}")
        resized = self.augmentation is not None and self.augmentation.resized_area is not None
        size = tuple(self.size or pixel_values.shape[2:]) if resized else pixel_values.shape[2:]
        x = torch.empty((*pixel_values.shape[:2], *size), device=pixel_values.device)
        boxes = torch.full((len(x), 4), -1, device=x.device)
        scale, shift = (constant.to(x.device, non_blocking=True) for constant in (self._scale, self._shift))
        if self.augmentation is None:
            x.copy_(pixel_values).mul_(scale).add_(shift)
            return (x, boxes) if return_boxes else x
        draws = self._draws(pixel_values, indices, seed, step, by_position)
        plan = self._plan(draws, *x.shape[-2:])
        if resized:
            plan["crop"] = self._crops(draws, pixel_values, sizes)
        if self.augmentation.erasing > 0:
            boxes = self._boxes(draws, *x.shape[-2:])
            plan |= _erasing_masks(boxes, *x.shape[-2:])
        # On the CPU, parts that stay in the cache between operations are twice as fast as the whole batch.
        count = len(x) if x.device.type != "cpu" else max(1, _CACHED_PIXELS // x[0, 0].numel())
        for start in range(0, len(x), max(1, count)):
            part = slice(start, start + count)
            drawn = {name: values[part] for name, values in plan.items()}
            out = x[part].copy_(self._move_and_colour(pixel_values[part], drawn, size)).mul_(scale).add_(shift)
            self._erase(out, drawn)
        if unflip_boxes and "mirror" in plan:
            turned = (boxes[:, [0, 3, 2, 1]] - boxes.new_tensor([0, x.shape[-1], 0, x.shape[-1]])).abs()
            boxes = torch.where((plan["mirror"].view(-1, 1) > 0) & (boxes >= 0), turned, boxes)
        return (x, boxes) if return_boxes else x

    def augment(self, batch: Batch, *, seed: int, step: int, by_position: bool = True) -> Batch:
        """Transform a collated batch and add `erased_boxes`; for the arguments see `__call__`."""
        drawn = {"seed": seed, "step": step, "by_position": by_position, "sizes": batch.get("sizes")}
        boxes = {"return_boxes": True, "unflip_boxes": True}
        pixel_values, erased = self(batch["pixel_values"], batch.get("indices"), **drawn, **boxes)
        return {**batch, "pixel_values": pixel_values, "erased_boxes": erased}

    def _draws(
        self, pixel_values: Tensor, indices: Tensor | None, seed: int | None, step: int | None, by_position: bool
    ) -> Draws:
        if indices is None or seed is None or step is None:
            raise ReIDError(
                "augmentation needs indices, seed and step, which determine the random numbers of each image"
            )
        if indices.shape != pixel_values.shape[:1]:
            raise ReIDError(f"indices must be ({len(pixel_values)},), one per image, got {tuple(indices.shape)}")
        indices = indices.to(pixel_values.device, non_blocking=True)
        return Draws(indices, seed, step, _LIGHTS.stop, by_position)

    def _plan(self, draws: Draws, height: int, width: int) -> dict[str, Tensor]:
        """Random parameters of the enabled operations for each image: tensors (B, ...)."""
        options, plan = self.augmentation, {}
        if options.flip:
            plan["mirror"] = (draws.uniform(_Draw.FLIP) < options.flip).byte().mul_(255).view(-1, 1, 1, 1)
        if options.pad or options.crop_scale > 1:
            padded_height, padded_width = (side + 2 * options.pad for side in self._enlarged(height, width))
            top = draws.below(_Draw.TOP, padded_height - height + 1)
            left = draws.below(_Draw.LEFT, padded_width - width + 1)
            plan["window"] = top * padded_width + left
        if options.rotation:
            angle = torch.deg2rad(draws.between(_Draw.ANGLE, -options.rotation, options.rotation))
            cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
            # Coordinates run over [-1, 1] on both axes, although their lengths in pixels differ.
            rows = [cos, -sin * height / width, zero, sin * width / height, cos, zero]
            plan["turn"] = torch.stack(rows, dim=1).view(-1, 2, 3)
        strengths = (options.brightness, options.contrast, options.saturation)
        if any(strengths):
            numbers = (_Draw.BRIGHTNESS, _Draw.CONTRAST, _Draw.SATURATION)
            drawn = [draws.between(n, max(0.0, 1 - s), 1 + s) for n, s in zip(numbers, strengths, strict=True)]
            plan["factors"] = torch.stack(drawn, dim=1)
            orders = torch.tensor(list(permutations(range(3))), device=drawn[0].device)
            plan["order"] = orders[draws.below(_Draw.ORDER, len(orders))]
        if options.lighting:
            # Shift the uniform numbers to the middle of their steps, so that none maps to infinity.
            normal = torch.special.ndtri(draws.uniform(_LIGHTS).double() + 2.0**-25)
            colours = _COLOURS.to(normal.device, non_blocking=True)
            plan["light"] = (255 * options.lighting * normal @ colours.T).float().view(-1, 3, 1, 1)
        if options.erasing_fill == "noise":
            plan["noise"] = draws.below(_Draw.NOISE, _NOISE_OFFSETS)
        return plan

    def _crops(self, draws: Draws, pixel_values: Tensor, sizes: Tensor | None) -> Tensor:
        """Crop boxes, float (B, 4) as top, left, height, width in pixels of the batch."""
        stored = torch.tensor(pixel_values.shape[2:], device=pixel_values.device)
        sizes = stored.expand(len(pixel_values), 2) if sizes is None else sizes.to(stored.device, non_blocking=True)
        aspects = self._crop_aspects.to(stored.device, non_blocking=True)
        numbers = (_CROP_AREAS, _CROP_ASPECTS, _Draw.CROP_TOP, _Draw.CROP_LEFT)
        boxes = draw_crops(draws, sizes, self.augmentation, aspects, numbers)
        return boxes * (stored / sizes).repeat(1, 2)

    def _enlarged(self, height: int, width: int) -> tuple[int, int]:
        return round(height * self.augmentation.crop_scale), round(width * self.augmentation.crop_scale)

    def _boxes(self, draws: Draws, height: int, width: int) -> Tensor:
        """Boxes to erase, (B, 4): the first of 100 candidates that is smaller than the image on both sides."""
        options = self.augmentation
        area = draws.between(_AREAS, *options.erasing_area) * (height * width)
        aspect = self._aspects.to(area.device, non_blocking=True)[draws.below(_ASPECT_ROWS, _ASPECTS)]
        heights, widths = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
        fits = (heights > 0) & (heights < height) & (widths > 0) & (widths < width)
        first = fits.byte().argmax(dim=1, keepdim=True)
        box_height, box_width = heights.gather(1, first).squeeze(1), widths.gather(1, first).squeeze(1)
        top = draws.below(_Draw.ERASE_TOP, height - box_height + 1)
        left = draws.below(_Draw.ERASE_LEFT, width - box_width + 1)
        boxes = torch.stack([top, left, top + box_height, left + box_width], dim=1)
        erased = (draws.uniform(_Draw.ERASE) < options.erasing) & fits.any(dim=1)
        return torch.where(erased[:, None], boxes, -1)

    def _move_and_colour(self, x: Tensor, drawn: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
        """uint8 (B, C, H, W) -> (B, C, *size), uint8, or float after a rotation, resized crop or colour change."""
        if "mirror" in drawn:
            # a ^ ((a ^ b) & mask) picks a or b; on the CPU bit operations are vectorised where `where` is not.
            x = x.flip(-1).bitwise_xor_(x).bitwise_and_(drawn["mirror"]).bitwise_xor_(x)
        if "crop" in drawn:
            x = crop_and_resize(x, drawn["crop"], size)
        if self.augmentation.crop_scale > 1:
            x = F.interpolate(x.float(), self._enlarged(*size), mode="bilinear").round_().byte()
        if "window" in drawn:
            x = pad_and_crop(x, self.augmentation.pad, size, drawn["window"])
        if "turn" in drawn:
            x = x.float()
            grid = F.affine_grid(drawn["turn"], list(x.shape), align_corners=False)
            x = F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        if "factors" in drawn:
            x = _jitter(x.float(), drawn["factors"], drawn["order"])
        if "light" in drawn:
            x = x + drawn["light"]
        return x

    def _erase(self, x: Tensor, drawn: dict[str, Tensor]) -> None:
        if "rows" not in drawn:
            return
        if "noise" in drawn:
            # A stretch of a fixed bank of normal numbers, at a random offset per image: hashing every pixel would cost
            # more than everything else together. Two images may share a stretch, but not at the same pixels.
            stretches = _noise(x[0].numel() + _NOISE_OFFSETS, x.device).unfold(0, x[0].numel(), 1)
            fill = stretches[drawn["noise"]].view_as(x)
        else:
            fill = self._fill.to(x.device, non_blocking=True).view(-1, 1, 1)
        # The weight is exactly 0 or 1: on the CPU lerp is vectorised where `where` is not, four times as fast.
        x.lerp_(fill, drawn["rows"] * drawn["columns"])


def _erasing_masks(boxes: Tensor, height: int, width: int) -> dict[str, Tensor]:
    """Indicators of rows (B, 1, H, 1) and columns (B, 1, 1, W) whose product is the box."""
    rows, columns = (torch.arange(side, device=boxes.device) for side in (height, width))
    y0, x0, y1, x1 = (side[:, None] for side in boxes.unbind(dim=1))
    inside_rows, inside_columns = (rows >= y0) & (rows < y1), (columns >= x0) & (columns < x1)
    return {"rows": inside_rows.float()[:, None, :, None], "columns": inside_columns.float()[:, None, None, :]}


def _jitter(x: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Brightness (0), contrast (1) and saturation (2): blend with black, the mean grey and the grey image, in place.

    Takes float (B, 3, H, W) in [0, 255], the factors (B, 3) of the operations and their order (B, 3).
    """
    weights = torch.tensor([0.2989, 0.587, 0.114], device=x.device).expand(len(x), 1, 3)
    flat = x.flatten(2)
    for operation in order.T:
        factor = factors.gather(1, operation[:, None]).view(-1, 1, 1)
        is_contrast, is_saturation = (operation == 1).view(-1, 1, 1), (operation == 2).view(-1, 1, 1)
        grey = weights @ flat
        other = is_contrast * grey.mean(dim=2, keepdim=True) + is_saturation * grey
        flat.mul_(factor).add_((1 - factor) * other).clamp_(0, 255)
    return flat.view_as(x)


class _Draw(IntEnum):
    """The number of each random draw. Only append: reordering changes the results of every seed."""

    FLIP = 0
    TOP = 1
    LEFT = 2
    ANGLE = 3
    BRIGHTNESS = 4
    CONTRAST = 5
    SATURATION = 6
    ORDER = 7
    ERASE = 8
    ERASE_TOP = 9
    ERASE_LEFT = 10
    NOISE = 11
    CROP_TOP = 12
    CROP_LEFT = 13


_AREAS = slice(16, 16 + _TRIES)
_ASPECT_ROWS = slice(_AREAS.stop, _AREAS.stop + _TRIES)
_CROP_AREAS = slice(_ASPECT_ROWS.stop, _ASPECT_ROWS.stop + CROP_TRIES)
_CROP_ASPECTS = slice(_CROP_AREAS.stop, _CROP_AREAS.stop + CROP_TRIES)
_LIGHTS = slice(_CROP_ASPECTS.stop, _CROP_ASPECTS.stop + 3)

# Principal colour components of ImageNet's pixels in [0, 1], in columns, times their eigenvalues, from fb.resnet.torch.
_COLOURS = torch.tensor(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]], dtype=torch.float64
) * torch.tensor([0.2175, 0.0188, 0.0045], dtype=torch.float64)


def _aspects(limits: tuple[float, float], scale: str) -> Tensor:
    """Aspect ratios to choose from, (4096,): a table, because exp() differs in the last bit between devices."""
    low, high = limits
    steps = (np.arange(_ASPECTS) + 0.5) / _ASPECTS
    linear = low + steps * (high - low)
    logarithmic = low * (high / low) ** steps
    return torch.from_numpy(linear if scale == "linear" else logarithmic).float()


@lru_cache(maxsize=4)
def _noise(length: int, device: torch.device) -> Tensor:
    """The bank of N(0, 1) numbers, (length,) float32, the same on every device."""
    bank = np.random.Generator(np.random.Philox(0)).standard_normal(length, dtype=np.float32)
    return torch.from_numpy(bank).to(device)
