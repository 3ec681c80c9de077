"""Draw a person from parts that are placed in body coordinates and projected by the heading of the pose.

Body coordinates, in units of the stature: x to the person's left, y up from the ground, z forward. Under a heading h
a point is seen at u = x cos h + z sin h to the image's right and is nearer by d = z cos h - x sin h; parts are drawn
from far to near.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from math import cos, pi, radians, sin

from PIL import Image, ImageDraw

from reid_hub.data.synthetic.person import GARMENT_COLOURS, HAIR_COLOURS, RGB, SKIN_COLOURS, Person, Pose
from reid_hub.data.synthetic.shapes import Pencil, Point, Surface, between, shade
from reid_hub.errors import ReIDError

_SUPERSAMPLING = 2


def draw_person(
    person: Person,
    pose: Pose | None = None,
    image_size: tuple[int, int] = (128, 64),
    *,
    centre: float = 0.5,
    feet: float = 0.95,
    stature: float = 0.88,
) -> Image.Image:
    """Draw a person on a transparent background, an RGBA image of `image_size` (height, width).

    The feet stand at (`centre` x width, `feet` x height) and a person of height 1 is `stature` x height tall;
    parts outside the image are cut off, as by a misplaced detector box.

    Raises:
        ValueError: if a side of `image_size` is not positive or `stature` is not positive.
    """
    height, width = image_size
    if height <= 0 or width <= 0 or stature <= 0:
        raise ReIDError(f"image_size and stature must be positive, got {image_size} and {stature}")
    scale = _SUPERSAMPLING
    image = Image.new("RGBA", (width * scale, height * scale))
    pencil = Pencil(
        ImageDraw.Draw(image), centre * width * scale, feet * height * scale, stature * person.height * height * scale
    )
    _Figure(person, pose or Pose(), pencil).draw()
    return image.reduce(scale)


class _Figure:
    def __init__(self, person: Person, pose: Pose, pencil: Pencil):
        self.person, self.pose, self.pencil = person, pose, pencil
        self.heading = radians(pose.heading)
        self.cos, self.sin = cos(self.heading), sin(self.heading)
        self.parts: list[tuple[float, Callable[[], None]]] = []
        self.skin = SKIN_COLOURS[person.skin]
        self.upper, self.upper_accent = GARMENT_COLOURS[person.upper_colour], GARMENT_COLOURS[person.upper_accent]
        self.lower, self.lower_accent = GARMENT_COLOURS[person.lower_colour], GARMENT_COLOURS[person.lower_accent]
        self.bag = GARMENT_COLOURS[person.bag_colour]
        self.side = 1 if person.bag_side == "left" else -1
        bulk = 1.1 if person.upper in ("jacket-open", "jacket-closed", "hoodie") else 1.0
        self.breadth = 0.104 * person.build * bulk
        hem = 0.27 if person.upper == "dress" else person.legs - 0.04
        self.torso = Surface(
            [
                (0.85, 0.4 * self.breadth),
                (0.825, 0.9 * self.breadth),
                (0.72, self.breadth),
                (0.6, self.breadth * person.waist),
                (person.legs, 0.95 * self.breadth),
                (hem, self.breadth * (1.4 if person.upper == "dress" else 0.98)),
            ],
            0.68,
            self.heading,
        )

    def draw(self) -> None:
        for side in (-1, 1):
            self.add_leg(side)
            self.add_arm(side)
        self.parts.append((0.0, self.draw_torso))
        self.add_head()
        for _, draw in sorted(self.parts, key=lambda part: part[0]):
            draw()

    def flat(self, point: Point) -> tuple[float, float]:
        return point[0] * self.cos + point[2] * self.sin, point[1]

    def depth(self, point: Point) -> float:
        return point[2] * self.cos - point[0] * self.sin

    def limb(self, *bars: tuple[Point, Point, float, float, RGB]) -> None:
        """Joined bars (start, end, radius at each end, colour) with one common rim."""
        for grow, tone in ((0.006, 0.6), (0.0, 1.0)):
            for start, end, first, last, colour in bars:
                self.pencil.bar(self.flat(start), self.flat(end), (first + grow, last + grow), shade(colour, tone))

    def rings(self, start: Point, end: Point, radius: float, colour: RGB) -> None:
        self.pencil.rings(self.flat(start), self.flat(end), radius, colour)

    def box(self, middle: Point, half: Point, colour: RGB) -> None:
        self.pencil.box(*self.flat(middle), half[0] * abs(self.cos) + half[2] * abs(self.sin), half[1], colour)

    # Legs ------------------------------------------------------------------------------------------------------------

    def add_leg(self, side: int) -> None:
        person, step = self.person, 2 * pi * (self.pose.phase + (side > 0) / 2)
        swing = 0.5 * self.pose.stride * sin(step)
        bend = self.pose.stride * max(0.0, cos(step)) * 0.8
        length = (person.legs - 0.05) / 2
        hip = (side * 0.047 * person.build, person.legs, 0.0)
        knee = (hip[0], hip[1] - length * cos(swing), length * sin(swing))
        ankle = (hip[0], knee[1] - length * cos(swing - bend), knee[2] + length * sin(swing - bend))
        # Always behind the hem of the torso; the two legs are ordered by depth.
        order = -0.03 + 0.05 * self.depth(between(hip, ankle, 0.7))
        self.parts.append((order, lambda: self.draw_leg(side, hip, knee, ankle)))

    def draw_leg(self, side: int, hip: Point, knee: Point, ankle: Point) -> None:
        person = self.person
        tone = 0.8 if self.depth(hip) < -0.02 else 1.0
        skin, cloth, accent = (shade(colour, tone) for colour in (self.skin, self.lower, self.lower_accent))
        covered = person.lower if person.upper != "dress" else "skirt"
        toe = (ankle[0], ankle[1] - 0.022, ankle[2] + 0.06)
        heel = (ankle[0], ankle[1] - 0.012, ankle[2] - 0.01)
        self.limb((heel, toe, 0.026, 0.02, shade(GARMENT_COLOURS[person.shoes], tone)))
        wide, middle, narrow = 0.05 * person.build, 0.038 * person.build, 0.03
        if covered == "skirt":
            self.limb((hip, knee, wide, middle, skin), (knee, ankle, middle * 0.9, 0.022, skin))
            return
        if covered == "shorts":
            shin, below = (knee, ankle, middle * 0.85, 0.022, skin), between(knee, ankle, 0.15)
            self.limb(shin)
            self.limb((hip, knee, wide, middle, cloth), (knee, below, middle, middle, cloth))
        else:
            below_knee = accent if person.lower_pattern == "two-tone" else cloth
            self.limb((knee, ankle, middle, narrow, below_knee), (hip, knee, wide, middle, cloth))
        end = ankle if covered == "trousers" else knee
        if person.lower_pattern == "checks":
            self.rings(hip, knee, 0.042 * person.build, accent)
            if covered == "trousers":
                self.rings(knee, ankle, 0.034, accent)
        elif person.lower_pattern == "side-stripe" and -side * self.sin > -0.5:
            line = [(x + side * 0.03 * person.build, y, z) for x, y, z in (hip, knee, end)]
            for start, stop in pairwise(line):
                self.pencil.bar(self.flat(start), self.flat(stop), (0.01, 0.008), accent)

    # Arms ------------------------------------------------------------------------------------------------------------

    def add_arm(self, side: int) -> None:
        step = 2 * pi * (self.pose.phase + (side < 0) / 2)
        swing = 0.45 * self.pose.stride * sin(step)
        bend = 0.25 + 0.3 * self.pose.stride
        if side < 0:
            swing, bend = swing + 0.5 * self.pose.raised, bend + 1.7 * self.pose.raised
        shoulder = (side * 0.95 * self.breadth, 0.795, 0.0)
        elbow = (shoulder[0] + side * 0.02, shoulder[1] - 0.16 * cos(swing), 0.16 * sin(swing))
        hand = (elbow[0], elbow[1] - 0.15 * cos(swing + bend), elbow[2] + 0.15 * sin(swing + bend))
        self.parts.append((self.depth(shoulder) + 0.02, lambda: self.draw_arm(shoulder, elbow, hand)))
        if side == self.side:
            self.add_bag(hand)

    def draw_arm(self, shoulder: Point, elbow: Point, hand: Point) -> None:
        person = self.person
        tone = 0.8 if self.depth(shoulder) < -0.04 else 1.0
        skin, cloth, accent = (shade(colour, tone) for colour in (self.skin, self.upper, self.upper_accent))
        thick = 0.031 + 0.1 * (self.breadth - 0.1)
        self.pencil.ball(*self.flat(hand), 0.024, skin)
        if person.upper in ("t-shirt", "dress"):
            sleeve = between(shoulder, elbow, 0.6)
            self.limb((elbow, hand, 0.024, 0.02, skin), (shoulder, elbow, 0.026, 0.024, skin))
            self.limb((shoulder, sleeve, thick, thick, cloth))
        else:
            sleeve, cuff = elbow, between(elbow, hand, 0.9)
            self.limb((elbow, cuff, thick * 0.92, thick * 0.8, cloth), (shoulder, elbow, thick, thick * 0.92, cloth))
        if person.upper_pattern in ("stripes", "checks"):
            self.rings(shoulder, sleeve, thick * 0.85, accent)

    # Torso -----------------------------------------------------------------------------------------------------------

    def draw_torso(self) -> None:
        person, torso, pencil = self.person, self.torso, self.pencil
        low = torso.profile[-1][0]
        if person.lower == "skirt" and person.upper != "dress":
            skirt = Surface(
                [(0.6, 0.8 * self.breadth), (person.legs, self.breadth), (0.28, 1.25 * self.breadth)],
                0.75,
                self.heading,
            )
            pencil.polygon(skirt.patch(0.6, 0.28), self.lower, rim=True)
            self.decorate(skirt, person.legs, 0.28, person.lower_pattern, self.lower_accent)
        pencil.polygon(torso.patch(0.85, low), self.upper, rim=True)
        self.decorate(torso, 0.81, low, person.upper_pattern, self.upper_accent)
        dark = shade(self.upper, 0.55)
        if person.upper == "jacket-open":
            pencil.polygon(torso.patch(0.83, low, 0, 30), dark)
            pencil.polygon(torso.patch(0.83, low, 0, 24), self.upper_accent)
        elif person.upper == "jacket-closed":
            pencil.polygon(torso.patch(0.83, low, 0, 4), dark)
            pencil.polygon(torso.patch(0.855, 0.815), dark)
        elif person.upper == "hoodie":
            pencil.polygon(torso.patch(0.58, 0.5, 0, 42), shade(self.upper, 0.75))
        elif person.upper == "dress":
            pencil.polygon(torso.patch(0.6, 0.58), dark)
        if person.bag == "backpack":
            for azimuth in (-38, 38):
                pencil.polygon(torso.patch(0.835, 0.6, azimuth, 8), shade(self.bag, 0.85))

    def decorate(self, surface: Surface, top: float, low: float, pattern: str, accent: RGB) -> None:
        if pattern in ("stripes", "checks"):
            step, thick = (0.075, 0.034) if pattern == "stripes" else (0.062, 0.016)
            for row in range(int((top - low) / step + 0.5)):
                self.pencil.polygon(surface.patch(top - row * step, top - row * step - thick), accent)
        if pattern == "checks":
            for azimuth in range(0, 360, 36):
                self.pencil.polygon(surface.patch(top, low, azimuth, 5), accent)
        elif pattern == "two-tone":
            self.pencil.polygon(surface.patch((top + low) / 2, low), accent)
        elif pattern == "logo":
            self.pencil.polygon(surface.patch(0.76, 0.65, 0, 32), accent)
        elif pattern == "side-stripe":
            for azimuth in (-90, 90):
                self.pencil.polygon(surface.patch(top, low, azimuth, 14), accent)

    # Head ------------------------------------------------------------------------------------------------------------

    def add_head(self) -> None:
        person = self.person
        self.parts.append((0.01, self.draw_head))
        hair = HAIR_COLOURS[person.hair_colour]
        strands = {  # from, to, radius at either
            "bob": ((0, 0.92, -0.02), (0, 0.86, -0.025), 0.062, 0.054),
            "long": ((0, 0.92, -0.03), (0, 0.74, -0.06), 0.06, 0.048),
            "ponytail": ((0, 0.95, -0.06), (0, 0.79, -0.1), 0.024, 0.018),
            "bun": ((0, 0.975, -0.045), (0, 0.985, -0.05), 0.032, 0.032),
        }
        if person.hair in strands:
            strand = strands[person.hair]
            self.parts.append((self.depth(strand[1]), lambda: self.limb((*strand, hair))))
        if person.upper == "hoodie":
            hood = (0, 0.84, -0.05)
            self.parts.append(
                (self.depth(hood), lambda: self.pencil.ball(*self.flat(hood), 0.06, shade(self.upper, 0.8)))
            )

    def draw_head(self) -> None:
        person, pencil = self.person, self.pencil
        middle, half = 0.922, 0.072
        ring = [cos(pi * step / 10) for step in range(11)]
        skull = Surface([(middle + half * up, 0.06 * (1 - up * up) ** 0.5) for up in ring], 1.1, self.heading)
        top, chin = middle + half, middle - half
        neckline = 0.82 if self.cos > 0 else 0.85
        self.limb(((0, neckline, 0), (0, 0.88, 0), 0.028, 0.026, shade(self.skin, 0.85)))
        pencil.polygon(skull.patch(top, chin), self.skin, rim=True)
        if person.hair != "bald":
            hair = HAIR_COLOURS[person.hair_colour]
            pencil.polygon(skull.patch(top, 0.955), hair)
            for azimuth in (-125, 125):
                pencil.polygon(skull.patch(0.956, 0.88, azimuth, 56), hair)
        for azimuth in (-24, 24):
            pencil.polygon(skull.patch(0.925, 0.913, azimuth, 6), (40, 32, 30))
        if person.hat != "none":
            hat = GARMENT_COLOURS[person.hat_colour]
            cover = Surface([(y + 0.006, wide * 1.08) for y, wide in skull.profile], 1.1, self.heading)
            pencil.polygon(cover.patch(top + 0.006, 0.95), hat, rim=True)
            if person.hat == "beanie":
                pencil.polygon(cover.patch(0.965, 0.94), shade(hat, 0.7))
            else:
                corners = [(-0.05, 0.962, 0.02), (-0.03, 0.948, 0.115), (0.03, 0.948, 0.115), (0.05, 0.962, 0.02)]
                if self.cos > -0.5:
                    pencil.polygon([self.flat(corner) for corner in corners], shade(hat, 0.7))

    # Bags ------------------------------------------------------------------------------------------------------------

    def add_bag(self, hand: Point) -> None:
        side, build = self.side, self.breadth
        if self.person.bag == "backpack":
            middle = (0.0, 0.68, -0.68 * build - 0.045)
            self.parts.append((self.depth(middle), lambda: self.box(middle, (0.085, 0.12, 0.05), self.bag)))
        elif self.person.bag == "shoulder-bag":
            middle = (side * (build + 0.03), 0.48, 0.0)
            self.parts.append((self.depth(middle) + 0.03, lambda: self.box(middle, (0.03, 0.065, 0.085), self.bag)))
            for face in (-1, 1):
                depth = face * 0.7 * build
                strap = [(-side * 0.6 * build, 0.835, 0.0), (0.0, 0.68, depth), (side * build, 0.53, depth * 0.3)]
                self.parts.append((self.depth((0, 0, depth)), partial(self.draw_strap, strap)))
        elif self.person.bag == "handbag":
            middle = (hand[0] + side * 0.01, hand[1] - 0.1, hand[2])
            self.parts.append((self.depth(middle) + 0.03, lambda: self.draw_handbag(hand, middle)))
        elif self.person.bag == "trolley":
            middle = (side * 0.2, 0.14, -0.2)
            self.parts.append((self.depth(middle), lambda: self.draw_trolley(hand, middle)))

    def draw_strap(self, points: list[Point]) -> None:
        self.limb(*((start, end, 0.01, 0.01, shade(self.bag, 0.85)) for start, end in pairwise(points)))

    def draw_handbag(self, hand: Point, middle: Point) -> None:
        self.box(middle, (0.03, 0.06, 0.075), self.bag)
        self.limb((hand, (middle[0], middle[1] + 0.06, middle[2]), 0.01, 0.014, shade(self.bag, 0.75)))

    def draw_trolley(self, hand: Point, middle: Point) -> None:
        self.limb((hand, (middle[0], 0.26, middle[2]), 0.006, 0.006, (90, 92, 96)))
        self.box(middle, (0.08, 0.12, 0.05), self.bag)
