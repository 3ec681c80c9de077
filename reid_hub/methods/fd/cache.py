"""Supervisory representations on the disk: safetensors shards of each view, made once, by any number of processes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from reid_hub.data.describe import digest_images
from reid_hub.data.views import View
from reid_hub.errors import ReIDError
from reid_hub.methods.fd.representations import ViewTeacher
from reid_hub.methods.shards import SHARD_SIZE, StoredVectors, check_paths, write_vectors


def write_representations(
    folder: str | Path,
    teacher: ViewTeacher,
    *,
    shard_size: int = SHARD_SIZE,
    batch_size: int = 64,
    progress: bool = True,
) -> None:
    """Store what a teacher says of all images, in FOLDER/VIEW/NUMBER-of-COUNT.safetensors.

    Any number of processes may call this at once, under `accelerate launch` or by themselves: each makes the shards
    that no other is at, and all return when the last is there. Shards that are there and sound are kept, so a killed
    run goes on; damaged ones are made anew.

    Raises:
        ReIDError: if shards of another teacher, view or data set lie there, or of another size.
    """
    options = {"shard_size": shard_size, "batch_size": batch_size, "progress": progress}
    write_vectors(
        Path(folder) / teacher.view.name,
        teacher.split["path"][:],
        teacher.fingerprint(),
        teacher.represent,
        description=f"view {teacher.view.name}",
        **options,
    )


class CachedRepresentations:
    """Representations that `write_representations` stored, read through memory maps. See `Representations`.

    All is verified when it is opened: that no shard is missing or damaged, and that views, images and, where they are
    given, teachers are those that the representations were made with.

    Args:
        views: what to read; the cache may have more.
        split: the training images, whole and in any order.
        teachers: fingerprints of teachers by view.

    Raises:
        MissingError: if a view or a shard is missing.
        ReIDError: if a shard is damaged, or something does not belong together; the message says what.
    """

    def __init__(self, folder: str | Path, views: Sequence[View], split, *, teachers: Mapping[str, str] | None = None):
        self.views, self.paths = tuple(views), split["path"][:]
        check_paths(self.paths)
        images, self._stored, self.identities, self.fingerprints = digest_images(split), [], None, {}
        for view in self.views:
            target = Path(folder) / view.name
            expected = {"view": view.describe(self.paths if view.region else ())}
            if teachers and view.name in teachers:
                expected["teacher"] = teachers[view.name]
            stored = StoredVectors(target, expected, maker="examples/fd_cache.py")
            try:
                rows = stored.rows_of(self.paths)
            except ValueError as error:
                raise ReIDError(
                    f"{target} has {error}: it was made of another data set; make one of this data set in another "
                    "folder"
                ) from None
            if stored.mark["pictures"] != images:
                raise ReIDError(
                    f"{target} was made of {len(stored.paths)} other images (digest {stored.mark['pictures']}) than "
                    f"these {len(self.paths)} ({images}): make one of this data set in another folder"
                )
            self._check_identities(view, stored.mark["identities"])
            self.fingerprints[view.name] = stored.mark["teacher"]
            self._stored.append((stored, rows))
        self.dims = tuple(stored.dim for stored, _ in self._stored)

    def __getitem__(self, indices: Tensor) -> list[Tensor]:
        return [stored[rows[indices.cpu()]] for stored, rows in self._stored]

    def _check_identities(self, view: View, identities: list[int] | None) -> None:
        if identities is None:
            return
        if self.identities not in (None, identities):
            raise ReIDError(
                f"the teacher of view {view.name!r} was trained on {len(identities)} identities, another one on "
                f"{len(self.identities)} or others: train all of them on the same"
            )
        self.identities = identities
