"""Index a folder of images as a gallery, and search it with query images."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from reid_hub.data import decode_image
from reid_hub.errors import MissingError, ReIDError
from reid_hub.evaluation import plot_answers
from reid_hub.files import inside
from reid_hub.index import GalleryIndex
from reid_hub.models import ReIDModel
from reid_hub.models.codes import STORED_AS
from reid_hub.registry import lookup
from reid_hub.runs.calibrate import decision_of
from reid_hub.runs.options import Part, Settings, option
from reid_hub.runs.settings import DataArguments, EmbeddingArguments

CAMERA = "Regular expression whose first group is the camera's number in an image's path."


@dataclass(frozen=True)
class GalleryArguments(Part):
    """A folder of images and the index of it."""

    gallery: str = option(None, "Folder of images; their ids are the paths below it.", argument=True)
    model: str = option(None, "Checkpoint folder or NAMESPACE/NAME that embeds the images.", required=True)
    out: str = option(None, "Folder of the index.", required=True)
    camera_pattern: str | None = option(None, CAMERA)


@dataclass(frozen=True)
class CodecArguments(Part):
    """How an index stores vectors."""

    codec: str | None = option(None, "float32, float16, int8, binary, binary+float16, ... (default: by the model).")


@dataclass(frozen=True)
class IndexAddSettings(Settings):
    """The settings of `reid-hub index add`."""

    gallery: GalleryArguments = GalleryArguments()
    embedding: EmbeddingArguments = EmbeddingArguments(flip=True)


@dataclass(frozen=True)
class IndexBuildSettings(IndexAddSettings):
    """The settings of `reid-hub index build`."""

    storage: CodecArguments = CodecArguments()


@dataclass(frozen=True)
class SearchArguments(Part):
    """The index, and the query images."""

    index: str = option(None, "Folder written by `reid-hub index build`.", argument=True)
    query: list[str] = option(list, "Images to search for.", argument=True)
    model: str = option(None, "The model that the index was built with.", required=True)
    top: int = option(10, "Number of results per query.")
    exclude_camera: int | None = option(None, "Exclude images of this camera.")
    gallery: str | None = option(None, "The folder that was indexed, for --plot.")
    plot: str | None = option(None, "Draw the results to this file.")


@dataclass(frozen=True)
class SearchSettings(Settings):
    """The settings of `reid-hub search`."""

    search: SearchArguments = SearchArguments()
    embedding: EmbeddingArguments = EmbeddingArguments(flip=True)


@dataclass(frozen=True)
class DatabaseArguments(Part):
    """The database of a gallery, and the number of results."""

    model: str = option("runs/supervised", "Checkpoint folder or NAMESPACE/NAME that embeds the images.")
    uri: str = option("people.db", "Address of a server, or a path that ends in .db.")
    collection: str = option("gallery", "Name of the collection in the database.")
    top: int = option(10, "Number of results per query.")


@dataclass(frozen=True)
class DatabaseSettings(Settings):
    """A data set's gallery in a vector database, see `reid_hub.index.DatabaseIndex`."""

    data: DataArguments = DataArguments()
    database: DatabaseArguments = DatabaseArguments()


SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def find_images(folder: str | Path) -> list[Path]:
    """All images below a folder, sorted, as paths relative to it.

    Raises:
        FileNotFoundError: if there is no such folder, or no image in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MissingError(f"no folder {folder}: give one with the gallery's images")
    found = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise MissingError(f"no images below {folder}: looked for {', '.join(sorted(SUFFIXES))}")
    return found


def new_index(model: ReIDModel, codec: str, **options: Any) -> GalleryIndex:
    """Create an empty index for a model's vectors before its quantiser, with its scale and centre.

    Args:
        codec: of `STORED_AS`; "binary+float16" keeps float16 beside the bits.
        options: of `GalleryIndex`.
    """
    lookup(dict.fromkeys(STORED_AS), codec, "codec")
    first, *second = map(model.codec, codec.split("+"))
    rescore = second[0] if second else None
    return GalleryIndex(model.embedding_dim, first, fingerprint=model.fingerprint(), rescore=rescore, **options)


def encode_for(index: GalleryIndex, model: ReIDModel, images: Sequence, **options: Any) -> np.ndarray:
    """Images as an index takes them: the model's own int8 codes, or vectors; for all options see `encode`."""
    precision = "int8" if index.codec.name == "int8" else "float32"
    return model.encode(images, precision=precision, **options)


