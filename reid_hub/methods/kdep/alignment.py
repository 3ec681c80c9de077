"""How a teacher's long feature becomes a student's target, or the student's the teacher's: KDEP, arXiv:2203.05180."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from reid_hub.errors import ReIDError
from reid_hub.methods.kdep.basis import Basis
from reid_hub.methods.kdep.tap import Tap
from reid_hub.registry import lookup

# Below this share of the largest one a standard deviation is that of rounding: the features are float32.
CONSTANT = 1e-6


def power_temperature_scale(features: Tensor, temperature: float = 0.1, power: float = 3) -> Tensor:
    """Flatten the variances of aligned teacher features and keep their sign, (B, C) -> (B, C).

    KDEP, arXiv:2203.05180: sign(z) * (|z| / T) ** (1 / n).

    Raises:
        ReIDError: if temperature is not positive or power is not at least 1.
    """
    if not temperature > 0 or not power >= 1:
        raise ReIDError(f"temperature must be above 0 and power at least 1, got {temperature} and {power}")
    return features.sign() * (features.abs() / temperature) ** (1 / power)


class Alignment(nn.Module):
    """What makes features of a teacher (B, D_t) and of a student comparable.

    `forward` gives the targets and `compared` what of the student is drawn to them. Neither basis nor indices are in
    the state of a checkpoint; only adaptors, which train with the student and are left behind, are. A basis is kept as
    it is, in float64; `.float()` makes it one for training.

    Attributes:
        relu: compare features behind the final ReLU, not in front of it.
        needs_basis: whether it is made from a `Basis`.
    """

    relu = False
    needs_basis = False

    def forward(self, features: Tensor) -> Tensor:
        """Targets, (B, D)."""
        raise NotImplementedError

    def compared(self, tap: Tap, last: Tensor) -> Tensor:
        """From what the student's tap took from the network, before it is pooled -> (B, D)."""
        return tap.pool(last.float())  # an average in half precision is of few digits

    def distance(self, student: Tensor, target: Tensor) -> Tensor:
        """Mean over batch and channels of the squared difference, (B, D) twice -> scalar."""
        return (student.to(target) - target).square().mean()

    def _keep(self, **tensors: Tensor | None) -> None:
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor, persistent=False)


class Projection(Alignment):
    """Principal components, (x - mu) V[:, :D_s], then one of "pts", "sn" (unit variances), "sm" or nothing.

    SM gives them the D_s largest standard deviations of the teacher's own channels, in decreasing order.

    Raises:
        ReIDError: if a component that is to be divided by its standard deviation has none.
    """

    needs_basis = True

    def __init__(self, basis: Basis, dim: int, then: str | None = None, *, temperature: float = 0.1, power: float = 3):
        super().__init__()
        self.pts = (temperature, power) if then == "pts" else None
        if self.pts:
            power_temperature_scale(torch.zeros(1), *self.pts)
        gain = None
        if then in ("sn", "sm"):
            stds = basis.stds[:dim]
            if constant := int((stds <= CONSTANT * basis.stds[0]).sum()):
                raise ReIDError(
                    f"{constant} of the first {dim} components of this teacher's features are constant, and {then!r} "
                    f"would divide by their standard deviation: give a student of at most {dim - constant} channels, "
                    "more or other images, or another alignment (svd+pts divides by nothing)"
                )
            gain = 1 / stds
            if then == "sm":
                gain = gain * basis.channel_stds.sort(descending=True).values[:dim]
        self._keep(mean=basis.mean, vectors=basis.vectors[:, :dim].contiguous(), gain=gain)

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            aligned = (features.to(self.mean) - self.mean) @ self.vectors
        if self.gain is not None:
            aligned = aligned * self.gain
        return power_temperature_scale(aligned, *self.pts) if self.pts else aligned


class Selection(Alignment):
    """Some of the teacher's channels as they are, by their indices (D_s,)."""

    def __init__(self, indices: Tensor):
        super().__init__()
        self._keep(indices=indices)

    def forward(self, features: Tensor) -> Tensor:
        return features[:, self.indices]


class Regression(Alignment):
    """A 1x1 convolution and batch norm on the student's map, averaged, against the whole feature of the teacher.

    Args:
        relu: behind both networks' final ReLU.
    """

    def __init__(self, teacher_dim: int, student_dim: int, relu: bool = False):
        super().__init__()
        self.relu = relu
        self.adaptor = nn.Sequential(nn.Conv2d(student_dim, teacher_dim, 1, bias=False), nn.BatchNorm2d(teacher_dim))

    def forward(self, features: Tensor) -> Tensor:
        return features

    def compared(self, tap: Tap, last: Tensor) -> Tensor:
        return self.adaptor(last).float().mean((2, 3))


