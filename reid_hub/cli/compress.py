"""The command of Embedding Compression."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from reid_hub.cli.options import Model, show, takes, training_run


class Head(StrEnum):
    """What shortens the embedding; the last three are fitted without training."""

    slice = "slice"
    low_rank = "low_rank"
    prune = "prune"
    matryoshka = "matryoshka"
    pca = "pca"
    random = "random"
    none = "none"


class Granularity(StrEnum):
    """Of the int8 scale."""

    tensor = "tensor"
    dimension = "dimension"
    vector = "vector"


class Start(StrEnum):
    """Of a low-rank map."""

    pca = "pca"
    random = "random"
    slice = "slice"


class Criterion(StrEnum):
    """Of the importance of a coordinate."""

    norm = "norm"
    variance = "variance"


@takes(training_run, out=Path("runs/compress"), recipe="compress-demo")
def compress(
    run: dict[str, Any],
    model: Model,
    init: Annotated[str | None, typer.Option(help="Weights that MODEL starts from: a file, timm/NAME, ...")] = None,
    head: Annotated[Head, typer.Option(help="What shortens the embedding; pca, random and none train nothing.")] = (
        Head.low_rank
    ),
    dim: Annotated[
        list[int] | None, typer.Option(help="Dimensions, several times for several; by default the paper's, scaled.")
    ] = None,
    int8: Annotated[bool, typer.Option(help="One byte per dimension, quantised in training.")] = False,
    granularity: Annotated[Granularity, typer.Option(help="What has an int8 scale of its own.")] = Granularity.tensor,
    start: Annotated[Start, typer.Option(help="Where a low-rank map starts; the paper's is random.")] = Start.pca,
    criterion: Annotated[Criterion, typer.Option(help="By which prune keeps a coordinate.")] = Criterion.norm,
    retrain: Annotated[float, typer.Option(help="Epochs of each retraining of prune, as a share.")] = 0.2,
    base: Annotated[
        bool | None, typer.Option(help="Train prune's full length first; by default where it is needed.")
    ] = None,
):
    """Shorten a model's embedding and quantise it; each size is a checkpoint below --out.

    Example: reid-hub compress runs/demo/model --head low_rank --dim 32 --dim 16 --int8
    """
    from reid_hub.runs.compress import CompressSettings
    from reid_hub.runs.compress import compress as make

    options = {"granularity": str(granularity), "start": str(start), "criterion": str(criterion)}
    options |= {"int8": int8, "retrain": retrain, "base": base, "dims": dim or ()}
    for folder, results in make(CompressSettings(**run, model=model, init=init, head=str(head), **options)).items():
        show(results, {"model": folder})
        if results is not None:
            typer.echo(f"bytes per vector: {results.cost.bytes_per_vector}")
