"""Decode any image to 8-bit RGB, or raise an error that names the file and says what to do."""

import os
import struct
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.Image import Transpose

from reid_hub.errors import MissingError, ReIDError

# JPEGs with more pixels are decoded at 1/2, 1/4 or 1/8 of their size: no person crop needs more pixels.
LARGE_PIXELS = 16_000_000

ImageSource = str | os.PathLike | bytes | Mapping | None

# The transpose that makes an image upright, by the value of its EXIF tag 0x0112; 1 is upright already.
_TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


def decode_image(source: ImageSource, name: str | None = None) -> Image.Image:
    """Decode an image to upright 8-bit RGB.

    Readable EXIF rotation is applied. CMYK, grey, palette and 1-bit images are converted; 16-bit grey is scaled by
    255/65535, not clipped. Transparent pixels become black, like padding. JPEGs of more than 16 million pixels are
    decoded at a reduced size.

    Args:
        source: a path, encoded bytes, or the `{"path", "bytes"}` value of an undecoded `datasets.Image` column, which
            is None in a row without an image.
        name: name of the image in error messages, where `source` has no path.

    Raises:
        FileNotFoundError: if the path does not exist.
        ValueError: if the image is null, empty, truncated, too large, or not an image.
    """
    data, name = open_source(source, name)
    try:
        with Image.open(data) as image:
            _limit(image, name)
            image.load()
            turn = turn_upright(image)
            return to_rgb(image if turn is None else image.transpose(turn), name)
    except Image.DecompressionBombError as error:
        raise ReIDError(f"image {name} is too large to decode safely: {error}; {_REDUCE}") from error
    except Image.UnidentifiedImageError as error:
        raise ReIDError(f"{name} is not an image that can be read (JPEG, PNG, BMP, WebP, ...); {_REPAIR}") from error
    except _DAMAGED as error:
        raise ReIDError(f"image {name} is damaged or cut off: {error}; {_REPAIR}") from error


# Raised by Pillow's decoders for damaged files.
_DAMAGED = (OSError, SyntaxError, EOFError, TypeError, AttributeError, struct.error)
_REPAIR = "copy it again from its source, or remove it from the data set"
_REDUCE = "reduce it first, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust the file"


def turn_upright(image: Image.Image) -> Transpose | None:
    """The transpose that applies the EXIF orientation, or None if there is none or it cannot be read.

    Unlike `PIL.ImageOps.exif_transpose` this does not rewrite the EXIF block, which fails if the block is damaged.
    """
    try:
        return _TURNS.get(image.getexif().get(0x0112, 1))
    except Exception:  # the parser raises many types; the pixels are still usable
        return None


def to_rgb(image: Image.Image, name: str = "image") -> Image.Image:
    """Convert any Pillow image to 8-bit RGB by the rules of `decode_image`, without rotation.

    Raises:
        ValueError: if the value range is unknown (floating point, or integers beyond 16 bits).
    """
    if image.mode == "RGB":
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        return Image.fromarray(_eight_bits(np.asarray(image), name)).convert("RGB")
    if image.mode == "F":
        raise ReIDError(f"image {name} holds floating point values of unknown range; save it as 8-bit RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, image).convert("RGB")
    return image.convert("RGB")


def check_images(dataset, progress: bool = True) -> dict[str, str]:
    """Decode every image of a split and return {path: problem}; empty if all images can be decoded.

    The input pipeline stops at the first damaged image; this reports all of them in one pass.
    """
    from datasets import Image as ImageFeature
    from tqdm import tqdm

    raw = dataset.cast_column("image", ImageFeature(decode=False))
    problems = {}
    for number, row in enumerate(tqdm(raw, desc="check images", disable=not progress)):
        name = row.get("path") or (row["image"] or {}).get("path") or f"row {number}"
        try:
            decode_image(row["image"], name)
        except (ValueError, FileNotFoundError) as error:
            problems[name] = str(error)
    return problems


def open_source(source: ImageSource, name: str | None = None) -> tuple[BytesIO | Path, str]:
    """The file of an encoded image and its name for error messages; see `decode_image`."""
    if isinstance(source, Mapping):
        if source.get("bytes") is not None:
            return open_source(source["bytes"], name or source.get("path"))
        source = source.get("path")
    if source is None:
        raise ReIDError(f"image {name or 'of a row'} is null: there is no image; remove its row from the data set")
    if isinstance(source, bytes):
        name = name or "given as bytes"
        if not source:
            raise ReIDError(f"image {name} is empty (0 bytes); {_REPAIR}")
        return BytesIO(source), name
    path = Path(source)
    if not path.is_file():
        raise MissingError(f"image {path} does not exist; if it was moved, load the data set again")
    if path.stat().st_size == 0:
        raise ReIDError(f"image {path} is empty (0 bytes); {_REPAIR}")
    return path, str(path)


def _limit(image: Image.Image, name: str) -> None:
    """Refuse images that Pillow only warns about, and have a large JPEG decoded at a reduced size."""
    pixels = image.width * image.height
    if Image.MAX_IMAGE_PIXELS and pixels > Image.MAX_IMAGE_PIXELS:
        raise ReIDError(
            f"image {name} has {pixels:,} pixels, more than the safe limit of {Image.MAX_IMAGE_PIXELS:,}; {_REDUCE}"
        )
    scale = 1
    while scale < 8 and pixels / scale**2 > LARGE_PIXELS:
        scale *= 2
    if scale > 1:  # a no-op for formats other than JPEG
        image.draft(None, (image.width // scale, image.height // scale))


def _eight_bits(values: np.ndarray, name: str) -> np.ndarray:
    if values.size and (values.min() < 0 or values.max() > 65535):
        raise ReIDError(f"image {name} holds integers outside 0..65535; save it as 8-bit RGB")
    return np.round(values.astype(np.float32) * (255 / 65535)).astype(np.uint8)
