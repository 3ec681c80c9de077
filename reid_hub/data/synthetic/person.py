"""An identity as a vector of plain parameters, and the pose it is seen in."""

from dataclasses import dataclass, fields
from math import isfinite
from typing import Any

import numpy as np

from reid_hub.errors import ReIDError
from reid_hub.registry import lookup

RGB = tuple[int, int, int]

# The palette is small on purpose: many identities share colours and differ only in layout, pattern, bag and shape.
GARMENT_COLOURS: dict[str, RGB] = {
    "black": (34, 34, 40),
    "grey": (126, 128, 132),
    "white": (226, 226, 220),
    "navy": (36, 46, 92),
    "blue": (70, 118, 184),
    "red": (178, 48, 50),
    "green": (62, 112, 74),
    "beige": (194, 168, 126),
    "brown": (108, 74, 50),
}
SKIN_COLOURS: dict[str, RGB] = {
    "pale": (240, 208, 184),
    "light": (222, 178, 146),
    "olive": (188, 140, 104),
    "tan": (150, 104, 72),
    "dark": (98, 66, 48),
}
HAIR_COLOURS: dict[str, RGB] = {
    "black": (26, 24, 26),
    "brown": (78, 52, 34),
    "fair": (196, 160, 96),
    "grey": (168, 166, 162),
    "red": (150, 74, 36),
}
VIEWS: dict[str, float] = {"front": 0.0, "side-right": 90.0, "back": 180.0, "side-left": 270.0}

RANGES: dict[str, tuple[float, float]] = {
    "height": (0.85, 1.1),
    "build": (0.8, 1.3),
    "waist": (0.75, 1.1),
    "legs": (0.45, 0.53),
}
CHOICES: dict[str, tuple[str, ...]] = {
    "skin": tuple(SKIN_COLOURS),
    "hair": ("bald", "short", "bob", "long", "bun", "ponytail"),
    "hair_colour": tuple(HAIR_COLOURS),
    "hat": ("none", "cap", "beanie"),
    "hat_colour": tuple(GARMENT_COLOURS),
    "upper": ("t-shirt", "long-sleeve", "jacket-open", "jacket-closed", "dress", "hoodie"),
    "upper_colour": tuple(GARMENT_COLOURS),
    "upper_accent": tuple(GARMENT_COLOURS),
    "upper_pattern": ("plain", "stripes", "checks", "logo", "two-tone"),
    "lower": ("trousers", "shorts", "skirt"),
    "lower_colour": tuple(GARMENT_COLOURS),
    "lower_accent": tuple(GARMENT_COLOURS),
    "lower_pattern": ("plain", "side-stripe", "checks", "two-tone"),
    "shoes": tuple(GARMENT_COLOURS),
    "bag": ("none", "backpack", "shoulder-bag", "handbag", "trolley"),
    "bag_colour": tuple(GARMENT_COLOURS),
    "bag_side": ("left", "right"),
}
_COLOUR_SHARES = (0.22, 0.14, 0.14, 0.13, 0.09, 0.08, 0.07, 0.08, 0.05)
_COMMON = {  # relative frequency of each choice; traits that are not listed are drawn uniformly
    "hair": (0.08, 0.4, 0.14, 0.18, 0.08, 0.12),
    "hat": (0.8, 0.1, 0.1),
    "upper": (0.24, 0.18, 0.18, 0.16, 0.1, 0.14),
    "upper_pattern": (0.42, 0.16, 0.1, 0.16, 0.16),
    "lower": (0.66, 0.18, 0.16),
    "lower_pattern": (0.6, 0.15, 0.1, 0.15),
    "bag": (0.3, 0.26, 0.2, 0.14, 0.1),
    "hat_colour": _COLOUR_SHARES,
    "upper_colour": _COLOUR_SHARES,
    "lower_colour": _COLOUR_SHARES,
    "shoes": _COLOUR_SHARES,
    "bag_colour": _COLOUR_SHARES,
}


@dataclass(frozen=True)
class Person:
    """One identity. Everything else (pose, camera, place, light, occlusion) changes from image to image.

    `height` and `build` are relative to the average stature and breadth, `waist` is waist over chest breadth and `legs`
    the hip's height over the stature (limits in `RANGES`); all others are names out of `CHOICES`. `bag_side` is the
    person's own left or right.

    Raises:
        ValueError: if a number is outside its range in `RANGES` or a name is not among its `CHOICES`.
    """

    height: float = 1.0
    build: float = 1.0
    waist: float = 0.9
    legs: float = 0.49
    skin: str = "light"
    hair: str = "short"
    hair_colour: str = "brown"
    hat: str = "none"
    hat_colour: str = "black"
    upper: str = "t-shirt"
    upper_colour: str = "blue"
    upper_accent: str = "white"
    upper_pattern: str = "plain"
    lower: str = "trousers"
    lower_colour: str = "black"
    lower_accent: str = "white"
    lower_pattern: str = "plain"
    shoes: str = "black"
    bag: str = "none"
    bag_colour: str = "black"
    bag_side: str = "left"

    def __post_init__(self):
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ReIDError(f"{name} must lie in [{low}, {high}], got {value!r}")
        for name, names in CHOICES.items():
            lookup(dict.fromkeys(names), getattr(self, name), name)

    @classmethod
    def sample(cls, rng: np.random.Generator) -> "Person":
        """Sample an identity; the number of draws is fixed, so equal generators give equal people."""
        traits: dict[str, Any] = {name: float(rng.uniform(*limits)) for name, limits in RANGES.items()}
        for name, names in CHOICES.items():
            traits[name] = names[rng.choice(len(names), p=_COMMON.get(name))]
        for garment in ("upper", "lower"):  # a pattern in the garment's own colour would be invisible
            colours = list(GARMENT_COLOURS)
            colours.remove(traits[f"{garment}_colour"])
            traits[f"{garment}_accent"] = colours[rng.integers(len(colours))]
        return cls(**traits)


@dataclass(frozen=True)
class Pose:
    """The pose of a person.

    `heading` in degrees (see `VIEWS`: 0 walks towards the camera, 90 towards the image's right), `phase` of the step in
    [0, 1], `stride` from 0 (standing) to 1, and how far the right arm is `raised`, from 0 to 1.

    Raises:
        ValueError: if a number lies outside of these limits.
    """

    heading: float = 0.0
    phase: float = 0.0
    stride: float = 0.5
    raised: float = 0.0

    def __post_init__(self):
        if not isfinite(self.heading):
            raise ReIDError(f"heading must be a finite number of degrees, got {self.heading!r}")
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            if not 0 <= value <= 1:
                raise ReIDError(f"{field.name} must lie in [0, 1], got {value!r}")
