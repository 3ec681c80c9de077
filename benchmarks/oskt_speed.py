"""Cost of OSKT against plain training: a refinement step, its peak memory, clustering a ResNet-50, expanding students.

    python benchmarks/run.py oskt_speed

A step is forward, backward and Adam on one batch of random images: of the teacher alone, and of the refinement of its
width-8 chain. Both take turns in one process; the least of several rounds counts. Peak memory is measured in a process
of its own for each.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from render import Block, Table
from speed import IDS, Speed, how_timed, least_seconds, memory, step_options, step_settings, training_step, written_by

from reid_hub import ReIDConfig, ReIDModel, WeightChain
from reid_hub.methods import RefineMethod, SupervisedMethod
from reid_hub.methods.oskt.cluster import cluster
from reid_hub.training import RECIPES

STUDENTS = {"res50-s1": 8, "res50-s2": 8, "res50-s3": 16, "res50-s4": 16, "res50-s5": 32, "res50-s6": 32}
KINDS = {"teacher": "plain teacher", "refinement": "refinement"}


def step(kind: str, options: argparse.Namespace) -> Callable[[], None]:
    """One training step of the teacher, or of the refinement of its chain, with the published recipe's losses."""
    torch.manual_seed(0)
    teacher = ReIDModel(ReIDConfig.from_variant("res50", image_size=tuple(options.image_size)))
    recipe = RECIPES["bot"]
    if kind == "teacher":
        method = SupervisedMethod(teacher, IDS, **recipe.options)
    else:
        chain = WeightChain.from_teacher(
            teacher, 8, clustering="random"
        )  # the clustering does not affect the time of a step
        method = RefineMethod(teacher, IDS, chain=chain, **recipe.options)
    pixels = torch.randn(options.batch, 3, *options.image_size)
    return training_step(method, recipe, pixels, torch.arange(options.batch) // 4)


def steps(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of a step of each kind."""
    least = least_seconds({kind: step(kind, options) for kind in KINDS}, options.rounds)
    return {f"{kind}_step_s": seconds for kind, seconds in least.items()}


def peak(kind: str, options: argparse.Namespace) -> dict[str, float]:
    """Peak memory of a process that runs one step."""
    step(kind, options)()
    return {f"{kind}_peak_gib": memory("VmHWM") / 2**30}


def widths(options: argparse.Namespace) -> dict[str, float]:
    """Seconds to cluster a ResNet-50 for a chain of width 8, and to expand all six students from their chains."""
    torch.manual_seed(0)
    teacher = ReIDModel(ReIDConfig.from_variant("res50"))
    chain = WeightChain.from_teacher(teacher, 8, clustering="random")
    start = time.perf_counter()
    cluster(teacher, chain.rows)
    clustering = time.perf_counter() - start
    chains = {8: chain, **{w: WeightChain.from_teacher(teacher, w, clustering="random") for w in (16, 32)}}
    start = time.perf_counter()
    for student, width in STUDENTS.items():
        chains[width].expand(student)
    return {"cluster_s": clustering, "expand_six_s": time.perf_counter() - start}


def page(results: dict[str, Any]) -> Iterator[Block]:
    """Answer, steps and memory beside their targets, then clustering and expansion."""
    f = results["figures"]

    def cell(row: tuple[str, str, str], column: str) -> str:
        key, unit, target = row
        if column in KINDS:
            return f"{f[f'{column}_{key}']:.2f} {unit}"
        return target if column == "target" else ratio(key)

    def ratio(key: str) -> str:
        return f"{f[f'refinement_{key}'] / f[f'teacher_{key}']:.2f}"

    yield "# Cost of OSKT"
    yield (
        f"**A refinement step takes {ratio('step_s')} times as long as a plain step of the teacher and "
        f"{ratio('peak_gib')} times its peak memory.**"
    )
    yield f"Setup: ResNet-50 teacher, chain of width 8, {how_timed(results)}."
    measured = {
        ("step_s", "s", "at most 1.15"): "one training step",
        ("peak_gib", "GiB", "at most 1.2"): "peak memory of the process",
    }
    yield Table({**KINDS, "ratio": "ratio", "target": "target"}, measured, cell)
    further = {
        (f"{f['cluster_s']:.1f} s", "under 60 s"): "clustering the teacher (Ward, all 37 groups)",
        (f"{f['expand_six_s']:.2f} s", "under 5 s together"): "expanding S1 to S6 from their chains",
    }
    yield Table({0: "time", 1: "target"}, further, lambda row, column: row[column])
    yield written_by(results)


PARTS = {"steps": steps, **{f"memory of {kind}": partial(peak, kind) for kind in KINDS}, "widths": widths}
BENCHMARK = Speed("oskt_speed", __doc__, lambda options: PARTS, page, step_options(batch=64), step_settings)
