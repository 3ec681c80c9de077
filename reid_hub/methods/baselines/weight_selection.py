"""Weight selection: a narrow network starts from a part of a wide one's tensors (arXiv:2311.18823, ICLR 2024)."""

import copy
from collections.abc import Iterable
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from reid_hub.errors import ReIDError
from reid_hub.models import ReIDConfig, ReIDModel
from reid_hub.models.layers import BATCH_NORMS
from reid_hub.models.neck import BNNeck
from reid_hub.models.width_groups import WidthGroups
from reid_hub.registry import lookup


def uniform_indices(size: int, kept: int) -> Tensor:
    """Evenly spread indices, (kept,) of 0..size-1: every (size / kept)-th, or both ends and what is nearest between.

    Raises:
        ReIDError: unless 1 <= kept <= size.
    """
    _check_size(size, kept)
    if size % kept == 0:
        return torch.arange(0, size, size // kept)
    # torch rounds half to even, as the published code does; in float64 a half is exact.
    return (torch.arange(kept, dtype=torch.float64) * (size - 1) / (kept - 1)).round().long()


def consecutive_indices(size: int, kept: int) -> Tensor:
    """The first indices, (kept,) of 0..size-1."""
    _check_size(size, kept)
    return torch.arange(kept)


class _Selector:
    """Index vectors, each drawn once for a key; without a key it is drawn anew every time."""

    def __init__(self, selection: str, seed: int):
        self.generator = torch.Generator().manual_seed(seed)
        self.choose = lookup(
            {
                "uniform": uniform_indices,
                "consecutive": consecutive_indices,
                "random": self._random,
                "inconsistent": self._random,
            },
            selection,
            "selection",
        )
        self.consistent = selection != "inconsistent"
        self.known: dict[object, Tensor] = {}

    def __call__(self, what: str, key: object, size: int, kept: int) -> Tensor:
        _check_size(size, kept, f"{what}: ")
        if not self.consistent:
            return self.choose(size, kept)
        if key not in self.known:
            self.known[key] = self.choose(size, kept)
        return self.known[key]

    def _random(self, size: int, kept: int) -> Tensor:
        return torch.randperm(size, generator=self.generator)[:kept].sort().values


def select_weights(
    teacher: ReIDModel,
    config: ReIDConfig,
    *,
    selection: str = "uniform",
    packed: bool = False,
    seed: int = 0,
) -> ReIDModel:
    """A network as `config` says whose tensors are sub-grids of the teacher's, running statistics among them.

    One index vector belongs to each width group, so that axes which are numbered by the same channels keep the same
    ones; in a group of attention heads it is a vector within a head, the same for every head and for queries, keys and
    values. Values are not rescaled. Tensors in no group are copied. Behind the backbone, what the teacher lacks or
    numbers by other channels starts fresh; classifiers are no part of a model and always do.

    Copied running statistics do not fit sums over fewer inputs: call `reestimate_statistics` before an evaluation
    without training.

    Args:
        teacher: left as it is.
        selection: "uniform" (the paper's), "consecutive" (the first channels), "random" (one draw for each group), or
            "inconsistent" (one draw for each axis of each tensor, which the paper shows to be worse).
        packed: as in the published code, select along whole axes by their two lengths alone. It differs where an axis
            packs queries, keys and values: most of them then lose each other.
        seed: of the random selections and of what starts fresh.

    Raises:
        ReIDError: if the networks differ in more than width, or the student is wider anywhere.
    """
    selector = _Selector(selection, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = ReIDModel(copy.deepcopy(config)).to(teacher.device, teacher.dtype)
    source, target = teacher.width_groups(), student.width_groups()
    wide, state = teacher.state_dict(), student.state_dict()
    for name in _common_tensors(source, target, wide, state):
        if packed:
            pairs = enumerate(zip(wide[name].shape, state[name].shape, strict=True))
            indices = {axis: selector(name, pair, *pair) for axis, pair in pairs}
        elif name in target.axes:
            axes = target.axes[name]
            members = {axis: groups for axis, groups in enumerate((axes.rows, axes.columns)) if groups}
            indices = {axis: _segments(selector, source, target, groups) for axis, groups in members.items()}
        else:
            indices = {}
        tensor = wide[name]
        for axis, index in indices.items():
            tensor = tensor.index_select(axis, index.to(tensor.device))
        if tensor.shape != state[name].shape:
            raise ReIDError(
                f"{name} is in no width group, so it must have equal shapes: {tuple(tensor.shape)} in the teacher, "
                f"{tuple(state[name].shape)} in the student"
            )
        state[name] = tensor
    student.load_state_dict(state)
    return student.train(teacher.training)


def _segments(selector: _Selector, source: WidthGroups, target: WidthGroups, members: tuple[str, ...]) -> Tensor:
    """Which of the teacher's channels an axis keeps whose segments are numbered by `members`."""
    index, start = {}, 0
    for group in dict.fromkeys(members):
        index[group] = _within_blocks(selector, source, target, group)
    parts = []
    for group in members:
        parts.append(index[group] + start)
        start += source.groups[group].size
    return torch.cat(parts)


def _within_blocks(selector: _Selector, source: WidthGroups, target: WidthGroups, group: str) -> Tensor:
    wide, narrow = source.groups[group], target.groups[group]
    if wide.blocks != narrow.blocks:
        raise ReIDError(
            f"group {group!r} has {wide.blocks} blocks (attention heads) in the teacher and {narrow.blocks} in the "
            "student: keep their number, or give packed=True, which mixes them as the published code does"
        )
    size, kept = wide.size // wide.blocks, narrow.size // narrow.blocks
    within = selector(f"group {group!r}", group, size, kept)
    return (torch.arange(wide.blocks)[:, None] * size + within).flatten()


def _check_size(size: int, kept: int, what: str = "") -> None:
    if not 1 <= kept <= size:
        raise ReIDError(
            f"{what}cannot select {kept} of {size} channels: a student must nowhere be wider than its teacher"
        )


def _common_tensors(
    source: WidthGroups, target: WidthGroups, wide: dict[str, Tensor], narrow: dict[str, Tensor]
) -> list[str]:
    """Names of the student's tensors that have a counterpart in the teacher: all of the backbone, others in one role.

    Raises:
        ReIDError: if the backbones are not of the same kind and depth.
    """
    differing = [
        name
        for name in dict.fromkeys([*narrow, *wide])
        if name.startswith("backbone.")
        and (name not in wide or name not in narrow or source.axes.get(name) != target.axes.get(name))
    ]
    if differing:
        has = {"teacher": differing[0] in wide, "student": differing[0] in narrow}
        only = [who for who, present in has.items() if present]
        where = f"only the {only[0]} has" if len(only) == 1 else "the two number differently"
        raise ReIDError(
            f"teacher and student must differ in width alone, but {where} {differing[0]} ({len(differing)} tensors in "
            "all): choose a student of the teacher's family and depth"
        )
    return [name for name in narrow if name in wide and source.axes.get(name) == target.axes.get(name)]


@torch.no_grad()
def reestimate_statistics(model: ReIDModel, batches: Iterable[Tensor]) -> None:
    """Replace the running statistics of all batch norms, in place, by their averages over batches (B, 3, H, W).

    Everything else works as in evaluation. The model is left in the mode it was found in.

    Raises:
        ReIDError: if there are no batches.
    """
    norms = [m for m in model.modules() if isinstance(m, (*BATCH_NORMS, BNNeck))]
    with _only_norms_train(model, norms):
        count = 0
        for count, pixel_values in enumerate(batches, start=1):
            for norm in norms:
                norm.momentum = 1 / count  # the cumulative average; the first batch overwrites what was there
            model(pixel_values)
    if not count:
        raise ReIDError("running statistics need at least one batch of images, got none")
    for norm in norms:
        norm.num_batches_tracked.fill_(count)


@contextmanager
def _only_norms_train(model: ReIDModel, norms: list[nn.Module]):
    modes, momenta = {m: m.training for m in model.modules()}, {norm: norm.momentum for norm in norms}
    model.eval()
    # The model's own flag, not its children's: in evaluation the neck may be left out.
    for module in (model, *norms):
        module.training = True
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for norm, momentum in momenta.items():
            norm.momentum = momentum
