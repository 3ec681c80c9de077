"""Shapes of a figure: filled outlines in units of the stature, and bodies of elliptic sections under a heading."""

from functools import lru_cache
from itertools import pairwise
from math import atan2, cos, hypot, pi, radians, sin

from PIL import ImageDraw

from reid_hub.data.synthetic.person import RGB

Point = tuple[float, float, float]


@lru_cache(maxsize=4096)
def shade(colour: RGB, factor: float) -> RGB:
    red, green, blue = (min(255, round(channel * factor)) for channel in colour)
    return red, green, blue


def between(start: Point, end: Point, share: float) -> Point:
    x, y, z = (a + (b - a) * share for a, b in zip(start, end, strict=True))
    return x, y, z


class Pencil:
    """Filled shapes with a darker rim, at (u, y) in units of the stature."""

    def __init__(self, draw: ImageDraw.ImageDraw, centre: float, ground: float, unit: float):
        self.draw, self.centre, self.ground, self.unit = draw, centre, ground, unit

    def at(self, u: float, y: float) -> tuple[float, float]:
        return self.centre + u * self.unit, self.ground - y * self.unit

    def polygon(self, points: list[tuple[float, float]], colour: RGB, rim: bool = False) -> None:
        if len(points) > 2:
            self.draw.polygon([self.at(*point) for point in points], colour, shade(colour, 0.6) if rim else None)

    def ball(self, u: float, y: float, radius: float, colour: RGB) -> None:
        x, y = self.at(u, y)
        radius *= self.unit
        self.draw.ellipse((x - radius, y - radius, x + radius, y + radius), colour)

    def bar(
        self, start: tuple[float, float], end: tuple[float, float], radii: tuple[float, float], colour: RGB
    ) -> None:
        """A tapered bar with round ends."""
        along, up = end[0] - start[0], end[1] - start[1]
        length = hypot(along, up) or 1.0
        self.ball(*start, radii[0], colour)
        self.ball(*end, radii[1], colour)
        (u0, y0), (u1, y1) = ((-up / length * radius, along / length * radius) for radius in radii)
        sides = (start[0] + u0, start[1] + y0), (end[0] + u1, end[1] + y1)
        self.polygon([*sides, (end[0] - u1, end[1] - y1), (start[0] - u0, start[1] - y0)], colour)

    def rings(self, start: tuple[float, float], end: tuple[float, float], radius: float, colour: RGB) -> None:
        """Three bands across a bar."""
        along, up = end[0] - start[0], end[1] - start[1]
        length = hypot(along, up) or 1.0
        u, y = -up / length * radius, along / length * radius
        for share in (0.15, 0.5, 0.85):
            (u0, y0), (u1, y1) = ((start[0] + along * s, start[1] + up * s) for s in (share - 0.08, share + 0.08))
            self.polygon([(u0 + u, y0 + y), (u1 + u, y1 + y), (u1 - u, y1 - y), (u0 - u, y0 - y)], colour)

    def box(self, u: float, y: float, reach: float, half_height: float, colour: RGB) -> None:
        """An upright box about (u, y) with cut upper corners and a darker seam below the lid."""
        left, right, top, low, cut = u - reach, u + reach, y + half_height, y - half_height, 0.015
        lid = [(left, top - cut), (left + cut, top), (right - cut, top), (right, top - cut)]
        self.polygon([(left, low), *lid, (right, low)], colour, rim=True)
        seam = y + 0.35 * half_height
        edges = [(left, seam), (right, seam), (right, seam - 0.008), (left, seam - 0.008)]
        self.polygon(edges, shade(colour, 0.6))


class Surface:
    """A body of elliptic sections about the vertical axis, as torso, skirt and head are.

    `profile` lists (y, half breadth) from top to bottom; `depth` is front-to-back over breadth.
    """

    def __init__(self, profile: list[tuple[float, float]], depth: float, heading: float):
        self.profile = profile
        self.apparent = hypot(cos(heading), depth * sin(heading))
        self.turn = atan2(depth * sin(heading), cos(heading))

    def breadth(self, y: float) -> float:
        for (top, wide), (low, narrow) in pairwise(self.profile):
            if y >= low:
                return wide + (narrow - wide) * min(1.0, (top - y) / (top - low))
        return self.profile[-1][1]

    def patch(self, top: float, low: float, azimuth: float = 0, half_angle: float = 180) -> list[tuple[float, float]]:
        """The visible outline of the patch between two heights; empty if it faces away.

        It reaches `half_angle` to both sides of `azimuth`, in degrees from the front towards the person's left. A patch
        of less than the full circle must be visible in one piece: keep `half_angle` at 90 or below.
        """
        middle = (radians(azimuth) + self.turn + pi) % (2 * pi) - pi if half_angle < 180 else 0.0
        left, right = max(middle - radians(half_angle), -pi / 2), min(middle + radians(half_angle), pi / 2)
        if left >= right:
            return []
        heights = [top, *(y for y, _ in self.profile if low < y < top), low]
        reach = [self.breadth(y) * self.apparent for y in heights]
        edge = [(wide * sin(left), y) for wide, y in zip(reach, heights, strict=True)]
        return edge + [(wide * sin(right), y) for wide, y in zip(reach, heights, strict=True)][::-1]
