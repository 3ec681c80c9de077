"""Surroundings of a camera: wide painted panoramas; every image shows a different part."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from reid_hub.data.synthetic.person import RGB

# Height and width of a panorama, in image heights.
EXTENT = (1.25, 6.0)


@lru_cache(maxsize=32)
def panorama(place: str, height: int, seed: int) -> Image.Image:
    """Paint the surroundings `place`, a name of `PLACES`, for images of `height` pixels; a pure function."""
    rng = np.random.default_rng(seed)
    tall, wide = (round(side * height) for side in EXTENT)
    image = Image.new("RGB", (wide, tall))
    PLACES[place](_Brush(image, rng))
    image = image.filter(ImageFilter.GaussianBlur(height / 128))
    fine, coarse = (
        np.asarray(
            Image.fromarray(rng.normal(0, 1, (tall // cell, wide // cell)).astype(np.float32)).resize((wide, tall))
        )
        for cell in (2, 5)
    )
    pixels = np.asarray(image, np.float32) * (1 + 0.05 * (fine + coarse)[..., None])
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


class _Brush:
    """Random rectangles and lines in fractions of the panorama's height: places look alike at every image size."""

    def __init__(self, image: Image.Image, rng: np.random.Generator):
        self.draw, self.rng = ImageDraw.Draw(image), rng
        self.unit = image.height
        self.width = image.width / image.height

    def tone(self, colour: RGB, spread: float = 0.12) -> RGB:
        factor = self.rng.uniform(1 - spread, 1 + spread) * self.rng.uniform(1 - spread / 3, 1 + spread / 3, 3)
        red, green, blue = (int(min(255, channel * f)) for channel, f in zip(colour, factor, strict=True))
        return red, green, blue

    def box(self, left: float, top: float, right: float, low: float, colour: RGB) -> None:
        self.draw.rectangle([value * self.unit for value in (left, top, right, low)], colour)

    def band(self, top: float, low: float, colour: RGB) -> None:
        self.box(0, top, self.width, low, colour)

    def blob(self, x: float, y: float, across: float, up: float, colour: RGB) -> None:
        self.draw.ellipse([value * self.unit for value in (x - across, y - up, x + across, y + up)], colour)

    def line(self, x0: float, y0: float, x1: float, y1: float, thick: float, colour: RGB) -> None:
        ends = [value * self.unit for value in (x0, y0, x1, y1)]
        self.draw.line(ends, colour, max(1, round(thick * self.unit)))

    def along(self, low: float, high: float) -> list[float]:
        """Places along the panorama, `low` to `high` apart."""
        steps = self.rng.uniform(low, high, int(self.width / low) + 1).cumsum()
        return [float(x) for x in steps if x < self.width]


def _wall(brush: _Brush) -> None:
    brick, joint = brush.tone((150, 92, 74)), brush.tone((176, 160, 146))
    brush.band(0, 0.68, joint)
    for row in range(14):
        for column in range(-1, int(brush.width / 0.12) + 1):
            x, y = column * 0.12 + 0.06 * (row % 2), row * 0.05
            brush.box(x, y, x + 0.108, y + 0.04, brush.tone(brick, 0.1))
    brush.band(0.68, 1, brush.tone((142, 140, 136)))
    for x in brush.along(0.9, 1.6):
        brush.box(x, 0.12, x + 0.34, 0.68, brush.tone((66, 84, 92), 0.3))
        brush.box(x + 0.03, 0.16, x + 0.31, 0.4, brush.tone((150, 170, 178), 0.2))
    for x in brush.along(0.2, 0.2):
        brush.line(x, 0.69, x + 0.25 * (x / brush.width - 0.5), 1, 0.005, (104, 102, 100))


def _park(brush: _Brush) -> None:
    brush.band(0, 0.4, brush.tone((178, 198, 214)))
    for x in brush.along(0.06, 0.14):
        size = brush.rng.uniform(0.1, 0.22)
        brush.blob(x, 0.42 - size / 2, size * 0.8, size, brush.tone((70, 104, 58), 0.25))
    brush.band(0.5, 1, brush.tone((104, 134, 66)))
    for x in brush.along(0.5, 1.1):
        brush.box(x, 0.1, x + 0.07, 0.66, brush.tone((88, 68, 50)))
        brush.blob(x + 0.03, 0.08, 0.28, 0.16, brush.tone((58, 92, 50), 0.2))
    brush.band(0.8, 1, brush.tone((172, 150, 116)))


