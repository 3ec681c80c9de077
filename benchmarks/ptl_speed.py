"""Cost of Progressive Transfer Learning against plain training, and of the distilled student against the backbone.

    python benchmarks/run.py ptl_speed

A step is forward, backward and SGD on one batch of random images: of ResNet-50 with PTL's embedding layer, and of the
same network with each kind of cell beside it at the published widths. All take turns in one process; the least of
several rounds counts. A distilled student is the backbone, so it is not timed.
"""

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import torch
from render import Block, Table
from speed import IDS, Speed, how_timed, least_seconds, step_options, step_settings, training_step, written_by

from reid_hub import ReIDConfig, ReIDModel
from reid_hub.evaluation import measure_cost
from reid_hub.methods import PTLMethod
from reid_hub.training import RECIPES

ARMS = {
    "the backbone alone": ("res50-conv", {}),
    "PTL": ("res50-ptl", {"side": {"cell": "v1"}}),
    "the same, forgetting before every batch": ("res50-ptl", {"side": {"cell": "v1", "memory": False}}),
    "a plain side network": ("res50-ptl", {"side": {"cell": "plain"}}),
    "PTL-v2": ("res50-ptl", {"side": {"cell": "v2"}}),
    "the backbone alone, last stride 1": ("res50-conv", {"last_stride": 1}),
    "PTL, last stride 1": ("res50-ptl", {"side": {"cell": "v1"}, "last_stride": 1}),
}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a step, and the inference cost of the trained model, for every arm."""
    seconds = least_seconds({name: step(*arm, options) for name, arm in ARMS.items()}, options.rounds)
    costs = {name: measure_cost(model_of(*arm, options), repeats=1) for name, arm in ARMS.items()}
    counted = {name: {key: getattr(cost, key) for key in ("parameters", "macs")} for name, cost in costs.items()}
    return {"step_s": seconds, "cost": counted}


def model_of(variant: str, changes: dict, options: argparse.Namespace) -> ReIDModel:
    torch.manual_seed(0)
    return ReIDModel(ReIDConfig.from_variant(variant, image_size=tuple(options.image_size), **changes))


def step(variant: str, changes: dict, options: argparse.Namespace) -> Callable[[], None]:
    recipe = RECIPES["ptl"]
    method = PTLMethod(model_of(variant, changes, options), IDS, **recipe.options)
    pixels, pids = torch.randn(options.batch, 3, *options.image_size), torch.randint(IDS, (options.batch,))
    return training_step(method, recipe, pixels, pids)


def page(results: dict[str, Any]) -> Iterator[Block]:
    """Answer, and every kind of cell beside the backbone, compared with the backbone of the same stride."""
    seconds, costs = results["figures"]["step_s"], results["figures"]["cost"]

    def cell(name: str, column: str) -> str:
        plain = "the backbone alone" + (", last stride 1" if name.endswith("last stride 1") else "")
        return {
            "step": f"{seconds[name]:.2f} s",
            "ratio": f"{seconds[name] / seconds[plain]:.2f}",
            "parameters": f"{costs[name]['parameters']:,}",
            "macs": f"{costs[name]['macs'] / costs[plain]['macs']:.2f}",
        }[column]

    yield "# Cost of Progressive Transfer Learning"
    yield (
        f"**A training step of PTL takes {cell('PTL', 'ratio')} times as long as one of the backbone, or "
        f"{cell('PTL, last stride 1', 'ratio')} times with last stride 1**; the target is at most 1.5. A student "
        "distilled by STD costs nothing more in use than the backbone."
    )
    yield f"Setup: ResNet-50, {how_timed(results)}."
    columns = {"step": "training step", "ratio": "ratio (PTL's target: at most 1.5)", "parameters": "parameters"}
    yield Table({**columns, "macs": "multiply-adds, ratio"}, {name: name for name in seconds}, cell)
    yield (
        "At the published widths of the side network, the ratio of the times is about that of the multiply-adds. It is "
        "lower beside a ResNet-50 without its last stride, which is common in re-identification."
    )
    yield (
        "A student distilled by STD *is* the backbone alone: its parameters and multiply-adds in use are exactly those "
        "of the first row."
    )
    yield written_by(results)


BENCHMARK = Speed("ptl_speed", __doc__, lambda options: {"steps": measure}, page, step_options(), step_settings)
