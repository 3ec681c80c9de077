import warnings
from collections import Counter

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard, prepare_data_loader
from torch.utils.data import BatchSampler, DataLoader

from reid_hub.data.samplers import IdentitySampler, ShuffleSampler

pytestmark = pytest.mark.filterwarnings("ignore:.*have a single image")


def most_batches_by_search(sizes, num_ids, num_instances):
    """The largest B for which identities with at most B groups each fill num_ids x B places, tried one by one."""
    groups = [max(size // num_instances, 1) for size in sizes]
    return max(b for b in range(sum(groups) + 1) if sum(min(g, b) for g in groups) >= num_ids * b)


def random_histograms():
    """Image counts per identity of many kinds: equal, long-tailed, one giant, all tiny."""
    random = np.random.default_rng(5)
    for _ in range(120):
        num_ids, num_instances = int(random.integers(1, 7)), int(random.integers(1, 6))
        count = num_ids + int(random.integers(0, 12))
        sizes = (
            np.full(count, random.integers(1, 9)),
            random.geometric(0.15, count),
            np.append(random.integers(1, 5, count - 1), 200),
            random.integers(1, num_instances + 1, count),
        )[random.integers(4)]
        yield sizes.tolist(), num_ids, num_instances, int(random.integers(1, 3))


def shuffled_pids(sizes, junk=0, seed=0):
    """Identities with gaps in their numbers, in mixed order, with junk between."""
    pids = np.concatenate([np.repeat(3 * np.arange(len(sizes)) + 2, sizes), np.full(junk, -1)])
    return np.random.default_rng(seed).permutation(pids)


def test_every_batch_holds_p_identities_of_k_images_and_no_image_twice():
    tried = 0
    for sizes, num_ids, num_instances, processes in random_histograms():
        pids = shuffled_pids(sizes, junk=4)
        expected = most_batches_by_search(sizes, num_ids, num_instances) // processes * processes
        if not expected:
            continue
        tried += 1
        sampler = IdentitySampler(pids, num_ids, num_instances, seed=1, num_processes=processes)
        for epoch in range(3):
            sampler.set_epoch(epoch)
            indices = list(sampler)
            assert len(sampler) == len(indices) == expected * num_ids * num_instances
            assert all(type(index) is int for index in indices)
            for batch in np.reshape(indices, (expected, num_ids, num_instances)):
                assert all(len(set(pids[instances])) == 1 for instances in batch)
                assert len(set(pids[batch[:, 0]])) == num_ids
            assert -1 not in pids[indices]
            images_of = Counter(pids.tolist())
            large = [index for index in indices if images_of[pids[index]] >= num_instances]
            assert len(large) == len(set(large))
            groups = Counter(pids[indices].tolist())
            small = [pid for pid in groups if images_of[pid] < num_instances]
            assert all(groups[pid] == num_instances for pid in small)
    assert tried > 80


def test_published_sizes_give_every_whole_group_away():
    # 751 identities as in Market-1501: the tail is long, but no identity has more groups than there are batches, so
    # at most P - 1 groups can be left over.
    sizes = np.random.default_rng(0).integers(2, 72, 751)
    sampler = IdentitySampler(np.repeat(np.arange(751), sizes), 16, 4, seed=0)
    assert np.maximum(sizes // 4, 1).sum() // 16 * 64 == len(sampler)


def test_order_depends_on_seed_and_epoch_only():
    pids = shuffled_pids([9, 4, 7, 12, 5, 6])

    def order(seed, epoch):
        sampler = IdentitySampler(pids, 3, 2, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    first = IdentitySampler(pids, 3, 2, seed=7)
    list(first)
    first.set_epoch(4)
    assert list(first) == list(first) == order(7, 4)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
    # (1, 0) and (0, 1) would collide if the two were added
    assert order(1, 0) != order(0, 1)


def test_over_the_epochs_every_image_and_every_pair_of_identities_has_its_turn():
    pids = np.repeat(np.arange(5), [5, 5, 5, 5, 5])
    sampler = IdentitySampler(pids, 2, 2, seed=3)
    images, pairs, epochs = Counter(), Counter(), 400
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        indices = list(sampler)
        images.update(indices)
        pairs.update(tuple(sorted(set(pids[batch]))) for batch in np.reshape(indices, (-1, 4)))
    # 10 groups fill 5 batches: 20 of 25 images an epoch, and 5 of the 10 pairs on average once in two epochs
    assert sum(images.values()) == 20 * epochs
    assert all(abs(images[i] / epochs - 0.8) < 0.08 for i in range(25))
    assert len(pairs) == 10
    assert all(abs(count / epochs - 0.5) < 0.12 for count in pairs.values())


def test_small_identities_are_drawn_with_replacement():
    pids = np.array([0, 0, 1, 1, 1, 1, 2])
    sampler = IdentitySampler(pids, 3, 4, seed=0)
    seen = set()
    for epoch in range(200):
        sampler.set_epoch(epoch)
        by_identity = {int(pids[group[0]]): group.tolist() for group in np.reshape(list(sampler), (3, 4))}
        assert sorted(by_identity[1]) == [2, 3, 4, 5]
        assert by_identity[2] == [6, 6, 6, 6]
        seen.add(by_identity[0].count(0))
    assert seen == {0, 1, 2, 3, 4}


def test_identities_with_one_image_are_counted_and_reported():
    with pytest.warns(UserWarning, match="2 of 4 identities have a single image"):
        sampler = IdentitySampler([0, 1, 1, 2, 3, 3, -1], 2, 2, seed=0)
    assert sampler.num_single == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert IdentitySampler([0, 0, 1, 1, -1], 2, 2, seed=0).num_single == 0


@pytest.mark.parametrize("kind", ["identity", "shuffle"])
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_of_accelerate_take_whole_disjoint_batches(kind, processes):
    pids = shuffled_pids([11, 5, 8, 4, 9, 6, 7, 13, 4])

    def batches(rank):
        sampler = (
            IdentitySampler(pids, 2, 2, seed=5, num_processes=processes)
            if kind == "identity"
            else ShuffleSampler(len(pids), 4, seed=5, num_processes=processes)
        )
        sampler.set_epoch(2)
        return list(BatchSamplerShard(BatchSampler(sampler, 4, drop_last=False), processes, rank)), list(sampler)

    shards = [batches(rank)[0] for rank in range(processes)]
    order = batches(0)[1]
    assert len({len(shard) for shard in shards}) == 1
    together = [index for turn in zip(*shards, strict=True) for batch in turn for index in batch]
    assert together == order
    assert len(set(together)) == len(together)
    if kind == "identity":
        for batch in np.concatenate(shards):
            assert sorted(Counter(pids[batch].tolist()).values()) == [2, 2]


def test_accelerates_loader_passes_the_epoch_on():
    sampler = IdentitySampler(shuffled_pids([8] * 6), 3, 2, seed=0, num_processes=2)
    loader = DataLoader(range(48), batch_sampler=BatchSampler(sampler, 6, drop_last=False), collate_fn=list)
    prepared = prepare_data_loader(loader, num_processes=2, process_index=1)
    prepared.set_epoch(3)
    seen = list(prepared)
    sampler.set_epoch(3)
    assert seen == np.reshape(list(sampler), (-1, 6))[1::2].tolist()
    sampler.set_epoch(0)
    assert seen != np.reshape(list(sampler), (-1, 6))[1::2].tolist()


@pytest.mark.parametrize(("count", "batch_size", "processes"), [(10, 3, 1), (10, 3, 2), (64, 8, 3), (5, 5, 1)])
def test_shuffle_sampler_gives_whole_batches_without_repetition(count, batch_size, processes):
    sampler = ShuffleSampler(count, batch_size, seed=0, num_processes=processes)
    left_out = set()
    for epoch in range(60):
        sampler.set_epoch(epoch)
        indices = list(sampler)
        assert len(sampler) == len(indices) == count // (batch_size * processes) * batch_size * processes
        assert len(set(indices)) == len(indices)
        assert set(indices) <= set(range(count))
        left_out |= set(range(count)) - set(indices)
    assert left_out == (set() if len(sampler) == count else set(range(count)))


def test_samplers_have_no_attribute_that_accelerate_replaces():
    for sampler in (IdentitySampler([0, 0, 1, 1], 2, 2, seed=0), ShuffleSampler(4, 2, seed=0)):
        assert not hasattr(sampler, "generator")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IdentitySampler([0, 0, 1, 1], 3, 2, seed=0), "2 identities.*choose a smaller num_ids"),
        (lambda: IdentitySampler([0, 0, 1, 1], 2, 2, seed=0, num_processes=2), "each of 2 process.*fewer processes"),
        (lambda: IdentitySampler([-1, -1], 1, 1, seed=0), "0 identities"),
        (lambda: IdentitySampler([0, 1], 0, 1, seed=0), "num_ids and num_instances must be at least 1, got 0"),
        (lambda: IdentitySampler([0, 1], 1, 1, seed=-1), "seed must be at least 0"),
        (lambda: ShuffleSampler(7, 8, seed=0), "7 images make no batch of 8"),
        (lambda: ShuffleSampler(12, 8, seed=0, num_processes=2), "each of 2 process"),
        (lambda: ShuffleSampler(12, 0, seed=0), "batch_size must be at least 1"),
    ],
)
def test_what_cannot_be_sampled_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_once_an_epoch_shows_every_identity_in_one_group_and_others_of_its_images_in_the_next():
    sizes = [9, 4, 30, 2, 5, 6]
    pids = shuffled_pids(sizes, junk=2)
    sampler = IdentitySampler(pids, 2, 4, seed=3, once=True)
    assert len(sampler) == 6 * 4
    epochs = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        drawn = np.array(list(sampler)).reshape(3, 8)
        for batch in drawn:
            assert sorted(Counter(pids[batch].tolist()).values()) == [4, 4]
        assert Counter(pids[drawn.ravel()].tolist()) == {3 * number + 2: 4 for number in range(6)}
        for number, size in enumerate(sizes):
            mine = drawn[pids[drawn] == 3 * number + 2]
            assert (
                len(set(mine.tolist())) == 4
                if size >= 4
                else set(mine.tolist()) <= set(np.flatnonzero(pids == 3 * number + 2))
            )
        epochs.append(set(drawn[pids[drawn] == 3 * 2 + 2].tolist()))
    assert len(set.union(*epochs)) > 8  # of thirty, not always the same four
