"""The principal directions of a teacher's features, in one pass over any number of them."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from reid_hub.errors import MissingError, ReIDError
from reid_hub.files import atomic_file
from reid_hub.methods.kdep.teacher import Crops
from reid_hub.methods.shards import share_work
from reid_hub.records import differences

_CHUNK = 1024  # rows to an update: fewer would be bound by the memory that the D x D sums go through
_ABOUT = "reid_hub"


class Moments:
    """Count, mean (D,) and scatter (D, D) of features, the sum of (x - mean) (x - mean)^T, in float64.

    Chunks, and the moments of several, are merged about their own means (Chan, Golub and LeVeque, "Updating Formulae
    and a Pairwise Algorithm for Computing Sample Variances", 1979), so features far from zero lose no digits.
    """

    def __init__(self, dim: int):
        self.count, self.mean = 0, torch.zeros(dim, dtype=torch.float64)
        self.scatter = torch.zeros(dim, dim, dtype=torch.float64)

    def add(self, features: Tensor) -> None:
        """Take in a chunk, (B, D)."""
        features = features.double().cpu()
        mean = features.mean(0)
        centred = features - mean
        self.scatter.addmm_(centred.T, centred)
        self._shift(len(features), mean)

    def merge(self, other: "Moments") -> "Moments":
        """Take in the features of others; returns itself."""
        self.scatter += other.scatter
        self._shift(other.count, other.mean)
        return self

    def _shift(self, count: int, mean: Tensor) -> None:
        """Account for the distance between the means of what was here and of `count` that came."""
        total, distance = self.count + count, mean - self.mean
        if total:
            self.scatter.addr_(distance, distance, alpha=self.count * count / total)
            self.mean += distance * (count / total)
        self.count = total

    @classmethod
    def of(cls, batches: Iterable[Tensor], dim: int) -> "Moments":
        """Moments of batches (B, D), taken in a thousand rows at a time."""
        moments, waiting = cls(dim), []
        for batch in batches:
            waiting.append(batch)
            if sum(map(len, waiting)) >= _CHUNK:
                moments.add(torch.cat(waiting))
                waiting = []
        if waiting:
            moments.add(torch.cat(waiting))
        return moments


@dataclass
class Basis:
    """Principal directions of a teacher's features; KDEP, arXiv:2203.05180: X - mu = U S V^T.

    Attributes:
        vectors: V, (D, D) float64, columns by decreasing singular value; of each, the largest entry is positive.
        mean: mu, (D,) float64.
        singular_values: S, (D,) float64.
        count: N, the number of features.
        about: what they were made of: the teacher's fingerprint, tap, images and augmentation, as plain values.
    """

    vectors: Tensor
    mean: Tensor
    singular_values: Tensor
    count: int
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def dim(self) -> int:
        """D."""
        return len(self.mean)

    def digest(self) -> str:
        """Of V, mu and S: which basis it is, wherever its file lies."""
        content = (tensor.contiguous().numpy().tobytes() for tensor in (self.vectors, self.mean, self.singular_values))
        return hashlib.sha256(b"".join(content)).hexdigest()[:16]

    @property
    def stds(self) -> Tensor:
        """Standard deviations of the features along the directions, (D,), decreasing: S / sqrt(N)."""
        return self.singular_values / self.count**0.5

    @property
    def channel_stds(self) -> Tensor:
        """Standard deviations of the teacher's own channels, (D,)."""
        return (self.vectors**2 @ self.stds**2).sqrt()

    @classmethod
    def from_moments(cls, moments: Moments, about: Mapping[str, Any] | None = None) -> "Basis":
        """By the eigenvectors of the scatter, which equal the right singular vectors of the centred features.

        Raises:
            ReIDError: if there are no more features than dimensions, or they are not finite.
        """
        count, dim = moments.count, len(moments.mean)
        if count <= dim:
            raise ReIDError(
                f"a basis of {dim} dimensions needs more features than that, much more to be a good one; got {count}: "
                "give more images, or a larger share of them"
            )
        if not moments.scatter.isfinite().all():
            raise ReIDError("the teacher's features are not finite, or too large: its weights are broken")
        values, vectors = torch.linalg.eigh(moments.scatter)
        values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
        largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
        return cls(vectors * largest.sign(), moments.mean.clone(), values.sqrt(), count, dict(about or {}))

    def save(self, path: str | Path) -> None:
        """Write V, mu, S and N as one safetensors file."""
        tensors = {"V": self.vectors.contiguous(), "mu": self.mean, "S": self.singular_values}
        tensors["N"] = torch.tensor(self.count)
        with atomic_file(path) as temporary:
            save_file(tensors, temporary, metadata={_ABOUT: json.dumps(self.about, sort_keys=True)})

    @classmethod
    def load(cls, path: str | Path, teacher: Mapping[str, Any] | None = None) -> "Basis":
        """Read what `save` wrote.

        Args:
            teacher: the fingerprint that it must be of, see `TappedTeacher.fingerprint`.

        Raises:
            MissingError: if there is no such file.
            ReIDError: if it is damaged or no basis, or that of another teacher.
        """
        if not Path(path).is_file():
            raise MissingError(f"no basis {path}: make it with `reid-hub pretrain basis`")
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads(file.metadata()[_ABOUT])
            tensors = load_file(path)
            basis = cls(tensors["V"], tensors["mu"], tensors["S"], int(tensors["N"]), about)
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ReIDError(f"{path} is damaged or no basis ({error}): make it again") from error
        if differing := differences({key: about.get(key) for key in teacher or {}}, teacher or {}):
            raise ReIDError(
                f"{path} is the basis of another teacher, or of another tap of it: {'; '.join(differing)}. Give the "
                "basis that belongs to the teacher, or make one in another file"
            )
        return basis


def fit_basis(
    path: str | Path,
    crops: Crops,
    about: Mapping[str, Any] | None = None,
    *,
    block_size: int | None = None,
    batch_size: int = 64,
    progress: bool = True,
) -> Basis:
    """One pass over the crops of a data set; the basis is written to `path`, or read where it is there already.

    The rows are cut into blocks, whose moments are kept beside `path` until all are there. Any number of processes
    share the blocks (see `share_work`), a killed run goes on behind the last one that is complete, and the result is
    the same to the last bit however many processes there were and whatever was killed.

    Args:
        about: further values to keep in the file.
        block_size: rows to a block; by default at most 32 blocks, none below 2048 rows.

    Raises:
        ReIDError: if there are no more crops than dimensions, before any is made, or the file is of another teacher.
    """
    path, dim, mark = Path(path), crops.teacher.dim, crops.mark()
    if path.is_file():
        return Basis.load(path, crops.teacher.fingerprint())
    if len(crops) <= dim:
        Basis.from_moments(_counted(len(crops), dim))  # says why not, and what to do
    block_size = block_size or max(2048, -(-len(crops) // 32))
    blocks = [range(start, min(start + block_size, len(crops))) for start in range(0, len(crops), block_size)]
    key = hashlib.sha256(json.dumps([mark, block_size], sort_keys=True).encode()).hexdigest()[:8]
    parts = path.with_name(f".{path.name}.{key}")
    files = [parts / f"{number:02d}.safetensors" for number in range(len(blocks))]

    def make(number: int) -> None:
        # Where the file is gone and the basis is there, another process has put all together already.
        if not files[number].is_file() and not path.is_file():
            rows = blocks[number]
            batches = (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))
            _write_moments(files[number], Moments.of((crops.represent(batch) for batch in batches), dim))

    with tqdm(total=len(crops), desc="basis", unit="img", disable=not progress) as bar:
        share_work(parts, [file.name for file in files], make, lambda number: bar.update(len(blocks[number])))
    with FileLock(path.with_name(f".{path.name}.lock")):
        if not path.is_file():
            moments = reduce(Moments.merge, map(_read_moments, files))
            Basis.from_moments(moments, {**mark, **(about or {})}).save(path)
        shutil.rmtree(parts, ignore_errors=True)
    return Basis.load(path, crops.teacher.fingerprint())


def _counted(count: int, dim: int) -> Moments:
    moments = Moments(dim)
    moments.count = count
    return moments


def _write_moments(path: Path, moments: Moments) -> None:
    tensors = {"count": torch.tensor(moments.count), "mean": moments.mean, "scatter": moments.scatter}
    with atomic_file(path) as temporary:
        save_file(tensors, temporary)


def _read_moments(path: Path) -> Moments:
    tensors = load_file(path)
    moments = Moments(len(tensors["mean"]))
    moments.count, moments.mean, moments.scatter = int(tensors["count"]), tensors["mean"], tensors["scatter"]
    return moments
