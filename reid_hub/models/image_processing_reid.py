"""Image processing: convert to RGB, resize (and centre-crop), scale to [0, 1], normalise."""

from typing import ClassVar

from transformers.image_processing_backends import PilBackend
from transformers.image_utils import PILImageResampling

from .configuration_reid import IMAGENET_MEAN, IMAGENET_STD


class ReIDImageProcessor(PilBackend):
    """Image processor of re-identification models; it resizes with PIL to match the transforms of published results.

    (transformers' torchvision backend is up to twice as fast and differs by at most one grey level.)
    """

    resample = PILImageResampling.BILINEAR
    # In transformers, class attributes are a processor's defaults.
    image_mean = IMAGENET_MEAN
    image_std = IMAGENET_STD
    size: ClassVar[dict[str, int]] = {"height": 256, "width": 128}
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True

    def to_dict(self) -> dict:
        """The dict to save, with one class reference per backend.

        With a plain string, transformers' pipelines would look for a video processor of the same name and ask the user
        to trust its code.
        """
        output = super().to_dict()
        reference = output.get("auto_map", {}).get("AutoImageProcessor")
        if isinstance(reference, str):
            output["auto_map"] = {"AutoImageProcessor": {"pil": reference, "torchvision": reference}}
        return output

    def center_crop(self, image, size, **kwargs):
        """Crop (C, H, W) as torchvision does: half pixels are rounded to even, whereas transformers rounds down."""
        wanted = (size.height, size.width)
        top, left = (round((side - crop) / 2) for side, crop in zip(image.shape[1:], wanted, strict=True))
        return image[:, top : top + size.height, left : left + size.width]

    @classmethod
    def from_config(cls, config) -> "ReIDImageProcessor":
        """Build the processor of a `ReIDConfig`."""
        size = dict(zip(("height", "width"), config.image_size, strict=True))
        shortest = getattr(config, "resize_shortest", None)
        crop = {} if shortest is None else {"do_center_crop": True, "crop_size": size}
        return cls(
            size=size if shortest is None else {"shortest_edge": shortest},
            **crop,
            image_mean=list(config.image_mean),
            image_std=list(config.image_std),
            resample=PILImageResampling[config.interpolation.upper()],
        )
