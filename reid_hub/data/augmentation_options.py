"""Augmentation options as plain values that a recipe can hold."""

import math
from dataclasses import dataclass, fields

from reid_hub.errors import ReIDError


@dataclass(frozen=True)
class Augmentation:
    """Augmentation of training images; defaults from "Bag of Tricks" (arXiv:1903.07071).

    In this order: flip, crop and resize or enlarge, pad and crop, rotate, colour jitter, lighting, normalise, erase.

    Attributes:
        flip: probability of a horizontal flip.
        resized_area: range of a crop's share of the image, drawn uniformly; the crop is resized to the full size
            (torchvision's RandomResizedCrop). None is off; excludes `pad` and `crop_scale`.
        resized_aspect: range of that crop's width / height; its logarithm is drawn uniformly.
        pad: zero pixels added on every side before a random crop of the original size.
        crop_scale: enlarge by this factor before that crop (9/8 in Feature Distillation); 1 is off.
        rotation: largest angle in degrees, drawn from U(-rotation, rotation); bilinear, padded with zeros.
        brightness, contrast, saturation: torchvision's ColorJitter factors, U(max(0, 1 - x), 1 + x), in random order.
        lighting: standard deviation of shifts along ImageNet's principal colour components (AlexNet); 0 is off.
        erasing: probability of erasing one box (Random Erasing, arXiv:1708.04896), after normalisation.
        erasing_area: range of the box's share of the image, drawn uniformly.
        erasing_aspect: range of the box's height / width.
        erasing_aspect_scale: "linear" draws the aspect uniformly (the paper's code), "log" draws its logarithm
            uniformly (timm).
        erasing_fill: "zero", "noise" (N(0, 1) per pixel and channel, timm's mode "pixel"), or one normalised value
            per channel. The default is that of the published code: CIFAR-10's mean, not normalised.
    """

    flip: float = 0.5
    resized_area: tuple[float, float] | None = None
    resized_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    pad: int = 10
    crop_scale: float = 1.0
    rotation: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    lighting: float = 0.0
    erasing: float = 0.5
    erasing_area: tuple[float, float] = (0.02, 0.4)
    erasing_aspect: tuple[float, float] = (0.3, 1 / 0.3)
    erasing_aspect_scale: str = "linear"
    erasing_fill: str | tuple[float, ...] = (0.4914, 0.4822, 0.4465)

    def __post_init__(self) -> None:
        for field in fields(self):
            if isinstance(getattr(self, field.name), list):  # recipes are read back from JSON
                object.__setattr__(self, field.name, tuple(getattr(self, field.name)))
        for name in ("flip", "erasing"):
            self._require(name, 0 <= getattr(self, name) <= 1, "a probability in [0, 1]")
        self._require("pad", isinstance(self.pad, int) and self.pad >= 0, "a whole number of pixels, at least 0")
        self._require("crop_scale", 1 <= self.crop_scale < math.inf, "at least 1")
        self._require("rotation", 0 <= self.rotation <= 180, "degrees in [0, 180]")
        for name in ("brightness", "contrast", "saturation", "lighting"):
            self._require(name, 0 <= getattr(self, name) < math.inf, "at least 0")
        if self.resized_area is not None:
            low, high = self.resized_area
            alone = self.pad == 0 and self.crop_scale == 1
            self._require("resized_area", 0 < low <= high <= 1 and alone, "(low, high) in (0, 1], pad 0, crop_scale 1")
        low, high = self.resized_aspect
        self._require("resized_aspect", 0 < low <= high < math.inf, "(low, high) with 0 < low <= high")
        low, high = self.erasing_area
        self._require("erasing_area", 0 < low <= high <= 1, "(low, high) with 0 < low <= high <= 1")
        low, high = self.erasing_aspect
        self._require("erasing_aspect", 0 < low <= high < math.inf, "(low, high) with 0 < low <= high")
        self._require("erasing_aspect_scale", self.erasing_aspect_scale in ("linear", "log"), "'linear' or 'log'")
        fill = self.erasing_fill
        known = fill in ("zero", "noise") if isinstance(fill, str) else all(math.isfinite(value) for value in fill)
        self._require("erasing_fill", known, "'zero', 'noise' or one finite number per channel")

    def _require(self, name: str, condition: bool, wanted: str) -> None:
        if not condition:
            raise ReIDError(f"Augmentation.{name} must be {wanted}, got {getattr(self, name)!r}")
