"""Allocation of a chain's rows to a student's channels, against the published rule written as a loop."""

import pytest
import torch

from reid_hub.models.width_slots import allocate


def slow(labels: list[int], width: int) -> tuple[list[int], list[list[int]]]:
    """OSKT's rule, word for word: channel sources, and the members of each channel."""
    members = [[n for n, label in enumerate(labels) if label == g] for g in range(max(labels) + 1)]
    source, copies = list(range(len(members))), [1] * len(members)
    while len(source) < width:
        ratios = [copies[g] / len(members[g]) for g in range(len(members))]
        g = ratios.index(min(ratios))
        source.append(g)
        copies[g] += 1
    chunks: list[list[int]] = [[] for _ in source]
    for g, rows in enumerate(members):
        slots = [j for j, row in enumerate(source) if row == g]
        quotient, remainder = divmod(len(rows), len(slots))
        start = 0
        for number, slot in enumerate(slots):
            end = start + quotient + (number < remainder)
            chunks[slot], start = rows[start:end], end
    return source, chunks


def random_labels(generator, clusters: int, size: int) -> torch.Tensor:
    labels = torch.cat([torch.arange(clusters), torch.randint(clusters, (size - clusters,), generator=generator)])
    return labels[torch.randperm(size, generator=generator)]


@pytest.mark.parametrize("seed", range(30))
def test_allocation_equals_the_published_rule(seed):
    generator = torch.Generator().manual_seed(seed)
    size = int(torch.randint(1, 60, (), generator=generator))
    clusters = int(torch.randint(1, size + 1, (), generator=generator))
    labels = random_labels(generator, clusters, size)
    for width in range(clusters, size + 1):
        slots, (source, chunks) = allocate(labels, width), slow(labels.tolist(), width)
        assert slots.source.tolist() == source
        assert [(slots.slot == j).nonzero().flatten().tolist() for j in range(width)] == chunks
        # A partition in which a channel's members share its row, and no cluster has more channels than members.
        assert slots.sizes.min() >= 1
        assert torch.equal(slots.source[slots.slot], labels)


def test_ends_of_the_range():
    labels = random_labels(torch.Generator().manual_seed(0), 5, 17)
    narrow, full = allocate(labels, 5), allocate(labels, 17)
    assert torch.equal(narrow.source, torch.arange(5))
    assert torch.equal(narrow.slot, labels)
    assert torch.equal(full.sizes, torch.ones(17, dtype=torch.int64))
    assert torch.equal(full.slot.sort().values, torch.arange(17))  # a permutation of the teacher


def test_blocks_are_filled_each_by_itself():
    generator = torch.Generator().manual_seed(1)
    blocks = [random_labels(generator, 3, 8) for _ in range(4)]
    labels = torch.cat([block + 3 * b for b, block in enumerate(blocks)])
    slots = allocate(labels, 20, blocks=4)
    for b, block in enumerate(blocks):
        alone = allocate(block, 5)
        assert torch.equal(slots.source[5 * b : 5 * b + 5], alone.source + 3 * b)
        assert torch.equal(slots.slot[8 * b : 8 * b + 8], alone.slot + 5 * b)


def test_a_width_out_of_range_is_refused():
    labels = torch.tensor([0, 1, 1, 0])
    for width in (1, 5):
        with pytest.raises(ValueError, match=f"between the chain's 2 and the teacher's 4, got {width}"):
            allocate(labels, width)
    with pytest.raises(ValueError, match="multiple of the 2 heads, got 3"):
        allocate(labels + torch.tensor([0, 0, 2, 2]) - torch.tensor([0, 0, 1, 0]), 3, blocks=2)
