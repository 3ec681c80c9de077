"""BConv cells: against loops over samples and positions, and what must be true of a memory between batches."""

import copy
import pickle

import pytest
import torch
from torch import nn

from reid_hub.models.bconv import BConvCell, BConvCell2, PlainCell, all_memory, fit, set_memory

C_IN, C_OUT = 3, 2
KINDS = {
    "v1": lambda **o: BConvCell(C_IN, C_OUT, **o),
    "v2": lambda **o: BConvCell2(C_IN, C_OUT, **o),
    "v2 last": lambda **o: BConvCell2(C_IN, C_OUT, aggregate="last", **o),
    "v2 conv": lambda **o: BConvCell2(C_IN, C_OUT, aggregate="conv", **o),
}


def make(kind: str = "v1", seed: int = 0, **options) -> nn.Module:
    torch.manual_seed(seed)
    return KINDS[kind](**options).double().train()


def batches(*sizes: int, height: int = 5, width: int = 4, seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, C_IN, height, width, generator=generator, dtype=torch.float64) for n in sizes]


def convolved(picture, weight, bias, stride):
    """3x3 convolution of one picture (c, h, w) with a border of zeros, position by position."""
    _, height, width = picture.shape
    rows, columns = -(-height // stride), -(-width // stride)
    padded = torch.zeros(len(picture), height + 2, width + 2, dtype=picture.dtype)
    padded[:, 1:-1, 1:-1] = picture
    out = torch.zeros(len(weight), rows, columns, dtype=picture.dtype)
    for row in range(rows):
        for column in range(columns):
            patch = padded[:, row * stride : row * stride + 3, column * stride : column * stride + 3]
            out[:, row, column] = (weight * patch).sum((1, 2, 3)) + (0 if bias is None else bias)
    return out


def recovered(history, weight, stride, size):
    """Transposed convolution of one map: every value stamps its kernel, from one position before its own."""
    kernel = weight.shape[-1]
    canvas = torch.zeros(weight.shape[1], *(n + 2 * kernel for n in size), dtype=history.dtype)
    for row in range(history.shape[1]):
        for column in range(history.shape[2]):
            stamp = (history[:, row, column, None, None, None] * weight).sum(0)
            y, x = row * stride - 1 + kernel, column * stride - 1 + kernel
            if y < size[0] + kernel and x < size[1] + kernel:
                canvas[:, y : y + kernel, x : x + kernel] += stamp[:, : canvas.shape[1] - y, : canvas.shape[2] - x]
    return canvas[:, kernel : kernel + size[0], kernel : kernel + size[1]]


def by_hand(cell, kind: str, stream: list[torch.Tensor]) -> list[torch.Tensor]:
    """What the cell must put out for a stream of batches: one sample at a time, its slot in a dict."""
    slots, outputs = {}, []
    for batch in stream:
        outputs.append([])
        for place, picture in enumerate(batch):
            shape = (C_OUT, *(-(-n // cell.stride) for n in picture.shape[1:]))
            zero = torch.zeros(shape, dtype=picture.dtype)
            state, hidden = slots.get(place, (zero, zero))
            seen = picture
            if kind != "v1":
                back = recovered(hidden, cell.recover.weight, cell.stride, picture.shape[1:])
                seen = torch.cat([picture, back])
            gates = convolved(seen, cell.gates.weight, cell.gates.bias, cell.stride)
            i, f, o = (1 / (1 + (-gates[n * C_OUT : (n + 1) * C_OUT]).exp()) for n in range(3))
            state = f * state + i * gates[3 * C_OUT :].tanh()
            y = o * state.tanh()
            if kind == "v2":
                hidden = 0.5 * (hidden + y)
            elif kind == "v2 last":
                hidden = y
            elif kind == "v2 conv":
                hidden = torch.einsum("oc,chw->ohw", cell.aggregate.weight[:, :, 0, 0], torch.cat([hidden, y]))
            slots[place] = state, hidden
            outputs[-1].append(y)
    return [torch.stack(output) for output in outputs]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_of_batches_that_shrink_and_grow_equals_loops(kind, stride):
    cell, stream = make(kind, stride=stride, bias=stride == 2), batches(3, 2, 4, 1, 4)
    with torch.no_grad():
        for got, expected in zip([cell(batch) for batch in stream], by_hand(cell, kind, stream), strict=True):
            torch.testing.assert_close(got, expected)
    assert {len(slots) for slots in cell.slots} == {4}


def test_plain_cell_is_the_tanh_of_the_largest_of_four_groups():
    torch.manual_seed(0)
    cell, (batch,) = PlainCell(C_IN, C_OUT, stride=2).double().train(), batches(2)
    for picture, got in zip(batch, cell(batch), strict=True):
        gates = convolved(picture, cell.gates.weight, None, 2)
        groups = [gates[n * C_OUT : (n + 1) * C_OUT] for n in range(4)]
        torch.testing.assert_close(got, torch.stack(groups).max(0).values.tanh())
    assert torch.equal(cell(batch), cell(batch))
    assert sum(p.numel() for p in cell.parameters()) == 4 * C_OUT * C_IN * 9
    assert all_memory(cell) == []


@pytest.mark.parametrize("bias", [False, True])
def test_sizes_of_the_cells(bias):
    def count(cell):
        return sum(parameter.numel() for parameter in cell.parameters())

    expected = 4 * C_OUT * C_IN * 9 + 4 * C_OUT * bias
    assert count(make("v1", bias=bias)) == count(PlainCell(C_IN, C_OUT, bias=bias)) == expected
    for stride, kernel in ((1, 3), (2, 4)):
        version2 = 8 * C_OUT * C_IN * 9 + C_OUT * C_IN * kernel**2 + 4 * C_OUT * bias
        assert count(make("v2", stride=stride, bias=bias)) == version2
        assert count(make("v2 conv", stride=stride, bias=bias)) == version2 + 2 * C_OUT**2


@pytest.mark.parametrize("kind", KINDS)
def test_first_batch_is_evaluation_and_a_reset_starts_over(kind):
    cell, (first, second) = make(kind), batches(2, 2)
    evaluated = cell.eval()(first)
    assert all_memory(cell) == []
    started = [cell.train()(first), cell(second)]
    assert torch.equal(started[0], evaluated)
    assert not torch.allclose(started[1], cell.eval()(second))
    assert torch.equal(cell(first), evaluated)  # a memory changes no evaluation
    set_memory(cell, [])
    assert torch.equal(cell.train()(first), started[0])
    assert torch.equal(cell(second), started[1])


def test_without_a_memory_every_batch_is_the_first():
    cell, (first, second) = make("v2", remembers=False), batches(2, 2)
    cell(first)
    assert torch.equal(cell(second), cell.eval()(second))
    assert all_memory(cell) == []
    expected = cell(second)
    set_memory(cell, [torch.ones_like(expected)] * 3)
    assert torch.equal(cell.train()(second), expected)


def test_version_2_without_history_is_version_1_with_the_weights_of_its_input():
    second, first = make("v2", stride=2, bias=True), make("v1", stride=2, bias=True)
    with torch.no_grad():
        first.gates.weight.copy_(second.gates.weight[:, :C_IN])
        first.gates.bias.copy_(second.gates.bias)
    (batch,) = batches(3)
    torch.testing.assert_close(first.eval()(batch), second.eval()(batch))


def forced(cell, gate: int, value: float):
    """The cell with one of its gates shut (value -> -inf) or open for every input."""
    with torch.no_grad():
        cell.gates.bias[gate * C_OUT : (gate + 1) * C_OUT] = value
        cell.gates.weight[gate * C_OUT : (gate + 1) * C_OUT] = 0
    return cell


def test_nothing_gets_through_a_gate_that_is_shut():
    first, second = batches(2, 2)
    cell = forced(make(bias=True), 1, -1e4)  # forget everything
    cell(first)
    assert torch.equal(cell(second), cell.eval()(second))
    cell = make(bias=True)
    cell(first)
    before = cell.slots[0]
    forced(cell, 0, -1e4)  # let nothing enter
    cell(second)
    assert (cell.slots[0].abs() < before.abs()).all()
    forget = torch.stack([convolved(p, cell.gates.weight, cell.gates.bias, 1) for p in second])[:, C_OUT : 2 * C_OUT]
    torch.testing.assert_close(cell.slots[0], before * forget.sigmoid())
    forced(cell, 2, -1e4)  # let nothing out
    assert cell(second).abs().max() == 0


def test_state_and_output_stay_within_their_bounds():
    cell = make(bias=True)
    with torch.no_grad():
        cell.gates.weight.mul_(50)
    for number, batch in enumerate(batches(*[2] * 6), start=1):
        assert cell(100 * batch).abs().max() < 1
        assert cell.slots[0].abs().max() <= number  # float64 rounds a saturated gate to 1
    assert cell.slots[0].abs().max() > 2  # and it does add up


def test_samples_are_paired_by_place_and_the_ablation_by_their_mean():
    stream, order = batches(4, 4, 4), torch.tensor([2, 0, 3, 1])
    cell, other = make(), make()
    for batch in stream:
        torch.testing.assert_close(other(batch[order]), cell(batch)[order])
    mean, other = make(batch_mean=True), make(batch_mean=True)
    mean(stream[0]), other(stream[0][order])
    torch.testing.assert_close(mean.slots[0], other.slots[0])
    assert len(mean.slots[0]) == 1
    cell = make()
    cell(stream[0])
    set_memory(cell, [cell.slots[0].mean(0, keepdim=True).expand(3, -1, -1, -1)])
    torch.testing.assert_close(mean(stream[1][:3]), cell(stream[1][:3]))


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_goes_from_a_batch_to_the_one_before(kind):
    first, second = batches(3, 3)
    gradients = []
    for graph in (False, True):
        cell = make(kind)
        with torch.set_grad_enabled(graph):
            cell(first.clone().requires_grad_())
        assert not any(slots.requires_grad for slots in cell.slots)
        cell(second).square().sum().backward()
        gradients.append([parameter.grad for parameter in cell.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert all(gradient.abs().max() > 0 for gradient in gradients[0])  # the aggregating convolution's too


def test_the_graph_of_a_batch_survives_the_next_one():
    """Two forwards before one backward, as with two views of a batch: nothing that was saved may be written to."""
    cell, (first, second) = make(), batches(3, 2)
    (cell(first).sum() + cell(second).sum()).backward()
    assert cell.gates.weight.grad.isfinite().all()


def test_memory_left_under_inference_mode_can_be_trained_on():
    cell, (first, second) = make(), batches(2, 2)
    with torch.inference_mode():
        cell(first)
    cell(second).sum().backward()
    other = make()
    other(first)
    other(second).sum().backward()
    assert torch.equal(cell.gates.weight.grad, other.gates.weight.grad)


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_of_another_size_start_from_zeros(kind):
    cell = make(kind)
    cell(batches(3)[0])
    (wide,) = batches(2, width=7)
    assert torch.equal(cell(wide), make(kind).eval()(wide))
    assert {tuple(slots.shape) for slots in cell.slots} == {(2, C_OUT, 5, 7)}


def test_half_precision_keeps_the_state_in_float32():
    cell, exact = BConvCell2(C_IN, C_OUT).train(), make("v2")
    exact.load_state_dict(cell.state_dict())
    for batch in batches(*[2] * 12):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = cell(batch.float())
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(got.double(), exact(batch), atol=0.05, rtol=0.05)
    assert {slots.dtype for slots in cell.slots} == {torch.float32}
    half = BConvCell2(C_IN, C_OUT).to(torch.bfloat16).train()
    assert half(half(batches(2)[0].bfloat16()).repeat(1, 2, 1, 1)[:, :C_IN]).dtype == torch.bfloat16
    assert {slots.dtype for slots in half.slots} == {torch.float32}


def test_memory_is_in_no_state_dict_but_in_copies_and_pickles():
    cell, (first, second) = make("v2"), batches(3, 3)
    cell(first)
    assert set(cell.state_dict()) == {"recover.weight", "gates.weight"}
    assert list(cell.buffers()) == []  # DistributedDataParallel would broadcast them
    copies = [copy.deepcopy(cell), pickle.loads(pickle.dumps(cell))]
    expected = cell(second)
    assert all(torch.equal(copied(second), expected) for copied in copies)


def test_memory_put_back_goes_on_exactly_and_a_foreign_one_is_refused():
    cells, stream = nn.ModuleList([make(), make("v2")]), batches(3, 2, 3)
    for batch in stream[:2]:
        [cell(batch) for cell in cells]
    memory = all_memory(cells)
    assert len(memory) == 1 + 3
    expected = [cell(stream[2]) for cell in cells]
    set_memory(cells, memory)
    assert all(torch.equal(cell(stream[2]), due) for cell, due in zip(cells, expected, strict=True))
    with pytest.raises(ValueError, match="another side network: it has 3 tensors"):
        set_memory(cells, memory[1:])
    with pytest.raises(ValueError, match=r"\[1, 2, 2, 2\] channels"):
        set_memory(cells, [memory[0][:, :1], *memory[1:]])
    assert len(all_memory(cells)) == 4


def test_maps_are_fitted_at_the_lower_right_edge():
    x = torch.arange(6.0).view(1, 1, 2, 3)
    assert fit(x, torch.empty(1, 1, 3, 2)).tolist() == [[[[0, 1], [3, 4], [0, 0]]]]
    assert fit(x, x) is x
