"""A camera model: place, viewpoint, detector box, light, occlusion, and the colours of the sensor."""

from dataclasses import dataclass
from math import cos, pi, sqrt

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from reid_hub.data.synthetic.figure import draw_person
from reid_hub.data.synthetic.person import VIEWS, Person, Pose
from reid_hub.data.synthetic.places import PLACES, panorama
from reid_hub.errors import ReIDError
from reid_hub.registry import lookup

_CAMERA_STREAM = 3  # separates the generators of cameras from those of people and images


@dataclass(frozen=True)
class Camera:
    """One fixed camera.

    Attributes:
        cast: factors of red, green and blue.
        gamma, contrast, brightness: response curve; brightness is an offset, as a fraction of full scale.
        noise: standard deviation, as a fraction of full scale.
        blur: radius in pixels of an image 128 pixels high.
        heading, spread: mean heading of the people in degrees (see `VIEWS`) and its standard deviation.
        stature: height of a person, in box heights.
        jitter: standard deviation of the detector's boxes, in box heights.
        occlusion: probability that something stands in front of the person.
        place, place_seed: surroundings, one of `PLACES`, painted from this seed.

    Raises:
        ValueError: if a number is out of range, or the place is unknown.
    """

    cast: tuple[float, float, float]
    gamma: float
    contrast: float
    brightness: float
    noise: float
    blur: float
    heading: float
    spread: float
    stature: float
    jitter: float
    occlusion: float
    place: str
    place_seed: int

    def __post_init__(self):
        lookup(PLACES, self.place, "place")
        if not 0 <= self.occlusion <= 1:
            raise ReIDError(f"occlusion is a probability and must lie in [0, 1], got {self.occlusion!r}")
        for name in ("gamma", "contrast", "stature"):
            if not getattr(self, name) > 0:
                raise ReIDError(f"{name} must be positive, got {getattr(self, name)!r}")
        for name in ("noise", "blur", "spread", "jitter", "place_seed"):
            if not getattr(self, name) >= 0:
                raise ReIDError(f"{name} must not be negative, got {getattr(self, name)!r}")
        if len(self.cast) != 3 or not min(self.cast) > 0:
            raise ReIDError(f"cast must be three positive factors (red, green, blue), got {self.cast!r}")

    @classmethod
    def sample(cls, camid: int, *, seed: int = 0) -> "Camera":
        """Sample camera `camid`; hues of casts advance by the golden angle, so any number of cameras differ."""
        rng = np.random.default_rng([seed, _CAMERA_STREAM, camid])
        hue = 2 * pi * (camid * (sqrt(5) - 1) / 2 + rng.uniform(0, 0.1))
        strength = rng.uniform(0.12, 0.18)
        red, green, blue = (1 + strength * cos(hue - 2 * pi * channel / 3) for channel in range(3))
        return cls(
            cast=(red, green, blue),
            gamma=rng.uniform(0.75, 1.35),
            contrast=rng.uniform(0.75, 1.1),
            brightness=rng.uniform(-0.06, 0.06),
            noise=rng.uniform(0.008, 0.032),
            blur=rng.uniform(0.2, 0.8),
            heading=list(VIEWS.values())[camid * 2 % 4 + camid // 2 % 2],
            spread=rng.uniform(20, 45),
            stature=rng.uniform(0.82, 0.94),
            jitter=rng.uniform(0.02, 0.04),
            occlusion=rng.uniform(0.1, 0.25),
            place=list(PLACES)[camid % len(PLACES)],
            place_seed=int(rng.integers(2**31)),
        )


def photograph(
    person: Person, camera: Camera, rng: np.random.Generator, image_size: tuple[int, int] = (128, 64)
) -> np.ndarray:
    """Take one image of `person`, uint8 (height, width, 3); `rng` is the only source of randomness."""
    scene = _surroundings(camera, rng, image_size)
    box = {
        "centre": 0.5 + rng.normal(0, 2 * camera.jitter),
        "feet": 0.955 + rng.normal(0, camera.jitter),
        "stature": camera.stature * (1 + rng.normal(0, camera.jitter)),
    }
    _draw_shadow(scene, box["centre"], box["feet"])
    light = rng.uniform(-1, 1)
    _place(scene, draw_person(person, _any_pose(camera, rng), image_size, **box), light)
    if rng.random() < camera.occlusion:
        _occlude(scene, camera, rng, light)
    return _expose(scene, camera, rng, light)


def _any_pose(camera: Camera, rng: np.random.Generator) -> Pose:
    heading = rng.uniform(0, 360) if rng.random() < 0.25 else camera.heading + rng.normal(0, camera.spread)
    raised = rng.random() if rng.random() < 0.2 else 0.0
    return Pose(float(heading) % 360, float(rng.random()), float(rng.uniform(0, 0.9)), float(raised))


def _surroundings(camera: Camera, rng: np.random.Generator, image_size: tuple[int, int]) -> Image.Image:
    height, width = image_size
    view = panorama(camera.place, height, camera.place_seed)
    zoom = rng.uniform(0.85, 1.15)
    left, top = rng.uniform(0, view.width - zoom * width), rng.uniform(0, view.height - zoom * height)
    return view.resize(
        (width, height), Image.Resampling.BILINEAR, (left, top, left + zoom * width, top + zoom * height)
    )


def _draw_shadow(scene: Image.Image, centre: float, feet: float) -> None:
    x, y = centre * scene.width, feet * scene.height
    across, up = 0.15 * scene.height, 0.018 * scene.height
    mask = Image.new("L", scene.size)
    ImageDraw.Draw(mask).ellipse((x - across, y - up, x + across, y + up), 110)
    scene.paste((30, 30, 34), mask=mask)


def _place(scene: Image.Image, figure: Image.Image, light: float) -> None:
    """Paste a figure, lit from the left (`light` = -1) to the right (1)."""
    round_off = ImageFilter.BoxBlur(max(1, scene.width // 16))
    solid = np.asarray(figure.getchannel("A").filter(round_off), np.float32) / 255
    step = max(1, scene.width // 32)
    slope = np.roll(solid, step, 1) - np.roll(solid, -step, 1)
    shading = 1 + (0.9 * light) * slope - 0.25 * np.abs(slope)
    pixels = np.asarray(figure.convert("RGB"), np.float32) * shading[..., None]
    scene.paste(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), mask=figure.getchannel("A"))


def _occlude(scene: Image.Image, camera: Camera, rng: np.random.Generator, light: float) -> None:
    width, height = scene.size
    kind = rng.choice(3)
    side = rng.choice((-1, 1))
    if kind == 0:  # another person, nearer and half outside the box
        figure = draw_person(
            Person.sample(rng),
            _any_pose(camera, rng),
            (height, width),
            centre=0.5 + side * rng.uniform(0.38, 0.55),
            feet=rng.uniform(0.98, 1.1),
            stature=rng.uniform(0.9, 1.05),
        )
        _place(scene, figure, light)
        return
    colour = tuple(int(channel) for channel in rng.uniform(40, 170) * rng.uniform(0.8, 1.15, 3))
    dark = tuple(channel // 2 for channel in colour)
    if kind == 1:  # a pole
        left, wide = rng.uniform(0.1, 0.8) * width, rng.uniform(0.06, 0.14) * width
        edges = (left, 0.0, left + wide, float(height))
    else:  # a box, bench or parked object in front of the legs
        middle, half = (0.5 + side * rng.uniform(0, 0.3)) * width, rng.uniform(0.2, 0.45) * width
        edges = (middle - half, rng.uniform(0.66, 0.85) * height, middle + half, height)
    ImageDraw.Draw(scene).rectangle(edges, colour, dark)


def _expose(scene: Image.Image, camera: Camera, rng: np.random.Generator, light: float) -> np.ndarray:
    """Response curve, cast, uneven light, blur and noise of the sensor."""
    width, height = scene.size
    levels = (np.arange(256) / 255 * rng.uniform(0.85, 1.15)) ** camera.gamma
    levels = (levels - 0.5) * camera.contrast + 0.5 + camera.brightness
    table = np.concatenate([levels * gain * rng.uniform(0.97, 1.03) for gain in camera.cast])
    scene = scene.point((table * 255).clip(0, 255).round().astype(int).tolist())
    scene = scene.filter(ImageFilter.BoxBlur(camera.blur * rng.uniform(0.7, 1.5) * height / 128))
    ramp = 1 + 0.12 * light * np.linspace(-1, 1, width, dtype=np.float32)
    noise = rng.standard_normal((height, width, 3), np.float32) * np.float32(255 * camera.noise)
    return (np.asarray(scene, np.float32) * ramp[None, :, None] + noise).clip(0, 255).astype(np.uint8)
