"""Samplers that yield whole batches in an order determined by (seed, epoch)."""

import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from reid_hub.errors import ReIDError


class _EpochSampler(torch.utils.data.Sampler[int]):
    """An epoch is a matrix (batches, batch_size) of indices, drawn from (seed, epoch) and yielded row by row.

    Every process must iterate over the same order. If process r of W takes the batches r, r + W, r + 2W, ..., as
    Accelerate's `BatchSamplerShard` does, no image is seen twice. There is deliberately no attribute `generator`:
    Accelerate would replace it.
    """

    batch_size: int
    num_batches: int

    def __init__(self, seed: int, num_processes: int):
        if seed < 0 or num_processes < 1:
            raise ReIDError(f"seed must be at least 0 and num_processes at least 1, got {seed} and {num_processes}")
        self.seed = seed
        self.num_processes = num_processes
        self.epoch = 0

    def __len__(self) -> int:
        return self.num_batches * self.batch_size

    def __iter__(self) -> Iterator[int]:
        random = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, self.epoch])))
        for batch in self._plan(random):
            yield from batch.tolist()

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self.epoch = epoch

    def _plan(self, random: np.random.Generator) -> np.ndarray:
        raise NotImplementedError


class ShuffleSampler(_EpochSampler):
    """All indices in random order, in whole batches only; each epoch drops a different remainder.

    Args:
        num_images: number of images.
        num_processes: the number of batches is a multiple of it.

    Raises:
        ValueError: if there are too few images for one batch per process.
    """

    def __init__(self, num_images: int, batch_size: int, *, seed: int, num_processes: int = 1):
        super().__init__(seed, num_processes)
        if batch_size < 1:
            raise ReIDError(f"batch_size must be at least 1, got {batch_size}")
        self.num_images = num_images
        self.batch_size = batch_size
        self.num_batches = num_images // batch_size // num_processes * num_processes
        if not self.num_batches:
            raise ReIDError(
                f"{num_images} images make no batch of {batch_size} for each of {num_processes} process(es): "
                "choose a smaller batch or fewer processes"
            )

    def _plan(self, random: np.random.Generator) -> np.ndarray:
        return random.permutation(self.num_images)[: len(self)].reshape(self.num_batches, self.batch_size)


