"""Training images as a recipe's augmentation wants them kept."""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image
from PIL.Image import Transpose

from reid_hub.data.augmentation_options import Augmentation
from reid_hub.data.decoding import open_source, turn_upright
from reid_hub.data.images import ImageDataset
from reid_hub.errors import ReIDError

_SIDES_EXCHANGED = (Transpose.TRANSPOSE, Transpose.ROTATE_270, Transpose.TRANSVERSE, Transpose.ROTATE_90)


def training_images(
    split,
    image_size: tuple[int, int],
    augmentation: Augmentation,
    *,
    interpolation: str = "bilinear",
    resize_shortest: int | None = None,
    on_error: str = "raise",
) -> ImageDataset:
    """A split as the batches that `BatchTransform` makes images of `image_size` of.

    Random resized crops are cut out of what is kept: images squeezed into 8/7 of the image size (256 for 224), or
    into the largest image's size where that is smaller, as CIFAR's. The boxes are drawn in the originals (`sizes`),
    so crops are those of the published code, exact for small images and a little smoother for large ones.
    `on_error` is that of an `ImageDataset`.
    """
    options: dict[str, Any] = {"interpolation": interpolation, "on_error": on_error}
    if augmentation.resized_area is None:
        return ImageDataset(split, image_size, resize_shortest=resize_shortest, **options)
    sizes = image_sizes(split, skip=on_error == "skip")
    height, width = (
        min(round(side * 8 / 7), int(largest)) for side, largest in zip(image_size, sizes.max(0), strict=True)
    )
    images = ImageDataset(split, (height, width), **options)
    images.sizes = sizes[images.source_rows]
    return images


def image_sizes(split, skip: bool = False) -> np.ndarray:
    """Height and width of every image as it is shown upright, int64 (N, 2); nothing is decoded.

    Args:
        skip: let an image that cannot be opened have one pixel.

    Raises:
        FileNotFoundError, ValueError: if an image cannot be opened.
    """
    from datasets import Image as ImageFeature

    encoded = split.select_columns(["image"]).with_format(None).cast_column("image", ImageFeature(decode=False))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        sizes = pool.map(_size_or_none if skip else _size, (row["image"] for row in encoded))
        return np.array(list(sizes), dtype=np.int64).reshape(-1, 2)


def _size_or_none(source: dict | None) -> tuple[int, int]:
    try:
        return _size(source)
    except (ValueError, OSError, SyntaxError, Image.DecompressionBombError):
        return 1, 1


def _size(source: dict | None) -> tuple[int, int]:
    file, name = open_source(source)
    try:
        with Image.open(file) as image:
            width, height = image.size
            # Pillow says the size of a TIFF as it is shown, of others as it is stored.
            turned = image.format != "TIFF" and turn_upright(image) in _SIDES_EXCHANGED
    except Image.UnidentifiedImageError as error:
        raise ReIDError(f"{name} is no image that can be read; remove it or copy it again") from error
    return (width, height) if turned else (height, width)
