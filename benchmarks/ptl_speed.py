"""Cost of Progressive Transfer Learning against plain training, and of the distilled student against the backbone.

    python benchmarks/ptl_speed.py

A step is forward, backward and SGD on one batch of random pictures: of ResNet-50 with PTL's head, and of the same with
each kind of cell beside it at the published widths, in turns in one process, the least of several rounds. Parameters
and multiply-adds of a distilled student are counted, not timed: it is the backbone.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from timing import least_seconds, setting, step_parser, training_step, write

from reid_hub import ReIDConfig, ReIDModel
from reid_hub.evaluation import measure_cost
from reid_hub.methods import PTLMethod
from reid_hub.training import RECIPES

FOLDER = Path(__file__).parent / "ptl_speed"
ARMS = {
    "the backbone alone": ("res50-conv", {}),
    "PTL": ("res50-ptl", {"side": {"cell": "v1"}}),
    "the same, forgetting before every batch": ("res50-ptl", {"side": {"cell": "v1", "memory": False}}),
    "a plain side network": ("res50-ptl", {"side": {"cell": "plain"}}),
    "PTL-v2": ("res50-ptl", {"side": {"cell": "v2"}}),
    "the backbone alone, last stride 1": ("res50-conv", {"last_stride": 1}),
    "PTL, last stride 1": ("res50-ptl", {"side": {"cell": "v1"}, "last_stride": 1}),
}
IDS = 751


def main() -> None:
    options = step_parser(__doc__, FOLDER, batch=32).parse_args()
    seconds = least_seconds({name: step(*arm, options) for name, arm in ARMS.items()}, options.rounds)
    costs = {name: cost(*arm, options) for name, arm in ARMS.items()}
    write(options, {"step_s": seconds, "cost": costs}, render)


def model_of(variant: str, changes: dict, options: argparse.Namespace) -> ReIDModel:
    torch.manual_seed(0)
    return ReIDModel(ReIDConfig.from_variant(variant, image_size=tuple(options.image_size), **changes))


def step(variant: str, changes: dict, options: argparse.Namespace) -> Callable[[], None]:
    recipe = RECIPES["ptl"]
    method = PTLMethod(model_of(variant, changes, options), IDS, **recipe.options)
    pixels, pids = torch.randn(options.batch, 3, *options.image_size), torch.randint(IDS, (options.batch,))
    return training_step(method, recipe, pixels, pids)


def cost(variant: str, changes: dict, options: argparse.Namespace) -> dict[str, int]:
    """What a trained model of this kind costs in use."""
    found = measure_cost(model_of(variant, changes, options), repeats=1)
    return {name: getattr(found, name) for name in ("parameters", "macs")}


def render(results: dict) -> str:
    seconds, costs = results["figures"]["step_s"], results["figures"]["cost"]
    rows, plain = [], ""
    for name, took in seconds.items():
        plain = name if "alone" in name else plain
        ratios = took / seconds[plain], costs[name]["macs"] / costs[plain]["macs"]
        rows.append(f"| {name} | {took:.2f} s | {ratios[0]:.2f} | {costs[name]['parameters']:,} | {ratios[1]:.2f} |")
    return "\n".join(
        [
            "# Cost of Progressive Transfer Learning",
            "",
            f"Rendered from results.json by `{results['command']}`: ResNet-50, {setting(results)}.",
            "",
            "| | training step | ratio (PTL's target: at most 1.5) | parameters | multiply-adds, ratio |",
            "|---|---:|---:|---:|---:|",
            *rows,
            "",
            "The ratio is about that of the multiply-adds at the published widths of the side network. Beside a",
            "ResNet-50 without its last stride, as re-identification mostly uses it, it is less.",
            "",
            "A student distilled by STD *is* the backbone alone: its parameters and multiply-adds in use are those of",
            "the first row, number for number.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
