"""What a batch of images is."""

from typing import NotRequired, TypedDict

from torch import Tensor


class Batch(TypedDict):
    """A batch of B images: a plain dict of tensors, which every loader, launcher and Trainer can move and split.

    >>> Batch(pixel_values=torch.zeros(8, 3, 256, 128), pids=torch.arange(8) // 4)

    Keys:
        pixel_values: (B, 3, H, W); uint8 as it is read, float32 and normalised behind `BatchTransform.augment`.
        pids, camids: int64 (B,), identities and cameras, -1 where they are unknown.
        indices: int64 (B,), rows of the data set.
        sizes: int64 (B, 2), height and width of the images before they were resized, where an augmentation reads them.
        erased_boxes: int64 (B, 4), what Random Erasing erased: y0, x0, y1, x1 in pixels of the input before its flip,
            ends exclusive, rows of -1 where nothing was erased.
    """

    pixel_values: Tensor
    pids: Tensor
    camids: NotRequired[Tensor]
    indices: NotRequired[Tensor]
    sizes: NotRequired[Tensor]
    erased_boxes: NotRequired[Tensor]
