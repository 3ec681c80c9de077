"""Cost of Factorized Distillation against plain training: a step with a cache of representations, and reading it.

    python benchmarks/run.py fd_speed

A step is forward, backward and SGD on one batch: of the student alone, and of the student with seven teachers'
representations, read for random images, and all fourteen branches. Both take turns in one process; the least of several
rounds counts. The cache has as many rows as Market-1501 has training images, at the published lengths. For "cold"
reads, the files are dropped from the system's page cache first.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from render import Block, Table
from speed import (
    IDS,
    Speed,
    how_timed,
    least_seconds,
    one_image,
    step_options,
    step_settings,
    tiny_resnet,
    training_step,
    written_by,
)

from reid_hub import ReIDConfig, ReIDModel
from reid_hub.data.views import choose_views
from reid_hub.evaluation import measure_cost
from reid_hub.methods import FDMethod, SupervisedMethod
from reid_hub.methods.fd import CachedRepresentations, ViewTeacher, write_representations
from reid_hub.training import RECIPES

STUDENTS = ("squeezenet", "res18a", "res50a")
IMAGES = 12_936
RECIPE = RECIPES["fd-student"]
LOSSES = {name: value for name, value in RECIPE.options.items() if name not in ("alpha", "beta")}
TARGET = 1.25


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Times of a step of every student, and of reading the cache."""
    with cache() as (folder, stored):
        size = sum(path.stat().st_size for path in folder.rglob("*.safe*")) / 2**20
        steps = {}
        for student in STUDENTS:
            runs = {kind: step(student, given, options) for kind, given in (("plain", None), ("fd", stored))}
            steps[student] = least_seconds(runs, options.rounds)
        warm, cold = reading(stored, folder, options)
    return {"pictures": IMAGES, "cache_mib": size, "steps": steps, "read_s": warm, "cold_read_s": cold}


@contextmanager
def cache() -> Iterator[tuple[Path, CachedRepresentations]]:
    """Representations of all views from untrained teachers."""
    split, views = one_image(IMAGES, (8, 16), pid=0, camid=0), choose_views("all")
    with tempfile.TemporaryDirectory() as folder:
        for view in views:
            head = {"head": "linear", "embedding_dim": view.dim, "neck": "none"}
            teacher = ReIDModel(ReIDConfig(backbone_config=tiny_resnet(4), image_size=(16, 16), **head))
            write_representations(Path(folder), ViewTeacher(teacher, view, split))
        yield Path(folder), CachedRepresentations(folder, views, split)


def step(student: str, stored: CachedRepresentations | None, options: argparse.Namespace) -> Callable[[], None]:
    torch.manual_seed(0)
    model = ReIDModel(ReIDConfig.from_variant(student, image_size=tuple(options.image_size)))
    pixels, pids = torch.randn(options.batch, 3, *options.image_size), torch.randint(IDS, (options.batch,))
    if stored is None:
        return training_step(SupervisedMethod(model, IDS, **LOSSES), RECIPE, pixels, pids)
    erased = torch.tensor([[20, 10, 90, 60]]).repeat(options.batch, 1)
    rows = torch.randint(IMAGES, (options.batch,))
    method = FDMethod(model, IDS, representations=stored, **LOSSES)
    return training_step(method, RECIPE, pixels, pids, None, rows, erased)


def reading(stored: CachedRepresentations, folder: Path, options: argparse.Namespace) -> tuple[float, float]:
    """Seconds to read a batch of random images: least with the files in memory, and most without."""

    def read() -> float:
        indices = torch.randint(IMAGES, (options.batch,))
        start = time.perf_counter()
        stored[indices]
        return time.perf_counter() - start

    warm, cold = min(read() for _ in range(20)), 0.0
    for _ in range(5):
        for path in folder.rglob("*.safetensors"):
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        cold = max(cold, read())
    return warm, cold


def page(results: dict[str, Any]) -> Iterator[Block]:
    """Answer, steps, reading, and missed targets."""
    f = results["figures"]
    steps = f["steps"]

    def cell(student: str, column: str) -> str:
        took = steps[student]
        if column in took:
            return f"{took[column]:.3f} s"
        return f"{took['fd'] / took['plain']:.2f}" if column == "ratio" else f"at most {TARGET}"

    yield "# Cost of Factorized Distillation"
    ratios = {student: f"{took['fd'] / took['plain']:.2f} ({student})" for student, took in steps.items()}
    yield (
        f"**A distillation step takes {', '.join(ratios.values())} times as long as a plain step**; the target is at "
        f"most {TARGET}."
    )
    yield f"Setup: {how_timed(results)}."
    columns = {"plain": "plain step", "fd": "distillation step", "ratio": "ratio", "target": "target"}
    yield Table(columns, {student: student for student in steps}, cell, "student")
    fastest = min(took["fd"] for took in steps.values())
    yield (
        f"Reading a batch's representations takes {1e3 * f['read_s']:.1f} ms from a cache of {f['pictures']:,} images "
        f"({f['cache_mib']:.0f} MiB), or {1e3 * f['cold_read_s']:.1f} ms if the files are not in memory: "
        f"{100 * f['cold_read_s'] / fastest:.1f} % of the fastest of these steps."
    )
    for student, took in steps.items():
        if took["fd"] > TARGET * took["plain"]:
            yield (
                f"**{student} misses the target**: the 1x1 convolutions of the seven branches on the feature map alone "
                f"add {branches(student):.2f} of its multiply-adds."
            )
    yield written_by(results)


def branches(student: str) -> float:
    """Multiply-adds of the branches on the feature map, as a share of the student's."""
    model = ReIDModel(ReIDConfig.from_variant(student)).eval()
    with torch.no_grad():
        feature_map = model(torch.zeros(1, 3, *model.config.image_size)).feature_map
    return 7 * 512 * feature_map[0].numel() / measure_cost(model, repeats=1).macs


BENCHMARK = Speed("fd_speed", __doc__, lambda options: {"steps": measure}, page, step_options(), step_settings)
