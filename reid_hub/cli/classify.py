"""The command that trains classifiers of general pictures."""

from pathlib import Path
from typing import Annotated, Any

import typer

from reid_hub.cli.options import show, takes, training_run


@takes(
    training_run,
    without=("validation", "keep_ids", "flip"),
    validation=0.0,
    out=Path("runs/classify"),
    data="shapes",
    recipe="classify-demo",
)
def classify(
    run: dict[str, Any],
    model: Annotated[str, typer.Option(help="A variant (`reid-hub list variants`), or a checkpoint.")] = "res18-x0.25",
    init: Annotated[
        str | None, typer.Option(help="Weights of the trunk: a file, torchvision/NAME, timm/NAME, a checkpoint.")
    ] = None,
    keep: Annotated[float, typer.Option(help="Share of the training pictures of each class kept: few-shot.")] = 1.0,
    per_class: Annotated[int | None, typer.Option(help="So many pictures of each class in place of a share.")] = None,
    evaluate_every: Annotated[int, typer.Option(help="Epochs between two evaluations on the test set.")] = 1,
):
    """Train a classifier of general pictures, evaluate it on the test set, save it with its results and card.

    Reported are the accuracy of the last epoch and the best on the way, which papers report and which flatters.

    Example: reid-hub classify --data cifar10 --data-dir ~/cifar --model densenet-bc-100 --recipe cifar --arg bf16=true
    """
    from reid_hub.runs.classify import ClassifySettings
    from reid_hub.runs.classify import classify as job

    out = run["output_dir"]
    settings = ClassifySettings(
        **run, model=model, init=init, keep=keep, per_class=per_class, evaluate_every=evaluate_every
    )
    show(job(settings), {"model of the last epoch": out, "best on the test set": out / "best"})
