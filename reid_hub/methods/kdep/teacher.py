"""A teacher's features of what the student is shown: asked in every step, or stored for crops that are drawn once."""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from reid_hub.compat import fingerprint
from reid_hub.data.augmentation import Augmentation, BatchTransform
from reid_hub.data.images import ImageDataset
from reid_hub.errors import ReIDError
from reid_hub.methods.kdep.tap import Tap
from reid_hub.methods.shards import SHARD_SIZE, StoredVectors, write_vectors
from reid_hub.methods.teacher import FrozenTeacher
from reid_hub.models import ReIDConfig, ReIDModel
from reid_hub.registry import lookup

# Where a teacher's features are taken: in front of its classifier, so behind an embedding block; or from the backbone.
TAPS = {"features": True, "map": False}


class Features(Protocol):
    """A teacher's features of batches.

    Attributes:
        dim: D.
        crops: see `Method`.
    """

    dim: int
    crops: int

    def set_epoch(self, epoch: int) -> None:
        """Called before each batch with the number of epochs done."""

    def __call__(self, pixel_values: Tensor, indices: Tensor) -> Tensor:
        """Images (B, 3, H, W) as the student sees them and their rows (B,) -> float32 (B, D), without gradient."""


class TappedTeacher(FrozenTeacher):
    """A frozen model, asked in every step for its features of the student's own images. See `Features`.

    Args:
        tap: a key of `TAPS`.
        relu: keep its final ReLU.
        model, mean, std: see `FrozenTeacher`.
    """

    crops = 0

    def __init__(self, model: ReIDModel, *, tap: str = "features", relu: bool = False, **normalisation: Any):
        super().__init__(model, **normalisation)
        self.tap, self.relu = tap, relu
        self._tap = Tap(model, behind_head=lookup(TAPS, tap, "tap"), relu=relu)
        self.dim = self._tap.dim
        if not (relu or self._tap.signed):
            warnings.warn(
                f"the features of {model.name_or_path or 'the teacher'} are never negative, and no ReLU module ends "
                "them that could be left out: they are taken as they are, behind whatever keeps them so",
                stacklevel=2,
            )

    def set_epoch(self, epoch: int) -> None:
        """Nothing: every crop is a new one."""

    def answer(self, pixel_values: Tensor) -> Tensor:
        return self._tap(pixel_values).float()

    def forward(self, pixel_values: Tensor, indices: Tensor | None = None) -> Tensor:
        """See `Features`."""
        return super().forward(pixel_values)

    def fingerprint(self) -> dict[str, Any]:
        """All that decides the features of an image, as plain values."""
        size = list(self.model.config.image_size)
        return {**super().fingerprint(), "tap": self.tap, "relu": self.relu, "size": size, "dim": self.dim}


class Crops:
    """A teacher's features of crops that are a function of seed, image and round.

    Args:
        images: the images that can be read.
        augmentation, config: of the training and of the student, whose image size and normalisation count.
        found: how many images there are, those included that cannot be read.

    Attributes:
        skipped: how many cannot be read.
    """

    def __init__(
        self,
        teacher: TappedTeacher,
        images: ImageDataset,
        augmentation: Augmentation | None,
        config: ReIDConfig,
        seed: int,
        found: int | None = None,
    ):
        self.teacher, self.images, self.augmentation, self.seed = teacher, images, augmentation, seed
        self.input = {"mean": config.image_mean, "std": config.image_std, "size": config.image_size}
        self._transform = BatchTransform(augmentation, **self.input)
        self.skipped = 0 if found is None else found - len(images)

    def __len__(self) -> int:
        return len(self.images)

    def represent(self, rows: Sequence[int], round: int = 0) -> Tensor:
        """(B,) rows -> float32 (B, D).

        Raises:
            ReIDError: if the model gives NaN or Inf.
        """
        batch = {name: tensor.to(self.teacher.model.device) for name, tensor in self.images.__getitems__(rows).items()}
        batch = self._transform.augment(batch, seed=self.seed, step=round, by_position=False)
        features = self.teacher(batch["pixel_values"])
        if not features.isfinite().all():
            name = self.teacher.model.name_or_path
            raise ReIDError(f"the teacher {name} gives NaN or Inf: its weights are broken, give another checkpoint")
        return features

    def mark(self) -> dict[str, Any]:
        """All that decides the features, as plain values."""
        return {
            **self.teacher.fingerprint(),
            "augmentation": None if self.augmentation is None else json.loads(json.dumps(asdict(self.augmentation))),
            "input": self.input,
            "kept_size": list(self.images.image_size),
            "interpolation": self.images.interpolation,
            "pictures": fingerprint(self.images.dataset),
            "seed": self.seed,
        }


def write_features(folder: str | Path, crops: Crops, rounds: int, *, shard_size: int = SHARD_SIZE, **options) -> None:
    """Store a teacher's features of `rounds` crops of each image; any number of processes, see `write_vectors`.

    Raises:
        ReIDError: if features of something else lie there.
    """
    for number in range(rounds):
        write_vectors(
            Path(folder) / f"round-{number}",
            crops.images.dataset["path"][:],
            {**crops.mark(), "round": number},
            lambda rows, number=number: crops.represent(rows, number),
            shard_size=shard_size,
            description=f"crops {number + 1} of {rounds}",
            **options,
        )


class CachedFeatures:
    """Features that `write_features` stored; the teacher is not asked any more. See `Features`.

    Args:
        rounds: crops of each image; epoch e takes those of round e mod `rounds`.
        paths: (N,) of the images, by the batch's `indices`.
        mark: of the crops.

    Raises:
        MissingError, ReIDError: see `StoredVectors`.
    """

    def __init__(self, folder: str | Path, rounds: int, paths: Sequence[str], mark: Mapping[str, Any]):
        self.crops, self._round = rounds, 0
        maker = "examples/kdep_pretrain.py --crops"
        self._stored = [
            StoredVectors(Path(folder) / f"round-{number}", {**mark, "round": number}, maker=maker)
            for number in range(rounds)
        ]
        self._rows = [stored.rows_of(paths) for stored in self._stored]
        self.dim = self._stored[0].dim

    def set_epoch(self, epoch: int) -> None:
        """Choose the crops of an epoch."""
        self._round = epoch % self.crops

    def __call__(self, pixel_values: Tensor | None, indices: Tensor) -> Tensor:
        rows = self._rows[self._round][indices.cpu()]
        vectors = self._stored[self._round][rows]
        return vectors if pixel_values is None else vectors.to(pixel_values.device, non_blocking=True)
