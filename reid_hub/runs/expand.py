"""Students out of a weight chain: by name, by width, or the widest within a budget."""

import math
import re
from collections.abc import Callable, Sequence

import torch

from reid_hub.evaluation import count_macs, measure_cost
from reid_hub.models import ReIDConfig, ReIDModel, WeightChain
from reid_hub.models.width_scale import at_width, width_of

SUFFIXES = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}


def choose_chain(chains: Sequence[WeightChain], student: int | str | ReIDConfig) -> WeightChain:
    """The widest of several chains of one teacher that is in no layer wider than the student.

    Raises:
        ValueError: if all are wider, naming why the narrowest is.
    """
    fitting, reasons = [], []
    for chain in sorted(chains, key=lambda chain: width_of(chain.config.student_config)):
        try:
            chain.slots(chain.sizes_of(student))
            fitting.append(chain)
        except ValueError as error:
            reasons.append(str(error))
    if not fitting:
        raise ValueError(f"none of the {len(chains)} chains has a student {student}: {reasons[0]}")
    return fitting[-1]


def parse_amount(text: str | float) -> float:
    """`"1.5M"` -> 1500000.0; k, M and G, of parameters or multiply-adds.

    Raises:
        ValueError: if it reads otherwise.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?(?:e\d+)?)\s*([kmg]?)\s*", str(text), re.IGNORECASE)
    if not match:
        raise ValueError(f"an amount must read like 1500000, 1.5M or 0.2G, got {text!r}")
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
    """The widest student, all stages scaled alike, within every budget that is given.

    Args:
        params: parameters of the model, head and neck included.
        macs: multiply-adds for one picture, those of attention included.
        ms: milliseconds for one picture on this machine, measured.

    Raises:
        ValueError: without a budget, or if not even the narrowest student is within it; says what that one costs.
    """
    budgets = {name: value for name, value in {"params": params, "macs": macs, "ms": ms}.items() if value is not None}
    if not budgets or not all(0 < value < math.inf for value in budgets.values()):
        raise ValueError(f"give at least one budget (params, macs or ms), each above 0 and finite; got {budgets}")
    cost: dict[str, Callable[[ReIDConfig], float]] = {"params": _params, "macs": _macs, "ms": _milliseconds}
    spent: dict[int, dict[str, float]] = {}

    def over(width: int) -> bool:
        config = chain.student(width)
        spent[width] = {name: cost[name](config) for name in budgets}
        return any(value > budgets[name] for name, value in spent[width].items())

    widths = legal_widths(chain)
    # Cost grows with the width: the first `low` widths are within, those from `high` on over.
    low, high = 0, len(widths)
    while low < high:
        middle = (low + high) // 2
        if over(widths[middle]):
            high = middle
        else:
            low = middle + 1
    if not low:
        costs = [f"{value:,.4g} {name} instead of {budgets[name]:,.4g}" for name, value in spent[widths[0]].items()]
        raise ValueError(
            f"the narrowest student of this chain, width {widths[0]}, costs {', '.join(costs)}; refine a narrower chain"
        )
    return chain.expand(widths[low - 1], statistics=statistics, rescale_queries=rescale_queries)


def legal_widths(chain: WeightChain) -> list[int]:
    """The widths at which the chain has a student with all stages scaled alike, ascending."""
    first, last = width_of(chain.config.student_config), width_of(chain.config.teacher_config)
    found = []
    for width in range(first, last + 1):
        try:
            at_width(chain.config.teacher_config, width)
        except ValueError:
            continue  # broken channel numbers, or not a multiple of the heads
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
