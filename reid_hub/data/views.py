"""Views of a person: the whole image, horizontal bands, annotated regions and masks."""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from io import BytesIO
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from reid_hub.compat import fingerprint
from reid_hub.data.decoding import decode_image
from reid_hub.errors import ReIDError
from reid_hub.registry import lookup

# Maps an image's path to (top, left, bottom, right) as fractions of its sides, or to a bool mask (H, W) of its size.
Region = Callable[[str], Sequence[float] | np.ndarray]


@dataclass(frozen=True)
class View:
    """A part of an image, cropped at the image's resolution. Factorized Distillation (arXiv:1811.08073), fig. 1.

    Attributes:
        name: letters, digits, - and _, but no attribute of `torch.nn.ModuleDict` such as "half" or "pop".
        rows: top and bottom as fractions of the height; the view has the full width.
        image_size: input size (height, width) in pixels of this view's teacher.
        dim: embedding dimension of the teacher.
        region: gives each image its own region, instead of `rows`. For a mask, the view is its bounding box with the
            pixels outside the mask set to black.

    Raises:
        ValueError: for an invalid name, or rows outside the image.
    """

    name: str
    rows: tuple[Fraction, Fraction] = (Fraction(0), Fraction(1))
    image_size: tuple[int, int] = (224, 224)
    dim: int = 256
    region: Region | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w-]+", self.name):
            raise ReIDError(f"a view's name must be letters, digits, - and _, got {self.name!r}")
        if hasattr(nn.ModuleDict(), self.name):  # the student keeps a branch per view in a ModuleDict
            raise ReIDError(
                f"a view cannot be called {self.name!r}, an attribute of torch's modules; choose another name"
            )
        object.__setattr__(self, "rows", tuple(Fraction(row) for row in self.rows))
        if len(self.rows) != 2 or not 0 <= self.rows[0] < self.rows[1] <= 1:
            got = " to ".join(map(str, self.rows))
            raise ReIDError(
                f"the rows of view {self.name!r} must be shares of the height, 0 <= top < bottom <= 1: {got}"
            )

    @property
    def whole(self) -> bool:
        """Whether the view is the whole image."""
        return self.region is None and self.rows == (0, 1)

    def covers(self, paths: Sequence[str]) -> bool:
        """Whether every one of these images has a region."""
        try:
            if self.region is not None:
                for path in paths:
                    self.region(path)
        except LookupError:
            return False
        return True

    def box(self, size: tuple[int, int], path: str = "") -> tuple[int, int, int, int]:
        """Box (top, left, bottom, right) in pixels of an image of `size` (height, width), rounded, ends exclusive.

        Raises:
            ValueError: if the box is empty, or the region does not fit the image.
        """
        region = self._region(path)
        if isinstance(region, np.ndarray):
            if region.shape != tuple(size):
                raise ReIDError(f"the mask of view {self.name!r} must be {tuple(size)} like {path}, got {region.shape}")
            rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
            if not len(rows):
                raise ReIDError(f"the mask of view {self.name!r} is empty for {path}: leave that image out")
            return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
        sides = (size[0], size[1], size[0], size[1])
        top, left, bottom, right = (round(side * share) for side, share in zip(sides, region, strict=True))
        if top >= bottom or left >= right:
            raise ReIDError(
                f"image {path} of {size[0]}x{size[1]} pixels is too small for view {self.name!r}: give larger images "
                "or another view"
            )
        return top, left, bottom, right

    def cut(self, image: Image.Image, path: str = "") -> Image.Image:
        """Crop the view out of one image, at the image's resolution.

        Raises:
            ValueError: see `box`.
        """
        top, left, bottom, right = self.box((image.height, image.width), path)
        region = self._region(path)
        if isinstance(region, np.ndarray):
            image = Image.fromarray(np.asarray(image) * region[..., None])
        return image.crop((left, top, right, bottom))

    def describe(self, paths: Sequence[str] = ()) -> dict[str, Any]:
        """Everything that determines the crops of these images, as plain values."""
        if self.region is None:
            return {"name": self.name, "rows": [str(row) for row in self.rows]}
        digest = hashlib.sha256()
        for path in sorted(paths):
            region = self._region(path)
            text = region.tobytes() if isinstance(region, np.ndarray) else json.dumps(region).encode()
            digest.update(json.dumps([path, getattr(region, "shape", None)]).encode() + text)
        return {"name": self.name, "regions": digest.hexdigest()[:16]}

    def _region(self, path: str) -> tuple[float | Fraction, ...] | np.ndarray:
        if self.region is None:
            return (self.rows[0], 0, self.rows[1], 1)
        try:
            region = self.region(path)
        except LookupError as error:
            raise ReIDError(
                f"view {self.name!r} has no region for image {path}: annotate it or leave it out"
            ) from error
        if isinstance(region, np.ndarray) and region.ndim == 2:
            return region.astype(bool)
        region = tuple(float(share) for share in region)
        if len(region) != 4 or not (0 <= region[0] < region[2] <= 1 and 0 <= region[1] < region[3] <= 1):
            raise ReIDError(
                f"the region of view {self.name!r} lies outside of image {path}: it must be (top, left, bottom, right) "
                f"as shares of the sides, 0 <= top < bottom <= 1, or a mask (H, W); got {region}"
            )
        return region