def build_index(
    folder: str | Path,
    model: ReIDModel,
    out: str | Path,
    *,
    codec: str | None = None,
    add: bool = False,
    camera_pattern: str | None = None,
    flip: bool = True,
    batch_size: int = 64,
) -> tuple[GalleryIndex, int, list[str]]:
    """Embed every readable image of a folder and save the index; the ids are the paths below the folder.

    Args:
        codec: see `new_index`; by default "int8" for a model that was quantised, else "float32".
        add: add images to the existing index in `out` that it does not contain yet.
        camera_pattern: a regular expression; its first group, found in a path, is the camera's number.

    Returns:
        The index, the number of images that were added, and why others could not be read.

    Raises:
        ValueError: if no image can be read, a path does not fit the pattern, or `out` is another model's index.
    """
    if add:
        index = GalleryIndex.load(out, fingerprint=model.fingerprint())
    else:
        index = new_index(model, codec or model.precision)
    found, skipped, before = [str(path) for path in find_images(folder)], [], len(index)
    names = [name for name in found if name not in index]
    cameras = None if camera_pattern is None else {name: _camera(name, camera_pattern) for name in names}
    for start in range(0, len(names), batch_size * 8):
        images, ids = [], []
        for name in names[start : start + batch_size * 8]:
            try:
                images.append(decode_image(Path(folder) / name))
                ids.append(name)
            except ValueError as error:
                skipped.append(str(error))
        if ids:
            camids = None if cameras is None else [cameras[name] for name in ids]
            index.add(encode_for(index, model, images, flip=flip, batch_size=batch_size, progress=True), ids, camids)
    if not len(index):
        raise ReIDError(f"none of the {len(found)} images below {folder} can be read; the first: {skipped[0]}")
    index.save(out)
    return index, len(index) - before, skipped


def _camera(name: str, pattern: str) -> int:
    match = re.search(pattern, name)
    if match is None or not match.groups() or not match[1].isdigit():
        raise ReIDError(f"the camera pattern {pattern!r} must find a number in every path as its first group: {name!r}")
    return int(match[1])


class Answer(NamedTuple):
    """Search results: distances and ids, each (Q, K), nearest first.

    `verdicts` (Q, K) are "match" or "no match" if the model has a valid threshold, else "".
    `note` says why the model's threshold is not valid.
    """

    distances: np.ndarray
    ids: np.ndarray
    verdicts: np.ndarray
    note: str


def search_index(
    index_dir: str | Path,
    model: ReIDModel,
    queries: Sequence[str | Path],
    *,
    top: int = 10,
    exclude_camera: int | None = None,
    flip: bool = True,
    gallery_dir: str | Path | None = None,
    plot: str | Path | None = None,
) -> Answer:
    """Search an index for query images.

    Args:
        exclude_camera: excludes this camera's images, in an index with cameras.
        gallery_dir: the folder that was indexed, needed to draw the `plot` of the answer.

    Raises:
        ValueError: if the index was made by another model, or a query cannot be read.
    """
    if top < 1:
        raise ReIDError(f"top must be at least 1, got {top}")
    index = GalleryIndex.load(index_dir, fingerprint=model.fingerprint())
    images = [decode_image(query) for query in queries]
    excluded = None if exclude_camera is None else [exclude_camera] * len(images)
    distances, ids = index.search(encode_for(index, model, images, flip=flip), top, exclude_camids=excluded)
    decision, note = decision_of(model, index, flip)
    verdicts = np.full(distances.shape, "", "<U8")
    if decision is not None:
        verdicts = np.where(decision.matches(distances), "match", "no match")
    if plot is not None:
        if gallery_dir is None:
            raise ReIDError("a plot of the answers needs the gallery's folder: give gallery_dir")
        found = [[decode_image(inside(gallery_dir, name)) for name in row if name] for row in ids]
        captions = [
            [f"{_short(name)}\n{distance:.3f} {verdict}".strip() for name, distance, verdict in zip(*row, strict=True)]
            for row in zip(ids, distances, verdicts, strict=True)
        ]
        captions = [row[: len(answers)] for row, answers in zip(captions, found, strict=True)]  # fewer than asked for
        plot_answers(plot, images, found, captions)
    return Answer(distances, ids, verdicts, note)


def _short(name: str | None, room: int = 11) -> str:
    """As much of an image's name as fits under it; the end tells images of one folder apart."""
    stem = Path(name or "").stem
    return stem if len(stem) <= room else f"…{stem[1 - room :]}"
