"""The data set `shapes`: six kinds of shapes drawn by this package, so that a classifier trains without a download."""

from collections.abc import Iterator, Sequence
from io import BytesIO
from math import cos, pi, sin
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from reid_hub.data.records import DatasetSpec, Record, Scan
from reid_hub.errors import ReIDError

# Corners of each shape as (angle in turns, distance from the centre), or none for what has no corners.
CLASSES = {
    "circle": [(step / 48, 1.0) for step in range(48)],
    "cross": [
        (quarter / 4 + turn, far) for quarter in range(4) for turn, far in ((-0.04, 1.0), (0.04, 1.0), (0.125, 0.36))
    ],
    "half": [(step / 48, 1.0) for step in range(25)],
    "square": [(corner / 4, 1.0) for corner in range(4)],
    "star": [(point / 10, 1.0 if point % 2 == 0 else 0.4) for point in range(10)],
    "triangle": [(corner / 3, 1.0) for corner in range(3)],
}
SIZE = 64


def scan(data_dir: None, *, train_per_class: int = 200, test_per_class: int = 50, seed: int = 0) -> Scan:
    """Six classes of shapes in any colour, size, place and turn; an image depends on the seed and its number only."""
    if data_dir is not None:
        raise ReIDError(f"the data set 'shapes' is drawn and takes no data_dir; got {str(data_dir)!r}: leave it out")
    for name, number in (("train_per_class", train_per_class), ("test_per_class", test_per_class)):
        if number < 1:
            raise ReIDError(f"{name} must be at least 1, got {number}")
    names = list(CLASSES)
    splits = {
        part: [Record(f"{part}/{name}/{seed}-{n}", label) for label, name in enumerate(names) for n in range(count)]
        for part, count in (("train", train_per_class), ("test", test_per_class))
    }
    return Scan(Path(__file__).parent, splits, read=_read, sources=[Path(__file__)], classes=names)


def _read(root: Path, records: Sequence[Record]) -> Iterator[dict]:
    for record in records:
        part, name, key = record.path.split("/")
        seed, number = map(int, key.split("-"))
        rng = np.random.default_rng([seed, part == "test", record.pid, number])
        file = BytesIO()
        draw_shape(name, rng).save(file, "PNG")
        yield {"bytes": file.getvalue(), "path": None}


def draw_shape(name: str, rng: np.random.Generator) -> Image.Image:
    """One image of a shape on a noisy ground, RGB (64, 64)."""
    scale = 2  # drawn larger and reduced, so that edges are smooth
    ground, colour = rng.integers(0, 256, (2, 3))
    while np.abs(ground - colour).sum() < 200:
        colour = rng.integers(0, 256, 3)
    radius, turn = rng.uniform(0.3, 0.45) * SIZE, rng.uniform()
    x, y = rng.uniform(radius, SIZE - radius, 2)
    corners = [
        (
            scale * (x + far * radius * cos(2 * pi * (angle + turn))),
            scale * (y + far * radius * sin(2 * pi * (angle + turn))),
        )
        for angle, far in CLASSES[name]
    ]
    image = Image.new("RGB", (SIZE * scale, SIZE * scale), tuple(map(int, ground)))
    ImageDraw.Draw(image).polygon(corners, fill=tuple(map(int, colour)))
    pixels = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX)) + rng.normal(0, 8, (SIZE, SIZE, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


SPEC = DatasetSpec(
    name="shapes",
    title="Synthetic shapes",
    homepage="",
    licence="Apache-2.0",
    citation="",
    layout="",
    scan=scan,
    notes="Columns image and label; splits train and test. Drawn by reid_hub from a seed: figures on it say that a "
    "pipeline works.",
    redistributable=True,
)