def _band(name: str, top: int, bottom: int, parts: int) -> View:
    return View(name, (Fraction(top, parts), Fraction(bottom, parts)))


VIEWS: dict[str, View] = {
    view.name: view
    for view in (
        View("Hol", image_size=(256, 128), dim=512),
        _band("Up1", 1, 2, 4), _band("Mid1", 2, 3, 4), _band("Dn1", 3, 4, 4),
        _band("Up2", 1, 3, 7), _band("Mid2", 3, 5, 7), _band("Dn2", 5, 7, 7),
    )
}  # fmt: skip

# The rows of the paper's table 8.
VIEW_SETS: dict[str, tuple[str, ...]] = {
    "Hol": ("Hol",),
    "Hol+G1": ("Hol", "Up1", "Mid1", "Dn1"),
    "all": tuple(VIEWS),
}


def choose_views(
    names: str | Sequence[str] = "all",
    image_size: tuple[int, int] | None = None,
    view_size: tuple[int, int] | None = None,
) -> tuple[View, ...]:
    """Look up views by name.

    Args:
        names: a key of `VIEW_SETS`, or names of views; "Head=0:1/7" defines a custom band.
        image_size, view_size: input size (height, width) for teachers of the whole image and of a part (default: the
            paper's 256x128 and 224x224).

    Raises:
        ValueError: for an unknown or repeated name, or an invalid band.
    """
    if isinstance(names, str):
        names = VIEW_SETS.get(names, (names,))
    views = [_own_band(name) if "=" in name else lookup(VIEWS, name, "view") for name in names]
    if not views or len({view.name for view in views}) < len(views):
        raise ReIDError(f"give each view once, got {list(names)}")
    sizes = [(image_size if view.whole else view_size) or view.image_size for view in views]
    return tuple(replace(view, image_size=(height, width)) for view, (height, width) in zip(views, sizes, strict=True))


def _own_band(text: str) -> View:
    name, _, rows = text.partition("=")
    try:
        top, bottom = (Fraction(row) for row in rows.split(":"))
        return View(name, (top, bottom))
    except (ValueError, ZeroDivisionError) as error:
        raise ReIDError(f"a band of your own is NAME=TOP:BOTTOM, such as Head=0:1/7; got {text!r}: {error}") from error


def view_split(split, view: View):
    """Replace each image of a split of `load_reid_dataset` by its view, losslessly encoded; other columns stay.

    Raises:
        ValueError: if an image is damaged or too small for the view; names the image.
    """
    if view.whole:
        return split
    from datasets import Features
    from datasets import Image as ImageFeature
    from datasets.fingerprint import Hasher

    def cut(row: dict[str, Any]) -> dict[str, Any]:
        data = BytesIO()
        view.cut(decode_image(row["image"], row["path"]), row["path"]).save(data, "PNG", compress_level=1)
        return {"image": {"path": None, "bytes": data.getvalue()}}

    # Fingerprint what determines the pixels: `datasets` would hash the function, and a region can be any function.
    seen = view.describe(split["path"] if view.region else ())
    return split.cast_column("image", ImageFeature(decode=False)).map(
        cut,
        features=Features({**split.features, "image": ImageFeature()}),
        new_fingerprint=Hasher.hash([fingerprint(split), seen]),
        desc=f"cut view {view.name}",
    )


