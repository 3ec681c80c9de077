import numpy as np
import pytest
import torch

from reid_hub.data.images import ImageDataset
from reid_hub.training.holdout import TrainingSubset, split_identities

from .small_run import people as people_images


def people(num_ids=40, seed=0, cameras=4):
    """Identities with 1 to 8 images each; some seen by one camera only."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 9, num_ids)
    pids = np.repeat(np.arange(num_ids), counts)
    return pids, rng.integers(0, cameras, len(pids))


@pytest.mark.parametrize("seed", range(5))
def test_a_split_keeps_whole_identities_apart_and_every_query_findable(seed):
    pids, camids = people(seed=seed)
    split = split_identities(pids, camids, 0.25, seed)
    rows = np.concatenate([split.train, split.query, split.gallery])
    assert sorted(rows) == list(range(len(pids)))
    held = set(pids[split.query])
    assert len(held) == 10
    assert held.isdisjoint(pids[split.train])
    assert held == set(pids[split.gallery])
    for query in split.query:
        matches = split.gallery[pids[split.gallery] == pids[query]]
        assert (camids[matches] != camids[query]).any()
    pairs = list(zip(pids[split.query], camids[split.query], strict=True))
    assert len(set(pairs)) == len(pairs)


def test_an_identity_of_two_cameras_with_one_image_each_gives_one_query():
    pids, camids = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 0, 1, 0, 1])
    split = split_identities(pids, camids, 0.3, seed=1)
    assert (len(split.query), len(split.gallery)) == (1, 1)


def test_an_identity_with_several_images_per_camera_gives_one_query_per_camera():
    pids, camids = np.repeat([0, 1, 2], 9), np.tile([0, 1, 2], 9)
    split = split_identities(pids, camids, 0.3, seed=1)
    assert sorted(camids[split.query]) == [0, 1, 2]
    assert len(split.gallery) == 6


def test_identities_with_one_image_or_camera_stay_in_training_and_are_counted():
    pids, camids = np.array([0, 1, 1, 2, 2, 3, 3]), np.array([0, 1, 1, 0, 1, 2, 2])
    split = split_identities(pids, camids, 0.9, seed=0)
    assert set(pids[split.query]) == {2}
    assert split.skipped == 3
    assert set(pids[split.train]) == {0, 1, 3}


def test_without_cameras_two_images_are_enough():
    pids = np.array([0, 1, 1, 2, 2, 3, 3, 3])
    split = split_identities(pids, np.full(8, -1), 0.4, seed=0)
    assert len(split.query) == len(set(pids[split.query])) == 2
    assert set(pids[split.query]) == set(pids[split.gallery])
    assert 0 in pids[split.train]


def test_the_draw_follows_the_seed():
    pids, camids = people()
    first, again, other = (split_identities(pids, camids, 0.2, seed) for seed in (3, 3, 4))
    assert np.array_equal(first.query, again.query)
    assert np.array_equal(first.train, again.train)
    assert not np.array_equal(first.train, other.train)


def test_too_few_identities_to_split_are_refused():
    with pytest.raises(ValueError, match="between 0 and 1"):
        split_identities([0, 0, 1, 1], [0, 1, 0, 1], 1.0, seed=0)
    with pytest.raises(ValueError, match="no identity can be held out"):
        split_identities([0, 0, 1, 1], [0, 0, 1, 1], 0.5, seed=0)
    with pytest.raises(ValueError, match="fewer than 2"):
        split_identities([0, 0, 1, 1], [0, 1, 0, 1], 0.5, seed=0)


def test_a_subset_numbers_its_identities_again(tmp_path):
    whole = ImageDataset(people_images(), (32, 16), cache_dir=tmp_path, progress=False)
    rows = np.flatnonzero(np.isin(whole.pids, [2, 5, 11]))
    subset = TrainingSubset(whole, rows)
    assert len(subset) == 12
    assert set(subset.pids) == {0, 1, 2}
    loader = torch.utils.data.DataLoader(subset, batch_size=5, shuffle=True, collate_fn=subset.collate)
    for batch in loader:
        assert torch.equal(torch.tensor([2, 5, 11])[batch["pids"]], torch.from_numpy(whole.pids)[batch["indices"]])
        expected = whole.__getitems__(batch["indices"])
        assert torch.equal(batch["pixel_values"], expected["pixel_values"])
        assert torch.equal(batch["camids"], expected["camids"])
    assert subset[3]["pids"].item() == subset.pids[3]
