"""The complete pipeline on synthetic people: train, evaluate, save, reload through AutoModel, index, search, plots."""

import time
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoModel

from reid_hub.data import load_reid_dataset
from reid_hub.files import atomic_folder
from reid_hub.logging import get_logger
from reid_hub.runs.evaluate import evaluate, recorded_training
from reid_hub.runs.options import Part, Settings, option
from reid_hub.runs.search import build_index, search_index
from reid_hub.runs.settings import TrainSettings
from reid_hub.runs.train import train

logger = get_logger(__name__)

DATA = "synthetic"
IMAGE_SIZE = (128, 64)


@dataclass(frozen=True)
class DemoArguments(Part):
    """Output folder and number of epochs of the demo."""

    out: str = option("runs/demo", "Folder for all outputs.")
    epochs: float | None = option(None, "Number of epochs (default: the recipe's).")


@dataclass(frozen=True)
class DemoSettings(Settings):
    """The settings of `reid-hub demo`."""

    demo: DemoArguments = DemoArguments()


def run_demo(out: str | Path, *, epochs: float | None = None) -> dict[str, str]:
    """Run every stage once on the built-in data set; returns the outputs and their paths."""
    out, start = Path(out), time.perf_counter()
    model_dir, gallery, index = out / "model", out / "gallery", out / "gallery.index"
    logger.info("1/4  train a compact model on drawn people, and evaluate it")
    settings = TrainSettings.of(
        out=model_dir, data=DATA, image_size=IMAGE_SIZE, recipe="demo", epochs=epochs, channels_last=True, resume=True
    )
    results = train(settings)

    logger.info("2/4  load it back as a stranger would, and draw what it finds")
    model = AutoModel.from_pretrained(model_dir)
    splits = load_reid_dataset(DATA)
    again = evaluate(model, splits, dataset_name=DATA, training=recorded_training(model_dir), plots=out / "plots")
    if again.metrics != results.metrics:
        raise RuntimeError(
            f"the model that was loaded back scores {again.metrics}, the one that was saved {results.metrics}: "
            "the checkpoint does not hold what was trained; please report this"
        )

    logger.info("3/4  index a folder of gallery images")
    write_images(splits["gallery"], gallery)
    build_index(gallery, model, index)

    logger.info("4/4  search it for a person seen by another camera")
    write_images(splits["query"].select(range(3)), out / "queries")
    queries = sorted((out / "queries").glob("*.png"))
    answers = out / "plots" / "search.png"
    search_index(index, model, queries, top=10, gallery_dir=gallery, plot=answers)

    metrics = {name: f"{100 * value:.1f} %" for name, value in results.metrics.to_dict().items()}
    made = {
        "model (Hub checkpoint)": str(model_dir),
        "card": str(model_dir / "README.md"),
        "results": str(model_dir / "results.json"),
        "gallery index": str(index),
        "rank lists": str(out / "plots" / "rank_lists.png"),
        "CMC, embedding map": f"{out / 'plots' / 'cmc.png'}, embedding_map.png",
        "search answers": str(answers),
        **metrics,
        "parameters": f"{results.cost.parameters:,}",
        "bytes per vector": f"{results.cost.bytes_per_vector:,}",
        "time": f"{time.perf_counter() - start:.0f} s",
    }
    return made


def write_images(split, folder: Path) -> None:
    """Write a split as a folder of PNG files, like a user's own images."""
    with atomic_folder(folder) as temporary:
        for row in split:
            row["image"].save(temporary / f"{Path(row['path']).stem}.png")
