"""The type of a batch of images."""

from typing import NotRequired, TypedDict

from torch import Tensor


class Batch(TypedDict):
    """A batch of B images: a plain dict of tensors that any DataLoader, launcher or Trainer can move and split.

    >>> Batch(pixel_values=torch.zeros(8, 3, 256, 128), pids=torch.arange(8) // 4)

    Keys:
        pixel_values: (B, 3, H, W); uint8 as read, normalised float32 after `BatchTransform.augment`.
        pids, camids: int64 (B,), identities and cameras, -1 where they are unknown.
        indices: int64 (B,), rows of the data set.
        sizes: int64 (B, 2), height and width of the images before they were resized, if the augmentation needs them.
        erased_boxes: int64 (B, 4), boxes erased by Random Erasing: y0, x0, y1, x1 in pixels of the image before its
            flip, ends exclusive; rows of -1 where nothing was erased.
    """

    pixel_values: Tensor
    pids: Tensor
    camids: NotRequired[Tensor]
    indices: NotRequired[Tensor]
    sizes: NotRequired[Tensor]
    erased_boxes: NotRequired[Tensor]
