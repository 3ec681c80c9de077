"""Tiny real image files for layouts on disk: each has a colour of its own, so that pixels tell the row."""

import struct
from pathlib import Path

from PIL import Image

WIDTH, HEIGHT = 4, 8


def write_image(path: Path, number: int, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    """A lossless image in one colour; Pillow goes by the content, so any file name will do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour(number)).save(path, "PNG")


def colour(number: int) -> tuple[int, int, int]:
    return (number // 256, number % 256, 77)


def write_all(root: Path, names: list[str]) -> dict[str, int]:
    """Write one image per name below root; returns {name: its number}."""
    numbers = {name: number for number, name in enumerate(names)}
    for name, number in numbers.items():
        write_image(root / name, number)
    return numbers


def rows(split) -> list[tuple[str, int, int]]:
    """(path, pid, camid) of every row."""
    return list(zip(split["path"], split["pid"], split["camid"], strict=True))


def _entry(tag: int, kind: int, count: int, value: bytes) -> bytes:
    return struct.pack("<HHI4s", tag, kind, count, value)


def _exif(*entries: bytes) -> bytes:
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(4)


# EXIF blocks that Pillow cannot read, or cannot write anew as it stumbles over a width or a resolution that is a text;
# the images around them are sound. With the orientation that can be read in them.
DAMAGED_EXIF = {
    "width": (_exif(_entry(0x0112, 3, 1, b"\6\0\0\0"), _entry(0x0100, 2, 3, b"ab\0\0")), 6),
    "resolution": (_exif(_entry(0x0112, 3, 1, b"\6\0\0\0"), _entry(0x011A, 2, 3, b"72\0\0")), 6),
    "header": (b"Exif\0\0garbage and more of it", 1),
    "end": (b"Exif\0\0II*\0", 1),
}

MARKET_FILES = [
    "bounding_box_train/0002_c1s1_000451_03.jpg",
    "bounding_box_train/0002_c2s1_000451_01.jpg",
    "bounding_box_train/0007_c6s1_000451_01.jpg",
    "bounding_box_train/0011_c3s1_000451_01.jpg",
    "query/0003_c1s1_000001_00.jpg",
    "query/0005_c2s1_000001_00.jpg",
    "bounding_box_test/-1_c1s1_000401_03.jpg",
    "bounding_box_test/0000_c4s1_000401_03.jpg",
    "bounding_box_test/0003_c5s1_000401_03.jpg",
    "bounding_box_test/0005_c1s1_000401_03.jpg",
]


def write_market(root: Path) -> dict[str, int]:
    for folder in ("bounding_box_train", "bounding_box_test"):
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / "Thumbs.db").write_bytes(b"windows leaves this")
        (root / folder / "._0002_c1s1_000451_03.jpg").write_bytes(b"macos leaves this")
    return write_all(root, MARKET_FILES)