class ErasedShares:
    """The share of each view that a box covers, for the 40 % rule of Factorized Distillation.

    Args:
        paths: (N,) paths of the data set; a batch's `indices` refer to them.
        image_size: (height, width) of the images that the boxes refer to.
    """

    def __init__(self, views: Sequence[View], paths: Sequence[str], image_size: tuple[int, int]):
        height, width = image_size
        self.image_size = (height, width)
        self._tables = [self._table(view, paths) for view in views]

    def __call__(self, boxes: Tensor, indices: Tensor) -> Tensor:
        """Covered shares of K views: boxes (B, 4) as y0, x0, y1, x1 and indices (B,) -> (B, K) float64.

        The result is on the device of the boxes. Boxes refer to the image before its flip, with exclusive ends; rows
        of -1 mean that nothing was erased. Rectangular views use exact, unrounded sides; masks are counted in pixels
        of `image_size`.
        """
        boxes, indices = boxes.to(torch.float64), indices.cpu()
        shares = [
            self._of_masks(table, boxes, indices)
            if table.dtype == torch.uint8
            else self._of_boxes(table, boxes, indices)
            for table in self._tables
        ]
        return torch.stack(shares, 1)

    def _table(self, view: View, paths: Sequence[str]) -> Tensor:
        """Rectangles in pixels, (N, 4) or (1, 4) float64, or masks packed eight pixels to a byte, (N, n) uint8."""
        regions = [view._region(path) for path in (paths if view.region else [""])]
        if not any(isinstance(region, np.ndarray) for region in regions):
            height, width = self.image_size
            sides = torch.tensor([height, width, height, width], dtype=torch.float64)
            shares = [[float(share) for share in region] for region in regions]
            return torch.tensor(shares, dtype=torch.float64) * sides
        masks = [_resized(region, self.image_size) for region in regions]
        return torch.from_numpy(np.packbits(np.stack(masks).reshape(len(masks), -1), axis=1))

    def _of_boxes(self, table: Tensor, boxes: Tensor, indices: Tensor) -> Tensor:
        view = (table[indices] if len(table) > 1 else table).to(boxes.device)
        overlap = (torch.minimum(boxes[:, 2:], view[:, 2:]) - torch.maximum(boxes[:, :2], view[:, :2])).clamp(min=0)
        return overlap.prod(1) / (view[:, 2:] - view[:, :2]).prod(1)

    def _of_masks(self, table: Tensor, boxes: Tensor, indices: Tensor) -> Tensor:
        height, width = self.image_size
        pixels = np.unpackbits(table[indices].numpy(), axis=1, count=height * width).reshape(-1, height, width)
        mask = torch.from_numpy(pixels).to(boxes)
        y, x = (torch.arange(side, device=boxes.device) for side in (height, width))
        inside_y = (y >= boxes[:, 0:1]) & (y < boxes[:, 2:3])
        inside_x = (x >= boxes[:, 1:2]) & (x < boxes[:, 3:4])
        erased = torch.einsum("bhw,bh,bw->b", mask, inside_y.to(mask), inside_x.to(mask))
        return erased / mask.sum((1, 2)).clamp(min=1)


def _resized(region: Any, size: tuple[int, int]) -> np.ndarray:
    """Resize a mask, or a rectangle drawn as a mask, to `size`."""
    if not isinstance(region, np.ndarray):
        y, x = ((np.arange(side) + 0.5) / side for side in size)
        return ((y >= region[0]) & (y < region[2]))[:, None] & ((x >= region[1]) & (x < region[3]))
    image = Image.fromarray(region.astype(np.uint8) * 255)
    return np.asarray(image.resize(size[::-1], Image.Resampling.NEAREST)) > 0
