"""Images that are decoded once, stored as uint8 in a memory-mapped file, and read in batches."""

import json
import os
import shutil
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from reid_hub.compat import fingerprint
from reid_hub.data.decoding import decode_image
from reid_hub.data.records import NO_CAMERA
from reid_hub.errors import ReIDError, RunError
from reid_hub.files import atomic_folder
from reid_hub.registry import lookup

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_CHUNK = 64
_WORKERS = min(8, os.cpu_count() or 1)


class ImageDataset(torch.utils.data.Dataset):
    """One split of `load_reid_dataset` as batches of uint8 pixels.

    On first use every image is decoded and resized with Pillow, bit-equal to torchvision's `Resize` on PIL images, and
    written to a file below `cache_dir`; later uses map that file. Its name is made of the data set's fingerprint, the
    size and the filter, so overwriting images without changing the fingerprint goes unnoticed. Several processes may
    open the same split at once: one decodes, the others wait.

    Pass `collate_fn=ImageDataset.collate` to a DataLoader: a whole batch is read in one gather, so there is nothing
    left to collate.

    Attributes:
        dataset: the readable rows; its row i is item i here, and row `source_rows[i]` of the data set passed in.
        pids, camids: int64 arrays (N,).
        sizes: int64 (N, 2), height and width of the original images, for crops that keep their proportions; set by
            `training_images`.
    """

    sizes: np.ndarray | None = None

    def __init__(
        self,
        dataset,
        image_size: tuple[int, int],
        *,
        interpolation: str = "bilinear",
        resize_shortest: int | None = None,
        cache_dir: str | Path | None = None,
        max_bytes: int = 32 << 30,
        on_error: str = "raise",
        progress: bool = True,
    ):
        """Decode the split, or open the cached file.

        Args:
            dataset: a `datasets.Dataset` with the columns image, pid and camid, or image and label (used as the pid).
            image_size: (height, width) in pixels.
            interpolation: "bilinear" or "bicubic".
            resize_shortest: resize the shorter side to this length and take a centre crop of `image_size`, as
                torchvision does; None resizes to `image_size` directly.
            cache_dir: folder of the cache (default: `reid_hub` in the cache folder of `datasets`).
            max_bytes: a split that needs more is not stored; its images are decoded again for every batch.
            on_error: "raise" stops at images that cannot be read, "skip" leaves them out with one warning for all.

        Raises:
            ValueError: if an argument is invalid or an image is damaged.
            FileNotFoundError: if an image is missing.
            RuntimeError: if there is not enough disk space.
        """
        _check_rows(dataset)
        self.image_size = _check_size(image_size)
        self.interpolation = interpolation
        self.resize_shortest = resize_shortest
        self._filter = lookup(FILTERS, interpolation, "interpolation")
        self._skip = lookup({"raise": False, "skip": True}, on_error, "value of on_error")
        self._source = _undecoded(dataset)
        self._file: Path | None = None
        self._pixels: np.ndarray | None = None

        stored = len(dataset) * int(np.prod(self._shape)) <= max_bytes
        errors = {}
        if stored or self._skip:
            kind = f"{'x'.join(map(str, image_size))}-{interpolation}"
            kind += f"-shortest{resize_shortest}" if resize_shortest else ""
            folder = _cache_root(cache_dir) / f"{fingerprint(dataset)}-{kind}"
            errors = self._prepare(folder, stored, progress)
            self._file = folder / "images.npy" if stored else None
        self.source_rows = np.setdiff1d(np.arange(len(dataset)), list(errors)).astype(np.int64)
        self.dataset = dataset.select(self.source_rows) if errors else dataset
        columns = self.dataset.remove_columns("image").with_format("numpy")
        self.pids = np.asarray(columns["label" if "label" in columns.column_names else "pid"][:], dtype=np.int64)
        self.camids = np.full_like(self.pids, NO_CAMERA)
        if "camid" in columns.column_names:
            self.camids = np.asarray(columns["camid"][:], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.source_rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One item, without the batch dimension."""
        return {name: values[0] for name, values in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """A batch: pixel_values uint8 (B, 3, H, W); pids, camids and indices int64 (B,); sizes (B, 2) if known."""
        items = np.asarray(indices, dtype=np.int64)
        rows = self.source_rows[items]
        if self._file is None:
            pixels, _ = self._decode(rows)
        else:
            if self._pixels is None:
                self._pixels = np.load(self._file, mmap_mode="r")
            pixels = np.take(self._pixels, rows, axis=0)
        sizes = {} if self.sizes is None else {"sizes": self.sizes[items]}
        arrays = {**sizes, "pixel_values": pixels, "pids": self.pids[items], "camids": self.camids[items]}
        return {name: torch.from_numpy(np.asarray(array)) for name, array in (arrays | {"indices": items}).items()}

    @staticmethod
    def collate(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the batch of `__getitems__` unchanged."""
        return batch

    def __getstate__(self) -> dict:
        # Pickling a memory map copies all its bytes; each worker process opens the file itself.
        return self.__dict__ | {"_pixels": None}

    @property
    def _shape(self) -> tuple[int, int, int]:
        return (3, *self.image_size)

    def _prepare(self, folder: Path, stored: bool, progress: bool) -> dict[int, str]:
        """Make sure that `folder` is complete; return the unreadable rows with the reasons."""
        from filelock import FileLock

        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not self._is_complete(folder, stored):
                for leftover in folder.parent.glob(f".{folder.name}.*"):  # from a killed process
                    shutil.rmtree(leftover)
                self._build(folder, stored, progress)
        errors = {int(row): reason for row, reason in json.loads((folder / "errors.json").read_text()).items()}
        if not errors:
            return errors
        reasons = "\n".join(list(errors.values())[:5])
        count = f"{len(errors):,} of {len(self._source):,} images cannot be read"
        if len(errors) == len(self._source):
            raise ReIDError(f"{count}, so no image is left; the first reasons:\n{reasons}")
        if not self._skip:
            raise ReIDError(f"{count}: repair them or pass on_error='skip'; the first reasons:\n{reasons}")
        warnings.warn(f"{count} and are left out; the first reasons:\n{reasons}", stacklevel=3)
        return errors

    def _is_complete(self, folder: Path, stored: bool) -> bool:
        if not (folder / "errors.json").is_file():
            return False
        if not stored:
            return True
        try:
            pixels = np.load(folder / "images.npy", mmap_mode="r")  # refuses a file shorter than its header says
        except (OSError, ValueError, EOFError):  # missing, truncated or empty file
            return False
        return pixels.dtype == np.uint8 and pixels.shape == (len(self._source), *self._shape)

    def _build(self, folder: Path, stored: bool, progress: bool) -> None:
        count = len(self._source)
        needed, free = count * int(np.prod(self._shape)), shutil.disk_usage(folder.parent).free
        if stored and needed > free:
            raise RunError(
                f"{count:,} decoded images take {needed / 1e9:.1f} GB, {folder.parent} has {free / 1e9:.1f} GB; "
                "make room, pass another cache_dir, or max_bytes=0 to decode for every batch (slower)"
            )
        bar = tqdm(
            total=count, desc=f"decode images ({'x'.join(map(str, self.image_size))})", unit="img", disable=not progress
        )
        errors: dict[int, str] = {}
        with atomic_folder(folder) as temporary, (temporary / "images.npy").open("wb") as file, bar:
            # Write sequentially, not through a memory map: a full disk then raises an error instead of a bus error.
            header = {"descr": "|u1", "fortran_order": False, "shape": (count, *self._shape)}
            np.lib.format.write_array_header_1_0(file, header)
            for pixels, problems in self._decode_all():
                errors |= problems
                if stored:
                    file.write(pixels.data)
                bar.update(len(pixels))
            if not stored:
                (temporary / "images.npy").unlink()
            (temporary / "errors.json").write_text(json.dumps(errors))

    def _decode_all(self) -> Iterator[tuple[np.ndarray, dict[int, str]]]:
        """Decode in threads (Pillow releases the GIL), in order, a bounded number of chunks ahead."""
        pending: deque[Future] = deque()
        with ThreadPoolExecutor(_WORKERS) as pool:
            for start in range(0, len(self._source), _CHUNK):
                rows = np.arange(start, min(start + _CHUNK, len(self._source)))
                pending.append(pool.submit(self._decode, rows))
                if len(pending) > 2 * _WORKERS:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()

    def _decode(self, rows: np.ndarray) -> tuple[np.ndarray, dict[int, str]]:
        """Decode rows of the source: uint8 (n, 3, H, W), and {row: reason} for unreadable rows, which stay zero."""
        pixels, errors = np.zeros((len(rows), *self._shape), dtype=np.uint8), {}
        batch = self._source[rows]
        names = batch.get("path", [None] * len(rows))
        for out, row, source, name in zip(pixels, rows, batch["image"], names, strict=True):
            try:
                image = decode_image(source, name)
            except (ValueError, FileNotFoundError) as error:
                if not self._skip:
                    raise type(error)(f"{error} (or pass on_error='skip' to leave such images out)") from error
                errors[int(row)] = str(error)
            else:
                out[:] = np.asarray(self._resized(image)).transpose(2, 0, 1)
        return pixels, errors

    def _resized(self, image: Image.Image) -> Image.Image:
        height, width = self.image_size
        if self.resize_shortest is None:
            return image.resize((width, height), self._filter)
        shortest = min(image.size)
        image = image.resize([int(self.resize_shortest * side / shortest) for side in image.size], self._filter)
        left, top = (round((side - crop) / 2) for side, crop in zip(image.size, (width, height), strict=True))
        return image.crop((left, top, left + width, top + height))


def _check_rows(dataset) -> None:
    from datasets import Dataset

    if not isinstance(dataset, Dataset):
        raise ReIDError(
            f"dataset must be one split, a datasets.Dataset, got {type(dataset).__name__}; take one: splits['train']"
        )
    missing = {"image", "pid", "camid"} - set(dataset.column_names)
    if missing and not {"image", "label"} <= set(dataset.column_names):
        raise ReIDError(
            f"dataset must have the columns image, pid and camid (or label); {sorted(missing)} missing: {dataset}"
        )
    if not len(dataset):
        raise ReIDError("dataset has no images; check the folder it was loaded from")


def _check_size(image_size: Sequence[int]) -> tuple[int, int]:
    size = tuple(image_size) if isinstance(image_size, Sequence) else ()
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise ReIDError(f"image_size must be (height, width) in whole pixels, got {image_size}")
    return size


def _undecoded(dataset):
    from datasets import Image as ImageFeature

    columns = [name for name in ("image", "path") if name in dataset.column_names]
    return dataset.select_columns(columns).with_format(None).cast_column("image", ImageFeature(decode=False))


def _cache_root(cache_dir: str | Path | None) -> Path:
    if cache_dir is not None:
        return Path(cache_dir)
    from datasets import config

    return Path(config.HF_DATASETS_CACHE) / "reid_hub"
