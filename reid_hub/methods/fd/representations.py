"""What teachers say of the training images: supervisory representations, by the batch's indices."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from reid_hub.data.augmentation import BatchTransform
from reid_hub.data.describe import digest_images
from reid_hub.data.images import ImageDataset
from reid_hub.data.views import View, view_split
from reid_hub.errors import ReIDError
from reid_hub.methods.teacher import FrozenTeacher
from reid_hub.models import ReIDModel


class Representations(Protocol):
    """What teachers say of the training images.

    Attributes:
        views: K of them.
        dims: lengths of the teachers' vectors.
        paths: (N,) of the images, by the batch's `indices`.
        identities: the pids that the teachers were trained on, where they are known.
        fingerprints: of the teachers, by view.
    """

    views: tuple[View, ...]
    dims: tuple[int, ...]
    paths: list[str]
    identities: list[int] | None
    fingerprints: dict[str, str]

    def __getitem__(self, indices: Tensor) -> list[Tensor]:
        """Supervisory representations of a batch, (B,) -> K of (B, D_k)."""


class ViewTeacher(FrozenTeacher):
    """A frozen model that looks at one view of the training images; any `ReIDModel`, in its own image size.

    It says of an image the mean of the embeddings of the view and of the view's mirror image, without augmentation and
    not normalised (arXiv:1811.08073, eq. 2).

    Args:
        split: the training images, whole.
        identities: the data set's pids that the model was trained on, where they are known.
    """

    def __init__(
        self, model: ReIDModel, view: View, split, *, identities: Sequence[int] | None = None, progress: bool = False
    ):
        super().__init__(model)
        config, self.view, self.split, self.identities = model.config, view, split, identities
        self.images = ImageDataset(
            view_split(split, view),
            tuple(config.image_size),
            interpolation=config.interpolation,
            resize_shortest=config.resize_shortest,
            progress=progress,
        )
        self._transform = BatchTransform(None, config.image_mean, config.image_std)

    def answer(self, pixel_values: Tensor) -> Tensor:
        return self.model.embed(pixel_values, flip=True)

    def represent(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """(B,) rows of the split -> (B, D), on the device of the model.

        Raises:
            ReIDError: if the model gives NaN or Inf, naming an image.
        """
        pixels = self.images.__getitems__(indices)["pixel_values"].to(self.model.device)
        vectors = self(self._transform(pixels))
        if not (finite := vectors.isfinite().all(1)).all():
            bad = self.split[int(np.asarray(indices)[~finite.cpu().numpy()][0])]["path"]
            raise ReIDError(
                f"the teacher of view {self.view.name!r} gives NaN or Inf for {bad}: its weights are broken"
            )
        return vectors

    def fingerprint(self) -> dict[str, Any]:
        """All that decides the representations: the model, the view, the images, and the identities."""
        identities = None if self.identities is None else [int(pid) for pid in self.identities]
        return {
            **super().fingerprint(),
            "view": self.view.describe(self.split["path"] if self.view.region else ()),
            "pictures": digest_images(self.split),
            "identities": identities,
        }


class OnlineRepresentations(nn.Module):
    """Teachers that run beside the student in every step; nothing is stored. See `Representations`."""

    def __init__(self, teachers: Sequence[ViewTeacher]):
        super().__init__()
        self.teachers = nn.ModuleList(teachers)
        self.views = tuple(teacher.view for teacher in teachers)
        self.dims = tuple(teacher.model.embedding_dim for teacher in teachers)
        self.paths = teachers[0].split["path"][:]
        self.identities = next((t.identities for t in teachers if t.identities is not None), None)
        self.fingerprints = {teacher.view.name: teacher.model.fingerprint() for teacher in teachers}

    def __getitem__(self, indices: Tensor) -> list[Tensor]:
        return [teacher.represent(indices.cpu().numpy()) for teacher in self.teachers]
