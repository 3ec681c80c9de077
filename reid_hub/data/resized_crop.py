"""Random crops of whole batches: resized like torchvision's, with two matrix products per image, or padded."""

import torch
from torch import Tensor

from reid_hub.data.augmentation_options import Augmentation
from reid_hub.data.draws import Draws

TRIES = 10


def draw_crops(
    draws: Draws, sizes: Tensor, options: Augmentation, aspects: Tensor, numbers: tuple[slice, slice, int, int]
) -> Tensor:
    """Crop boxes, int64 (B, 4) as top, left, height, width in pixels of the original images.

    The first of ten candidates with random area and aspect ratio that fits into the image; if none fits, the largest
    centred box with an allowed aspect ratio.

    Args:
        sizes: int64 (B, 2), height and width of the original images.
        aspects: table of aspect ratios (width / height) to choose from.
        numbers: numbers of the draws: ten areas, ten aspect ratios, top, left.
    """
    areas, ratios, top, left = numbers
    shares = options.resized_area or (1.0, 1.0)
    height, width = sizes.unbind(dim=1)
    area = draws.between(areas, *shares).double() * (height * width)[:, None]
    aspect = aspects[draws.below(ratios, len(aspects))].double()
    widths, heights = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
    fits = (heights > 0) & (heights <= height[:, None]) & (widths > 0) & (widths <= width[:, None])
    first = fits.byte().argmax(dim=1, keepdim=True)
    low, high = options.resized_aspect
    # Where nothing fits: as wide, or as high, as the aspect ratio allows.
    whole = torch.stack(
        [torch.minimum(height, (width / low).round().long()), torch.minimum(width, (height * high).round().long())],
        dim=1,
    ).clamp_(min=1)
    found = torch.cat([heights.gather(1, first), widths.gather(1, first)], dim=1)
    fitting = fits.any(dim=1, keepdim=True)
    box = torch.where(fitting, found, whole)
    room = sizes - box
    drawn = torch.stack([draws.below(top, room[:, 0] + 1), draws.below(left, room[:, 1] + 1)], dim=1)
    return torch.cat([torch.where(fitting, drawn, room // 2), box], dim=1)


def crop_and_resize(x: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Crop a box from every image and resize it like Pillow (bilinear, anti-aliased), but without rounding.

    (B, C, H, W) of any type and float boxes (B, 4) as top, left, height, width in pixels -> float32 (B, C, *size).
    """
    rows = _weights(boxes[:, 0], boxes[:, 2], x.shape[2], size[0])
    columns = _weights(boxes[:, 1], boxes[:, 3], x.shape[3], size[1])
    return rows[:, None] @ x.float() @ columns[:, None].mT


def _weights(start: Tensor, length: Tensor, stored: int, wanted: int) -> Tensor:
    """Weights of the `stored` pixels in each of the `wanted` pixels, (B, wanted, stored): a triangle filter over the
    stored pixels that the box touches, as wide as a wanted pixel but at least as wide as a stored one.
    """
    start, length = start[:, None, None].float(), length[:, None, None].float()
    scale = length / wanted
    centre = start + (torch.arange(wanted, device=start.device)[:, None] + 0.5) * scale
    pixel = torch.arange(stored, device=start.device)
    weight = (1 - (pixel + 0.5 - centre).abs() / scale.clamp(min=1)).clamp_(min=0)
    weight = weight * ((pixel + 1 > start) & (pixel < start + length))
    return weight / weight.sum(dim=2, keepdim=True)


def pad_and_crop(x: Tensor, pad: int, size: tuple[int, int], start: Tensor) -> Tensor:
    """Crop `size` from every zero-padded image in one gather; `start` (B,) is row * width + column in the padded image.

    A gather costs the same per element whatever its width, so four bytes are gathered at a time: a window is one run of
    bytes of its image with an arbitrary start, and four copies, each shifted by one byte, align every start.
    """
    batch, channels, height, width = x.shape
    height, width = height + 2 * pad, width + 2 * pad
    plane = height * width
    stride = _multiple_of_four(channels * plane) + 4
    flat = x.new_zeros(batch * stride + 3)
    canvas = flat[:-3].view(batch, stride)[:, : channels * plane].unflatten(1, (channels, height, width))
    canvas[..., pad : height - pad, pad : width - pad] = x
    words = flat.unfold(0, batch * stride, 1).contiguous().view(torch.int32).view(4, batch, stride // 4)
    run = _multiple_of_four((channels - 1) * plane + (size[0] - 1) * width + size[1])
    images = torch.arange(batch, device=x.device)
    runs = words.unfold(2, run // 4, 1)[start & 3, images, start >> 2].view(torch.uint8)
    return runs.as_strided((batch, channels, *size), (run, plane, width, 1))


def _multiple_of_four(number: int) -> int:
    """The smallest multiple of four that is at least `number`."""
    return -(-number // 4) * 4
