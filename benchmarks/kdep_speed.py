"""Cost of KDEP against plain training: a pre-training step with the teacher and with its cached features; a basis.

    OMP_NUM_THREADS=2 python benchmarks/kdep_speed.py

A step is forward, backward and SGD on one batch: of the student alone with a classifier of 1,000 classes, with a
ResNet-50 teacher asked in the step (SVD+PTS), and with stored features in its place; the teacher's forward pass by
itself. All take turns in one process. Ratios are of the times of one round, and their median counts: they are of
differences, which the least times of different rounds would get wrong. The basis is that of 128,000 features of 2,048
channels, which are there already: moments in float64, then eigenvectors.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from statistics import median

import datasets
import torch
from PIL import Image
from timing import seconds_in_turns, setting, step_parser, training_step, write

from reid_hub import ReIDConfig, ReIDModel
from reid_hub.data.images import ImageDataset
from reid_hub.methods import KDEPMethod, SupervisedMethod
from reid_hub.methods.kdep import Basis, CachedFeatures, Crops, Moments, Teacher, write_features
from reid_hub.training import RECIPES

FOLDER = Path(__file__).parent / "kdep_speed"
STUDENTS = ("res18", "mobilenetv2", "res50-s3")
RECIPE = RECIPES["kdep"]
PARTS = ("plain", "teacher", "kdep", "cached")
PICTURES, CLASSES, FEATURES = 1024, 1000, 128_000


def main() -> None:
    parser = step_parser(__doc__, FOLDER, batch=32, image_size=(224, 224), rounds=9)
    parser.add_argument("--features", type=int, default=FEATURES, help="of the basis")
    options = parser.parse_args()
    options.image_size = tuple(options.image_size)
    figures = {"features": options.features, "basis_s": basis_seconds(options.features)}
    torch.manual_seed(0)
    teacher = Teacher(model("res50", options).to(memory_format=torch.channels_last))
    with tempfile.TemporaryDirectory() as folder:
        stored = cached(Path(folder), teacher.dim)
        figures["steps"] = {student: steps(student, teacher, stored, options) for student in STUDENTS}
    write(options, figures, render)


def model(name: str, options: argparse.Namespace) -> ReIDModel:
    """As the recipe has it: with the strides of the library."""
    return ReIDModel(ReIDConfig.from_variant(name, image_size=options.image_size, last_stride=None))


def basis_seconds(count: int, dim: int = 2048, batch: int = 64) -> float:
    """Seconds from features in batches to a basis; the same thousand again and again, which changes no operation."""
    drawn = torch.randn(1024, dim) @ torch.randn(dim, dim)
    start = time.perf_counter()
    batches = (drawn[row % 1024 : row % 1024 + batch] for row in range(0, count, batch))
    Basis.from_moments(Moments.of(batches, dim))
    return time.perf_counter() - start


def cached(folder: Path, dim: int) -> CachedFeatures:
    """Features of the length of the teacher's, of one small picture under many names."""
    picture = BytesIO()
    Image.new("RGB", (8, 8), (90, 120, 60)).save(picture, "PNG")
    row = {"image": {"bytes": picture.getvalue()}, "pid": -1, "camid": -1}
    split = datasets.Dataset.from_list([{**row, "path": f"{number}"} for number in range(PICTURES)])
    images = ImageDataset(split.cast_column("image", datasets.Image()), (8, 8), cache_dir=folder / "decoded")
    trunk = {"model_type": "resnet", "embedding_size": 4, "hidden_sizes": [dim], "depths": [1], "layer_type": "basic"}
    small = ReIDModel(ReIDConfig(backbone_config=trunk, image_size=(8, 8)))
    crops = Crops(Teacher(small), images, None, small.config, seed=0)
    write_features(folder / "features", crops, 1)
    return CachedFeatures(folder / "features", 1, split["path"][:], crops.mark())


def steps(
    student: str, teacher: Teacher, stored: CachedFeatures, options: argparse.Namespace
) -> dict[str, list[float]]:
    """Seconds of a step of the student alone, with the teacher, and with its features; and of the teacher's forward."""
    pixels = torch.randn(options.batch, 3, *options.image_size).to(memory_format=torch.channels_last)
    runs: dict[str, Callable] = {"teacher": partial(teacher, pixels)}
    for name, features in (("plain", None), ("kdep", teacher), ("cached", stored)):
        runs[name] = step(student, features, pixels, options)
    return seconds_in_turns(runs, options.rounds)


def step(student: str, features: Teacher | CachedFeatures | None, pixels: torch.Tensor, options) -> Callable[[], None]:
    torch.manual_seed(0)
    labels, rows = torch.randint(CLASSES, (len(pixels),)), torch.randint(PICTURES, (len(pixels),))
    if features is None:
        losses = {"label_smoothing": 0.0, "metric": None, "classifier_bias": True}
        return training_step(SupervisedMethod(model(student, options), CLASSES, **losses), RECIPE, pixels, labels)
    basis = Basis(
        torch.eye(features.dim, dtype=torch.float64), *torch.ones(2, features.dim, dtype=torch.float64), 10**4
    )
    method = KDEPMethod(model(student, options), features=features, basis=basis, **RECIPE.options)
    return training_step(method, RECIPE, pixels, labels, None, rows)


def render(results: dict) -> str:
    f = results["figures"]
    rows = []
    for name, took in f["steps"].items():
        rounds = list(zip(*(took[part] for part in PARTS), strict=True))
        asked = median((kdep - teacher) / plain for plain, teacher, kdep, _ in rounds)
        cached = median(cached / plain for plain, _, _, cached in rounds)
        times = " | ".join(f"{median(took[part]):.2f} s" for part in PARTS)
        rows.append(f"| {name} | {times} | {asked:.2f} | {cached:.2f} |")
    return "\n".join(
        [
            "# Cost of KDEP",
            "",
            f"Rendered from results.json by `{results['command']}`: ResNet-50 teacher,",
            f"{setting(results)}. Medians of {results['setting']['rounds']} rounds.",
            "",
            "| student | plain step | teacher's forward | KDEP step | with cached features | (KDEP - teacher) / plain,"
            " at most 1.1 | cached / plain, at most 1.1 |",
            "|---|---:|---:|---:|---:|---:|---:|",
            *rows,
            "",
            f"A basis of {f['features']:,} features of 2,048 channels: {f['basis_s']:.1f} s (under 60 s on two cores).",
            "",
        ]
    )


if __name__ == "__main__":
    main()