class IdentitySampler(_EpochSampler):
    """Batches of P identities x K images each, every image at most once per epoch.

    The images of an identity are shuffled and split into groups of K; each epoch drops a different remainder. An
    identity with fewer than K images gives one group, drawn with replacement. The number of batches B is the largest
    for which the groups, at most B per identity, fill P x B places; surplus groups are dropped at random. The others
    are packed so that every batch holds P different identities. Length and composition are exact.

    The published sampler (Bag of Tricks, OSKT) draws P random identities with groups left until fewer than P remain,
    so its end is random and its length is overestimated. The groups here are the same, but no image is lost at the end,
    and the length is known and constant.

    Args:
        pids: (N,) identity of every image; images with a negative pid (junk) are never drawn.
        num_ids, num_instances: P and K.
        num_processes: the number of batches is a multiple of it.
        once: use at most one group per identity and epoch, with different images in each epoch, as MGN
            (arXiv:1804.01438) does.

    Attributes:
        num_single: number of identities with a single image, which is repeated K times.

    Raises:
        ValueError: if there are fewer than P identities, or too few groups for one batch per process.
    """

    def __init__(
        self,
        pids: Sequence[int],
        num_ids: int,
        num_instances: int,
        *,
        seed: int,
        num_processes: int = 1,
        once: bool = False,
    ):
        super().__init__(seed, num_processes)
        if num_ids < 1 or num_instances < 1:
            raise ReIDError(f"num_ids and num_instances must be at least 1, got {num_ids} and {num_instances}")
        numbers = np.asarray(pids, dtype=np.int64)
        self.num_ids = num_ids
        self.num_instances = num_instances
        self.batch_size = num_ids * num_instances
        self._images = np.flatnonzero(numbers >= 0)
        _, self._identity, self._sizes = np.unique(numbers[self._images], return_inverse=True, return_counts=True)
        self._groups = np.ones_like(self._sizes) if once else np.maximum(self._sizes // num_instances, 1)
        self.num_batches = _most_batches(self._groups, num_ids) // num_processes * num_processes
        if not self.num_batches:
            raise ReIDError(
                f"{len(self._sizes)} identities with {self._groups.sum()} groups of {num_instances} images make no "
                f"batch of {num_ids} identities for each of {num_processes} process(es): choose a smaller num_ids or "
                "num_instances, or fewer processes"
            )
        self.num_single = int((self._sizes == 1).sum())
        if self.num_single and num_instances > 1:
            warnings.warn(
                f"{self.num_single} of {len(self._sizes)} identities have a single image, which is repeated "
                f"{num_instances} times in their groups",
                stacklevel=2,
            )

    def _plan(self, random: np.random.Generator) -> np.ndarray:
        taken = self._take_groups(random)
        order = random.permutation(len(taken))
        taken = taken[order]
        identity = np.repeat(order, taken)
        ordinal = np.arange(len(identity)) - np.repeat(np.cumsum(taken) - taken, taken)
        batch_of = _assign_batches(identity.reshape(self.num_ids, self.num_batches), random)
        plan = np.empty((self.num_batches, self.num_ids, self.num_instances), dtype=np.int64)
        plan[batch_of, np.arange(self.num_ids)[:, None]] = self._draw_images(identity, ordinal, random).reshape(
            self.num_ids, self.num_batches, self.num_instances
        )
        return plan.reshape(self.num_batches, self.batch_size)

    def _take_groups(self, random: np.random.Generator) -> np.ndarray:
        """Number of groups of each identity in this epoch, (ids,): at most B each, P x B in total, chosen at random."""
        available = np.minimum(self._groups, self.num_batches)
        groups = np.repeat(np.arange(len(available)), available)
        chosen = random.permutation(groups)[: self.num_ids * self.num_batches]
        return np.bincount(chosen, minlength=len(available))

    def _draw_images(self, identity: np.ndarray, ordinal: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """The images of group number `ordinal` of each identity, (groups,) -> (groups, K)."""
        shuffled = random.permutation(len(self._images))
        shuffled = shuffled[np.argsort(self._identity[shuffled], kind="stable")]
        size = self._sizes[identity][:, None]
        within = ordinal[:, None] * self.num_instances + np.arange(self.num_instances)
        resampled = random.integers(size, size=within.shape)
        within = np.where(size < self.num_instances, resampled, within)
        first = np.cumsum(self._sizes) - self._sizes
        return self._images[shuffled[first[identity][:, None] + within]]


def _most_batches(groups: np.ndarray, num_ids: int) -> int:
    """The largest B with sum(min(groups, B)) >= num_ids * B.

    The difference of the two sides is concave in B and zero at B = 0, so it is non-negative exactly up to some B.
    """
    low, high = 0, int(groups.sum()) // num_ids
    while low < high:
        middle = (low + high + 1) // 2
        if np.minimum(groups, middle).sum() >= num_ids * middle:
            low = middle
        else:
            high = middle - 1
    return low


def _assign_batches(identity: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Assign groups to batches: every row of (P, B) is a permutation of 0..B-1, no identity occurs twice in a batch.

    The groups of an identity are consecutive and at most B. Either all are in one row, where any permutation separates
    them, or they continue from the end of one row at the beginning of the next; then the beginning is drawn from the
    batches that the end does not use.
    """
    rows, batches = identity.shape
    batch_of = np.empty((rows, batches), dtype=np.int64)
    for row in range(rows):
        order = random.permutation(batches)
        if row and identity[row, 0] == identity[row - 1, -1]:
            straddler = identity[row, 0]
            used = batch_of[row - 1][identity[row - 1] == straddler]
            beginning = order[~np.isin(order, used)][: (identity[row] == straddler).sum()]
            order = np.concatenate([beginning, random.permutation(np.setdiff1d(order, beginning))])
        batch_of[row] = order
    return batch_of
