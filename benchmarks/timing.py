"""What the benchmarks of training steps share: steps in turns, a cache emptied, and results written beside a page."""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from reid_hub.evaluation.results import public_command, versions
from reid_hub.files import atomic_file
from reid_hub.methods import Method
from reid_hub.training import Recipe
from reid_hub.training.optimizers import build_optimizer


def step_parser(description: str | None, folder: Path, **defaults: Any) -> argparse.ArgumentParser:
    """Options of a benchmark of steps."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--image-size", type=int, nargs=2, default=(256, 128))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=folder)
    parser.set_defaults(**defaults)
    return parser


def training_step(method: Method, recipe: Recipe, *inputs: torch.Tensor | None) -> Callable[[], None]:
    """Forward, backward and the recipe's optimiser on one batch, pictures first, channels last."""
    method = method.train().to(memory_format=torch.channels_last)
    given = zip(("pixel_values", "pids", "camids", "indices", "erased_boxes"), inputs, strict=False)
    batch = {name: tensor for name, tensor in given if tensor is not None}
    batch["pixel_values"] = batch["pixel_values"].to(memory_format=torch.channels_last)
    optimiser = build_optimizer(
        method, recipe.optimizer, lr=1e-4, weight_decay=recipe.weight_decay, options=recipe.optimizer_options
    )

    def run() -> None:
        optimiser.zero_grad()
        method(batch)["loss"].backward()
        optimiser.step()

    return run


def seconds_in_turns(runs: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Of each round, in which all take their turn; a first one, which fills caches, is left out."""
    seconds = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
        print(f"round {number}: { ({name: round(values[-1], 3) for name, values in seconds.items()}) }", flush=True)
    return {name: values[1:] for name, values in seconds.items()}


def least_seconds(runs: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """The least of several rounds, see `seconds_in_turns`."""
    return {name: min(values) for name, values in seconds_in_turns(runs, rounds).items()}


def write(options: argparse.Namespace, figures: Mapping[str, Any], render: Callable[[dict], str]) -> None:
    """Write results.json and the page rendered from it."""
    results = {
        "figures": figures,
        "setting": {"batch": options.batch, "image_size": list(options.image_size), "rounds": options.rounds},
        "machine": {"cores": os.cpu_count(), "threads": torch.get_num_threads(), "architecture": platform.machine()},
        "command": public_command(sys.argv),
        "versions": versions(),
    }
    for name, text in (("results.json", json.dumps(results, indent=2) + "\n"), ("README.md", render(results))):
        with atomic_file(options.out / name) as temporary:
            temporary.write_text(text)
    print(render(results))


def setting(results: dict) -> str:
    """Batch, size, precision and machine, in words."""
    about, machine = results["setting"], results["machine"]
    size = "x".join(map(str, about["image_size"]))
    return f"batch {about['batch']} at {size}, float32, {machine['threads']} threads of {machine['architecture']}"
