"""The commands of Progressive Transfer Learning."""

from pathlib import Path
from typing import Annotated, Any

import typer

from reid_hub.cli.options import Data, DataDir, DataOption, pairs, show, takes, training_run


@takes(training_run, out=Path("runs/std"), recipe="std-demo", flip=True)
def std(
    run: dict[str, Any],
    teacher: Annotated[
        str | None, typer.Argument(help="Folder or repository of a trained model; none for --lam 0 alone.")
    ] = None,
    student: Annotated[
        str, typer.Option(help="A variant with features as long: res50-conv, densenet161, ... or a trained folder.")
    ] = "res18-x0.25-conv",
    init: Annotated[str | None, typer.Option(help="First weights of the student: a file, torchvision/NAME.")] = None,
    lam: Annotated[list[float] | None, typer.Option(help="Weight of the distillation; several for a sweep.")] = None,
):
    """Distill a network with a memory, or any other, into a plain one with features as long: PTL's STD.

    Below --out lie lam-VALUE for each weight, and table.md; without --lam the weight is the paper's, 0.8.

    Example: reid-hub distill std runs/ptl --student res50-conv --lam 0 --lam 0.8 --recipe std --data market1501
    """
    from reid_hub.runs.ptl import STDSettings, distill

    made = distill(STDSettings(**run, model=student, init=init, teacher=teacher, lams=lam or (0.8,)))
    for folder, results in made.items():
        show(results, {"model": folder})
    show(None, {"table": Path(run["output_dir"]) / "table.md"})


def surface(
    runs: Annotated[list[str], typer.Argument(help="Folders of trainings, such as runs/ptl and runs/baseline.")],
    data: Data = "synthetic",
    data_dir: DataDir = None,
    data_option: DataOption = None,
    count: Annotated[int, typer.Option(min=1, help="How many training pictures the loss is a mean over.")] = 256,
    points: Annotated[int, typer.Option(min=2, help="Losses along each side of the square.")] = 21,
    span: Annotated[float, typer.Option(help="How far to go, in lengths of the network's own filters.")] = 0.5,
    seed: Annotated[int, typer.Option(help="Of the two directions.")] = 0,
    out: Annotated[Path, typer.Option(help="The drawing.")] = Path("surface.png"),
):
    """Draw the training loss around trained models, side by side, along two random directions.

    Example: reid-hub surface runs/ptl runs/baseline --out surface.png
    """
    from reid_hub.data import load_reid_dataset
    from reid_hub.runs.surface import draw_surfaces

    split = load_reid_dataset(data, data_dir, **pairs(data_option))["train"]
    typer.echo(draw_surfaces(runs, split, out, count=count, points=points, span=span, seed=seed))
