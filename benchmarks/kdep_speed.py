"""Cost of KDEP against plain training: a pre-training step with the teacher and with its cached features; a basis.

    OMP_NUM_THREADS=2 python benchmarks/run.py kdep_speed

A step is forward, backward and SGD on one batch: of the student alone with a classifier of 1,000 classes, with a
ResNet-50 teacher that runs in the step (SVD+PTS), and with stored features instead. The teacher's forward pass is timed
by itself, too. All take turns in one process. Ratios are computed within a round, and their median counts: they contain
differences, which the least times of different rounds would distort. The basis is computed from 128,000 given features
of 2,048 channels: moments in float64, then eigenvectors.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from render import Block, Table
from speed import (
    Speed,
    how_timed,
    one_image,
    step_options,
    step_settings,
    take_turns,
    training_step,
    written_by,
)

from reid_hub import ReIDConfig, ReIDModel
from reid_hub.data.images import ImageDataset
from reid_hub.methods import KDEPMethod, SupervisedMethod
from reid_hub.methods.kdep import Basis, CachedFeatures, Crops, Moments, TappedTeacher, write_features
from reid_hub.training import RECIPES

STUDENTS = ("res18", "mobilenetv2", "res50-s3")
RECIPE = RECIPES["kdep"]
TIMED = {
    "plain": "plain step",
    "teacher": "teacher's forward",
    "kdep": "KDEP step",
    "cached": "with cached features",
}
IMAGES, CLASSES = 1024, 1000


def basis(options: argparse.Namespace, dim: int = 2048, batch: int = 64) -> dict[str, float]:
    """Seconds to compute a basis from batches of features; 1,024 features repeat, which does not affect the time."""
    drawn = torch.randn(1024, dim) @ torch.randn(dim, dim)
    start = time.perf_counter()
    batches = (drawn[row % 1024 : row % 1024 + batch] for row in range(0, options.features, batch))
    Basis.from_moments(Moments.of(batches, dim))
    return {"features": options.features, "basis_s": time.perf_counter() - start}


def steps(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of every student in all rounds."""
    torch.manual_seed(0)
    teacher = TappedTeacher(model("res50", options).to(memory_format=torch.channels_last))
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        given = {"plain": None, "kdep": teacher, "cached": cached(Path(folder), teacher.dim)}
        for student in STUDENTS:
            pixels = torch.randn(options.batch, 3, *options.image_size).to(memory_format=torch.channels_last)
            runs: dict[str, Callable] = {"teacher": partial(teacher, pixels)}
            runs |= {name: step(student, features, pixels, options) for name, features in given.items()}
            found[student] = take_turns(runs, options.rounds)
    return {"steps": found}


def model(name: str, options: argparse.Namespace) -> ReIDModel:
    """A variant with the library's strides, as in the recipe."""
    return ReIDModel(ReIDConfig.from_variant(name, image_size=tuple(options.image_size), last_stride=None))


def cached(folder: Path, dim: int) -> CachedFeatures:
    """A cache of features as long as the teacher's."""
    split = one_image(IMAGES, (8, 8), pid=-1, camid=-1)
    images = ImageDataset(split, (8, 8), cache_dir=folder / "decoded")
    backbone = {
        "model_type": "resnet",
        "embedding_size": 4,
        "hidden_sizes": [dim],
        "depths": [1],
        "layer_type": "basic",
    }
    small = ReIDModel(ReIDConfig(backbone_config=backbone, image_size=(8, 8)))
    crops = Crops(TappedTeacher(small), images, None, small.config, seed=0)
    write_features(folder / "features", crops, 1)
    return CachedFeatures(folder / "features", 1, split["path"][:], crops.mark())


def step(
    student: str, features: TappedTeacher | CachedFeatures | None, pixels: torch.Tensor, options
) -> Callable[[], None]:
    torch.manual_seed(0)
    labels, rows = torch.randint(CLASSES, (len(pixels),)), torch.randint(IMAGES, (len(pixels),))
    if features is None:
        losses = {"label_smoothing": 0.0, "metric": None, "classifier_bias": True}
        return training_step(SupervisedMethod(model(student, options), CLASSES, **losses), RECIPE, pixels, labels)
    ones = torch.ones(2, features.dim, dtype=torch.float64)
    unit = Basis(torch.eye(features.dim, dtype=torch.float64), *ones, 10**4)
    method = KDEPMethod(model(student, options), features=features, basis=unit, **RECIPE.options)
    return training_step(method, RECIPE, pixels, labels, None, rows)


def page(results: dict[str, Any]) -> Iterator[Block]:
    """Answer, steps with their ratios, and the basis."""
    f = results["figures"]

    def cell(student: str, column: str) -> str:
        took = f["steps"][student]
        if column in TIMED:
            return f"{median(took[column]):.2f} s"
        return f"{ratio(student, column):.2f}"

    def ratio(student: str, column: str) -> float:
        rounds = zip(*(f["steps"][student][part] for part in TIMED), strict=True)
        asked = column == "asked"
        return median((kdep - teacher if asked else cached) / plain for plain, teacher, kdep, cached in rounds)

    def spanned(column: str) -> str:
        found = [ratio(student, column) for student in f["steps"]]
        return f"{min(found):.2f} to {max(found):.2f}"

    yield "# Cost of KDEP"
    yield (
        f"**Without the teacher's forward pass, a KDEP step takes {spanned('asked')} times as long as a plain step; "
        f"with cached features, {spanned('stored')} times.** The target of both is at most 1.1."
    )
    yield (f"Setup: ResNet-50 teacher, {how_timed(results)}. Medians of {results['setting']['rounds']} rounds.")
    ratios = {"asked": "(KDEP - teacher) / plain, at most 1.1", "stored": "cached / plain, at most 1.1"}
    yield Table({**TIMED, **ratios}, {student: student for student in f["steps"]}, cell, "student")
    basis_time = f"{f['basis_s']:.1f} s (target: under 60 s on two cores)"
    yield f"A basis of {f['features']:,} features of 2,048 channels: {basis_time}."
    yield written_by(results)


OPTIONS = {
    **step_options(image_size=(224, 224), rounds=9),
    "--features": {"type": int, "default": 128_000, "help": "number of features of the basis"},
}
PARTS = {"basis": basis, "steps": steps}
BENCHMARK = Speed("kdep_speed", __doc__, lambda options: PARTS, page, OPTIONS, step_settings)