def _road(brush: _Brush) -> None:
    brush.band(0, 0.45, brush.tone((160, 160, 162)))
    for x in brush.along(0.5, 0.9):
        brush.box(x, 0, x + 0.46, 0.45, brush.tone((140, 128, 116), 0.35))
        for window in (0.06, 0.26):
            brush.box(x + window, 0.08, x + window + 0.12, 0.28, brush.tone((84, 98, 112), 0.3))
    brush.band(0.45, 0.5, brush.tone((180, 176, 168)))
    brush.band(0.5, 1, brush.tone((84, 86, 90)))
    for x in brush.along(0.9, 1.9):
        body = brush.tone(((150, 40, 40), (60, 80, 130), (210, 210, 208), (50, 52, 56))[brush.rng.integers(4)])
        brush.box(x, 0.38, x + 0.8, 0.55, body)
        brush.box(x + 0.18, 0.28, x + 0.6, 0.4, brush.tone((70, 82, 92)))
        for wheel in (0.16, 0.64):
            brush.blob(x + wheel, 0.55, 0.06, 0.06, (30, 30, 32))
    for x in brush.along(0.5, 0.5):
        brush.box(x, 0.72, x + 0.24, 0.745, (214, 214, 204))


def _hall(brush: _Brush) -> None:
    brush.band(0, 0.66, brush.tone((206, 198, 178)))
    brush.band(0.62, 0.66, brush.tone((120, 100, 80)))
    brush.band(0.66, 1, brush.tone((168, 160, 150)))
    for x in brush.along(0.7, 1.4):
        brush.box(x, 0.06, x + 0.36, 0.66, brush.tone((132, 98, 66), 0.2))
        brush.blob(x + 0.32, 0.4, 0.015, 0.015, (220, 200, 120))
    for x in brush.along(0.6, 1.5):
        brush.box(x, 0.14, x + 0.2, 0.42, brush.tone((170, 120, 110), 0.5))
        brush.box(x + 0.02, 0.18, x + 0.18, 0.28, brush.tone((220, 216, 200), 0.1))
    for y in (0.7, 0.77, 0.88):
        brush.band(y, y + 0.006, (138, 130, 122))
    for x in brush.along(0.18, 0.18):
        brush.line(x, 0.66, x + 0.1, 1, 0.005, (138, 130, 122))


def _shop(brush: _Brush) -> None:
    brush.band(0, 0.7, brush.tone((74, 70, 78)))
    for x in brush.along(0.55, 0.6):
        brush.box(x, 0.14, x + 0.44, 0.6, brush.tone((190, 186, 160), 0.25))
        for shelf in (0.28, 0.42, 0.56):
            brush.box(x, shelf, x + 0.44, shelf + 0.012, (96, 84, 70))
            for item in range(6):
                tall = brush.rng.uniform(0.04, 0.1)
                left = x + 0.03 + item * 0.07
                brush.box(left, shelf - tall, left + 0.05, shelf, brush.tone((150, 110, 100), 0.6))
        brush.box(x, 0.02, x + 0.44, 0.1, brush.tone((170, 80, 70), 0.6))
    brush.band(0.7, 1, brush.tone((122, 116, 124)))
    for x in brush.along(0.24, 0.24):
        brush.box(x, 0.7, x + 0.12, 1, brush.tone((134, 128, 134), 0.06))


def _plaza(brush: _Brush) -> None:
    brush.band(0, 0.5, brush.tone((196, 206, 216)))
    for x in brush.along(0.5, 0.8):
        top = brush.rng.uniform(0, 0.2)
        brush.box(x, top, x + 0.5, 0.52, brush.tone((150, 156, 166), 0.2))
        for column in range(5):
            for row in range(4):
                left, up = x + 0.04 + column * 0.09, top + 0.04 + row * 0.09
                brush.box(left, up, left + 0.05, up + 0.05, brush.tone((90, 104, 122), 0.2))
    brush.band(0.52, 1, brush.tone((190, 184, 174)))
    for y in (0.56, 0.62, 0.7, 0.81, 0.95):
        brush.band(y, y + 0.007, (156, 150, 142))
    for x in brush.along(0.3, 0.3):
        brush.line(x, 0.52, x - 0.12, 1, 0.006, (156, 150, 142))
    for x in brush.along(0.9, 1.8):
        brush.box(x, 0.5, x + 0.4, 0.54, brush.tone((110, 82, 58)))
        brush.box(x + 0.04, 0.54, x + 0.07, 0.6, (70, 70, 70))
        brush.box(x + 0.33, 0.54, x + 0.36, 0.6, (70, 70, 70))


PLACES: dict[str, Callable[[_Brush], None]] = {
    "wall": _wall,
    "park": _park,
    "hall": _hall,
    "road": _road,
    "shop": _shop,
    "plaza": _plaza,
}
