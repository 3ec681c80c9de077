"""Cost of Factorized Distillation against plain training: a step with a cache of representations, and reading it.

    python benchmarks/fd_speed.py

A step is forward, backward and SGD on one batch: of the student alone, and with seven teachers' representations read
for random pictures and all fourteen branches, in turns in one process, the least of several rounds. The cache has as
many rows as Market-1501 has training pictures and the published lengths; "cold" is read after the system was told to
forget the files.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import datasets
import torch
from PIL import Image
from tables import wrapped
from timing import least_seconds, setting, step_parser, training_step, write

from reid_hub import ReIDConfig, ReIDModel
from reid_hub.data.views import choose_views
from reid_hub.evaluation import measure_cost
from reid_hub.methods import FDMethod, SupervisedMethod
from reid_hub.methods.fd import CachedRepresentations, Teacher, write_representations
from reid_hub.training import RECIPES

FOLDER = Path(__file__).parent / "fd_speed"
STUDENTS = ("squeezenet", "res18a", "res50a")
PICTURES, IDS = 12_936, 751
RECIPE = RECIPES["fd-student"]
LOSSES = {name: value for name, value in RECIPE.options.items() if name not in ("alpha", "beta")}


def main() -> None:
    options = step_parser(__doc__, FOLDER, batch=32).parse_args()
    with cache() as (folder, split):
        stored = CachedRepresentations(folder, choose_views("all"), split)
        figures = {
            "pictures": PICTURES,
            "cache_mib": sum(path.stat().st_size for path in folder.rglob("*.safe*")) / 2**20,
        }
        figures["steps"] = {student: steps(student, stored, options) for student in STUDENTS}
        figures["read_s"], figures["cold_read_s"] = reading(stored, folder, options)
    write(options, figures, render)


@contextmanager
def cache() -> Iterator[tuple[Path, datasets.Dataset]]:
    """Representations of all views by teachers of no use, of one small picture under many names."""
    with tempfile.TemporaryDirectory() as folder:
        picture = BytesIO()
        Image.new("RGB", (8, 16), (90, 120, 60)).save(picture, "PNG")
        rows = [
            {"image": {"bytes": picture.getvalue()}, "pid": 0, "camid": 0, "path": f"{row}.png"}
            for row in range(PICTURES)
        ]
        split = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
        backbone = {
            "model_type": "resnet",
            "embedding_size": 4,
            "hidden_sizes": [4],
            "depths": [1],
            "layer_type": "basic",
        }
        for view in choose_views("all"):
            head = {"head": "linear", "embedding_dim": view.dim, "neck": "none"}
            teacher = ReIDModel(ReIDConfig(backbone_config=backbone, image_size=(16, 16), **head))
            write_representations(Path(folder), Teacher(teacher, view, split))
        yield Path(folder), split


def steps(student: str, stored: CachedRepresentations, options: argparse.Namespace) -> dict[str, float]:
    """Seconds of a step of the student alone and with the teachers' words."""
    runs = {name: step(student, stored if name == "fd" else None, options) for name in ("plain", "fd")}
    return least_seconds(runs, options.rounds)


def step(student: str, stored: CachedRepresentations | None, options: argparse.Namespace) -> Callable[[], None]:
    torch.manual_seed(0)
    model = ReIDModel(ReIDConfig.from_variant(student, image_size=tuple(options.image_size)))
    pixels, pids = torch.randn(options.batch, 3, *options.image_size), torch.randint(IDS, (options.batch,))
    if stored is None:
        return training_step(SupervisedMethod(model, IDS, **LOSSES), RECIPE, pixels, pids)
    erased = torch.tensor([[20, 10, 90, 60]]).repeat(options.batch, 1)
    rows = torch.randint(PICTURES, (options.batch,))
    return training_step(
        FDMethod(model, IDS, representations=stored, **LOSSES), RECIPE, pixels, pids, None, rows, erased
    )


def reading(stored: CachedRepresentations, folder: Path, options: argparse.Namespace) -> tuple[float, float]:
    """Seconds to read a batch of random pictures: the least with the files in memory, and the most without."""

    def read() -> float:
        indices = torch.randint(PICTURES, (options.batch,))
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


def render(results: dict) -> str:
    f = results["figures"]
    rows = [
        f"| {name} | {took['plain']:.3f} s | {took['fd']:.3f} s | {took['fd'] / took['plain']:.2f} | at most 1.25 |"
        for name, took in f["steps"].items()
    ]
    fastest = min(found["fd"] for found in f["steps"].values())
    return "\n".join(
        [
            "# Cost of Factorized Distillation",
            "",
            f"Rendered from results.json by `{results['command']}`: {setting(results)}.",
            "",
            "| student | plain step | distillation step | ratio | target |",
            "|---|---:|---:|---:|---:|",
            *rows,
            "",
            *wrapped(
                f"A batch's representations are read in {1e3 * f['read_s']:.1f} ms from a cache of {f['pictures']:,} "
                f"pictures ({f['cache_mib']:.0f} MiB), in {1e3 * f['cold_read_s']:.1f} ms where the system has "
                f"forgotten the files: {100 * f['cold_read_s'] / fastest:.1f} % of the fastest of these steps."
            ),
            *missed(f["steps"]),
            "",
        ]
    )


def missed(steps: dict) -> list[str]:
    """Which students cost more than wanted, and how many multiply-adds of theirs the branches on the map have."""
    lines = []
    for name, took in steps.items():
        if took["fd"] > 1.25 * took["plain"]:
            model = ReIDModel(ReIDConfig.from_variant(name))
            with torch.no_grad():
                feature_map = model.eval()(torch.zeros(1, 3, *model.config.image_size)).feature_map
            share = 7 * 512 * feature_map[0].numel() / measure_cost(model, repeats=1).macs
            said = "the 1x1 convolutions of the seven branches on the feature map alone have"
            lines += ["", *wrapped(f"**{name} misses the target**: {said} {share:.2f} of its multiply-adds.")]
    return lines


if __name__ == "__main__":
    main()
