"""Expand students from a weight chain: by name, by width, or the widest within a budget."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from reid_hub.errors import ReIDError
from reid_hub.evaluation import count_macs, measure_cost
from reid_hub.models import ReIDConfig, ReIDModel, WeightChain
from reid_hub.models.width_scale import at_width, width_of
from reid_hub.runs.models import open_chain
from reid_hub.runs.options import Part, Settings, option
from reid_hub.runs.settings import OutputArguments, TrainSettings


@dataclass(frozen=True)
class ExpandArguments(Part):
    """Which student to take from a chain: by name, by width, or the widest within budgets."""

    chain: str = option(None, "Chain: a folder or NAMESPACE/NAME.", argument=True)
    revision: str | None = option(None, "Branch, tag or commit of a repository.")
    out: str = option(None, "Folder for the student.", required=True)
    student: str | None = option(None, "Variant (`reid-hub list variants`) or width of the student.")
    budget_params: str | None = option(
        None, "Expand the widest student with at most this many parameters, such as 1.5M."
    )
    budget_macs: str | None = option(None, "... with at most this many multiply-adds, such as 0.2G.")
    budget_ms: float | None = option(None, "... that takes at most this many milliseconds per image on this machine.")
    statistics: bool = option(True, "Keep the running statistics of the norm layers, and the neck.")
    rescale_queries: bool = option(False, "ViT: keep the attention of merged channels.")


@dataclass(frozen=True)
class ExpandSettings(Settings):
    """The settings of `reid-hub expand`."""

    expand: ExpandArguments = ExpandArguments()


@dataclass(frozen=True)
class StudentArguments(Part):
    """Chains, and the students to expand from them before training."""

    chain: list[str] = option(list, "Chain: a folder or NAMESPACE/NAME. Repeat for several chains of one teacher.")
    student: list[str] = option(list, "Variant or width of a student. Repeat for several.")
    paper_faithful: bool = option(False, "Transfer neither the running statistics of the norm layers nor the neck.")


@dataclass(frozen=True)
class StudentSettings(TrainSettings):
    """Settings for training students of weight chains. `model` is ignored: each student starts as expanded."""

    output: OutputArguments = OutputArguments(out="runs/oskt-demo")
    students: StudentArguments = StudentArguments(chain=["runs/oskt-demo/chain"], student=["8", "12"])


def expand(settings: ExpandSettings) -> ReIDModel:
    """Expand a student from a weight chain and save it. Needs no data.

    Raises:
        ReIDError: if neither a student nor a budget is given, or the chain cannot provide the student or meet a budget.
    """
    how = settings.expand
    budgets = {
        "params": None if how.budget_params is None else parse_amount(how.budget_params),
        "macs": None if how.budget_macs is None else parse_amount(how.budget_macs),
        "ms": how.budget_ms,
    }
    has_budget = any(value is not None for value in budgets.values())
    if how.student is not None and has_budget:
        raise ReIDError("give --student or the budgets, not both")
    options = {"statistics": how.statistics, "rescale_queries": how.rescale_queries}
    if Path(how.chain).resolve() == Path(how.out).resolve():
        raise ReIDError(f"the student would take the place of its chain: give another --out than {how.out}")
    chain = open_chain(how.chain, how.revision)
    student = expand_within(chain, **budgets, **options) if has_budget else chain.expand(how.student, **options)
    student.save_pretrained(how.out)
    return student


SUFFIXES = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}


def choose_chain(chains: Sequence[WeightChain], student: int | str | ReIDConfig) -> WeightChain:
    """Choose, from several chains of one teacher, the widest that is no wider than the student in any layer.

    Raises:
        ReIDError: if all are wider; the message gives the reason for the narrowest.
    """
    fitting, reasons = [], []
    for chain in sorted(chains, key=lambda chain: width_of(chain.config.student_config)):
        try:
            chain.slots(chain.sizes_of(student))
            fitting.append(chain)
        except ValueError as error:
            reasons.append(str(error))
    if not fitting:
        raise ReIDError(f"none of the {len(chains)} chains has a student {student}: {reasons[0]}")
    return fitting[-1]


def parse_amount(text: str | float) -> float:
    """`"1.5M"` -> 1500000.0; k, M and G, of parameters or multiply-adds.

    Raises:
        ReIDError: for any other format.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?(?:e\d+)?)\s*([kmg]?)\s*", str(text), re.IGNORECASE)
    if not match:
        raise ReIDError(f"an amount must read like 1500000, 1.5M or 0.2G, got {text!r}")
    return float(match[1]) * SUFFIXES[match[2].lower()]


def expand_within(
    chain: WeightChain,
    *,
    params: float | None = None,
    macs: float | None = None,
    ms: float | None = None,
    statistics: bool = True,
    rescale_queries: bool = False,
) -> ReIDModel:
    """Expand the widest student, with all stages scaled equally, that meets every given budget.

    Args:
        params: parameters of the model, including embedding layer and neck.
        macs: multiply-adds per image, including those of attention.
        ms: milliseconds per image, measured on this machine.

    Raises:
        ReIDError: if no budget is given, or even the narrowest student exceeds it; the message gives its cost.
    """
    budgets = {name: value for name, value in {"params": params, "macs": macs, "ms": ms}.items() if value is not None}
    if not budgets or not all(0 < value < math.inf for value in budgets.values()):
        raise ReIDError(f"give at least one budget (params, macs or ms), each above 0 and finite; got {budgets}")
    cost: dict[str, Callable[[ReIDConfig], float]] = {"params": _params, "macs": _macs, "ms": _milliseconds}
    spent: dict[int, dict[str, float]] = {}

    def over(width: int) -> bool:
        config = chain.student(width)
        spent[width] = {name: cost[name](config) for name in budgets}
        return any(value > budgets[name] for name, value in spent[width].items())

    widths = legal_widths(chain)
    # Cost grows with width: the first `low` widths meet the budgets, those from `high` on exceed them.
    low, high = 0, len(widths)
    while low < high:
        middle = (low + high) // 2
        if over(widths[middle]):
            high = middle
        else:
            low = middle + 1
    if not low:
        costs = [f"{value:,.4g} {name} instead of {budgets[name]:,.4g}" for name, value in spent[widths[0]].items()]
        raise ReIDError(
            f"the narrowest student of this chain, width {widths[0]}, costs {', '.join(costs)}; refine a narrower chain"
        )
    return chain.expand(widths[low - 1], statistics=statistics, rescale_queries=rescale_queries)


def legal_widths(chain: WeightChain) -> list[int]:
    """Widths of the chain's students with all stages scaled equally, ascending."""
    first, last = width_of(chain.config.student_config), width_of(chain.config.teacher_config)
    found = []
    for width in range(first, last + 1):
        try:
            at_width(chain.config.teacher_config, width)
        except ValueError:
            continue  # non-integer channel numbers, or not a multiple of the attention heads
        found.append(width)
    return found


def _params(config: ReIDConfig) -> float:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in ReIDModel(config).parameters())


def _macs(config: ReIDConfig) -> float:
    with torch.device("meta"), torch.no_grad():
        return count_macs(ReIDModel(config).eval(), torch.zeros(1, 3, *config.image_size))[1]


def _milliseconds(config: ReIDConfig) -> float:
    return measure_cost(ReIDModel(config)).latency_ms
