"""Commands that train."""

from pathlib import Path
from typing import Annotated, Any

import typer

from reid_hub.cli.options import show, takes, training_run


def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that is made.")] = Path("runs/demo"),
    epochs: Annotated[float | None, typer.Option(help="In place of the recipe's.")] = None,
):
    """Train, evaluate, save, load back, index and search on drawn people, in minutes on two cores.

    Example: reid-hub demo
    """
    from reid_hub.runs.demo import run_demo

    title = "What was made (from drawn people, so the figures say nothing about real ones)"
    _show_table(title, run_demo(out, epochs=epochs))


def _show_table(title: str, rows: dict[str, str]) -> None:
    """Show two aligned columns between rules."""
    width = max(map(len, rows))
    lines = [f"  {name:<{width}}  {value}" for name, value in rows.items()]
    rule = "-" * max(len(title), *map(len, lines))
    typer.echo("\n".join(["", rule, title, rule, *lines, rule]))


@takes(training_run)
def train(
    run: dict[str, Any],
    model: Annotated[str, typer.Option(help="A variant (`reid-hub list variants`), or a checkpoint.")] = "res18-x0.25",
    init: Annotated[
        str | None, typer.Option(help="Weights to start from: a file, torchvision/NAME, timm/NAME, a checkpoint.")
    ] = None,
):
    """Train a model by a recipe, evaluate it once on the test set, save it with its results and card.

    Example: reid-hub train --data market1501 --data-dir ~/market --model res50 --recipe bot --arg bf16=true
    """
    from reid_hub.runs.train import TrainSettings
    from reid_hub.runs.train import train as job

    out = run["output_dir"]
    show(job(TrainSettings(**run, model=model, init=init)), {"model": out, "best of the validation": out / "best"})
