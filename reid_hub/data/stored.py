"""Training images, stored at the size that a recipe's augmentation needs."""

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
    """Open a split as batches from which `BatchTransform` makes images of `image_size`.

    For random resized crops, images are stored squeezed to 8/7 of the image size (256 for 224), or to the size of the
    largest image where that is smaller (CIFAR). Crop boxes are drawn in the original image (`sizes`), as in the
    published code: the crops are exact for small images and slightly smoother for large ones. `on_error` is passed to
    `ImageDataset`.
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
    """Height and width of every image, upright, int64 (N, 2), read from the headers without decoding.

    Args:
        skip: report (1, 1) for an image that cannot be opened, instead of raising.

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
            # Pillow reports the upright size for TIFF, and the stored size for other formats.
            turned = image.format != "TIFF" and turn_upright(image) in _SIDES_EXCHANGED
    except Image.UnidentifiedImageError as error:
        raise ReIDError(f"{name} cannot be read as an image; remove it or copy it again") from error
    return (width, height) if turned else (height, width)