class Overhaul(Regression):
    """The same in front of the ReLU, with the margin ReLU and the partial distance of arXiv:1904.01866.

    The teacher's features become max(x, m), m each channel's expected negative value, of a normal distribution with
    the channel's mean and standard deviation; where the teacher is not positive, a student below it is let be.
    """

    needs_basis = True

    def __init__(self, basis: Basis, student_dim: int):
        super().__init__(basis.dim, student_dim)
        self._keep(margin=negative_mean(basis.mean, basis.channel_stds))

    def forward(self, features: Tensor) -> Tensor:
        return torch.maximum(features.to(self.margin), self.margin)

    def distance(self, student: Tensor, target: Tensor) -> Tensor:
        student = student.to(target)
        counts = (student > target) | (target > 0)
        return ((student - target).square() * counts).mean()


def negative_mean(mean: Tensor, std: Tensor) -> Tensor:
    """E[x | x < 0] of N(mean, std^2), (C,) twice -> (C,); arXiv:1904.01866.

    Where less than 0.1 % is negative it is -3 std, as in the published code.
    """
    z = mean / std.clamp(min=torch.finfo(std.dtype).tiny)
    share = torch.special.ndtr(-z)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    return torch.where(share > 1e-3, mean - std * density / share.clamp(min=1e-3), -3 * std)


def largest_variances(basis: Basis, dim: int) -> Tensor:
    """The channels with the largest variances on the basis' data, the largest first: (dim,) int64."""
    return basis.channel_stds.argsort(descending=True, stable=True)[:dim]


def random_channels(teacher_dim: int, dim: int, seed: int) -> Tensor:
    """Different channels, drawn by the seed, in increasing order: (dim,) int64."""
    return torch.randperm(teacher_dim, generator=torch.Generator().manual_seed(seed))[:dim].sort().values


def nearest_channels(teacher_dim: int, dim: int) -> Tensor:
    """Nearest interpolation along the channels, floor(k D_t / D_s): (dim,) int64."""
    return torch.arange(dim) * teacher_dim // dim


# These let the student be of any width: they widen it.
PARAMETRIC = ("pre-relu", "post-relu", "overhaul")
WITHOUT_BASIS = ("cs.rand", "interp", "pre-relu", "post-relu")


def check_widths(name: str, teacher_dim: int, student_dim: int) -> None:
    """Refuse an unknown alignment, and a student wider than the teacher where it cannot serve one.

    Raises:
        ReIDError: naming both widths.
    """
    lookup(ALIGNMENTS, name, "alignment")
    if student_dim > teacher_dim and name not in PARAMETRIC:
        raise ReIDError(
            f"the student's feature has {student_dim} channels, the teacher's only {teacher_dim}: {name!r} can only "
            f"shorten. Give a narrower student or a wider teacher, or one of {', '.join(PARAMETRIC)}"
        )


# (teacher_dim, student_dim, basis, seed, options of PTS) -> Alignment, by the name that a recipe has.
_Make = Callable[[int, int, Basis | None, int, dict[str, float]], Alignment]
ALIGNMENTS: dict[str, _Make] = {
    "svd+pts": lambda t, s, basis, seed, pts: Projection(basis, s, "pts", **pts),
    "svd": lambda t, s, basis, seed, pts: Projection(basis, s),
    "sn": lambda t, s, basis, seed, pts: Projection(basis, s, "sn"),
    "sm": lambda t, s, basis, seed, pts: Projection(basis, s, "sm"),
    "cs.var": lambda t, s, basis, seed, pts: Selection(largest_variances(basis, s)),
    "cs.rand": lambda t, s, basis, seed, pts: Selection(random_channels(t, s, seed)),
    "interp": lambda t, s, basis, seed, pts: Selection(nearest_channels(t, s)),
    "pre-relu": lambda t, s, basis, seed, pts: Regression(t, s),
    "post-relu": lambda t, s, basis, seed, pts: Regression(t, s, relu=True),
    "overhaul": lambda t, s, basis, seed, pts: Overhaul(basis, s),
}


def make_alignment(
    name: str,
    teacher_dim: int,
    student_dim: int,
    *,
    basis: Basis | None = None,
    seed: int = 0,
    temperature: float = 0.1,
    power: float = 3,
) -> Alignment:
    """An alignment by name.

    Args:
        basis: of the teacher; needed by all but `WITHOUT_BASIS`.
        seed: of "cs.rand".
        temperature, power: of "svd+pts".

    Raises:
        ReIDError: for an unknown name, a student wider than the teacher, a missing basis or one of another width.
    """
    check_widths(name, teacher_dim, student_dim)
    if name not in WITHOUT_BASIS:
        if basis is None:
            raise ReIDError(
                f"the alignment {name!r} needs a basis of the teacher: make it with `reid-hub pretrain basis`"
            )
        if basis.dim != teacher_dim:
            raise ReIDError(f"the basis has {basis.dim} dimensions, the teacher's feature {teacher_dim}: make it anew")
    return ALIGNMENTS[name](teacher_dim, student_dim, basis, seed, {"temperature": temperature, "power": power})
