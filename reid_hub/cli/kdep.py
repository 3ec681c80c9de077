"""The commands of KDEP."""

from pathlib import Path
from typing import Annotated, Any

import typer

from reid_hub.cli.options import refuse_options, show, takes, training_run


def pretraining(
    teacher: Annotated[
        str | None,
        typer.Option(help="A trained model: folder, NAMESPACE/NAME, timm/NAME. By default a small one is trained."),
    ] = None,
    tap: Annotated[str, typer.Option(help="Its features in front of the classifier, or of its map.")] = "features",
    basis: Annotated[Path | None, typer.Option(help="File of the basis, made where it is missing.")] = None,
    split: Annotated[str, typer.Option(help="Part of the data set.")] = "train",
    share: Annotated[float, typer.Option(help="Share of the pictures, drawn by the seed.")] = 1.0,
    per_class: Annotated[int | None, typer.Option(help="Pictures of each class in place of a share.")] = None,
    limit: Annotated[int | None, typer.Option(help="The first so many pictures only.")] = None,
    streaming: Annotated[bool, typer.Option(help="Read the data set as a stream, up to --limit.")] = False,
) -> dict[str, Any]:
    """The fields of `KDEPSettings` that both commands take from their options."""
    fields = {"teacher": teacher, "tap": tap, "basis": None if basis is None else str(basis), "split": split}
    return {**fields, "share": share, "per_class": per_class, "limit": limit, "streaming": streaming}


# Without labels nobody is held out.
_RUN = {"out": Path("runs/kdep"), "recipe": "kdep-demo", "validation": 0.0, "without": ("validation", "keep_ids")}


@takes(training_run, **_RUN)
@takes(pretraining, argument="pictures")
def pretrain(
    context: typer.Context,
    run: dict[str, Any],
    pictures: dict[str, Any],
    student: Annotated[str, typer.Option(help="A variant: res18, mobilenetv2, res50-s3, ...")] = "res18-x0.25",
    init: Annotated[str | None, typer.Option(help="First weights of the student: a file, torchvision/NAME.")] = None,
    align: Annotated[str | None, typer.Option(help="svd+pts (default), svd, sn, sm, cs.var, interp, ...")] = None,
    weight: Annotated[str | None, typer.Option(help="Of the loss: a number, or a pair of the paper.")] = None,
    crops: Annotated[int, typer.Option(help="Show each picture as so many crops, cached; 0 draws new ones.")] = 0,
    cache: Annotated[str | None, typer.Option(help="Folder of what the teacher says of them.")] = None,
):
    """Pre-train a compact trunk from a teacher's features, without labels: KDEP, basis and training.

    The folder is a model like any other: fine-tune it with `reid-hub train --model`, or `reid-hub classify --model`.

    Example: reid-hub pretrain --teacher runs/res50 --student res18 --recipe kdep-people --data luperson --data-dir DIR
    """
    if context.invoked_subcommand is not None:
        refuse_options(context)
        return
    from reid_hub.runs.kdep import KDEPSettings
    from reid_hub.runs.kdep import pretrain as job

    fields = {"model": student, "init": init, "align": align, "weight": weight, "crops": crops, "cache": cache}
    results = job(KDEPSettings(**run, **pictures, **fields))
    show(results, {"model": run["output_dir"]})


@takes(training_run, **_RUN)
@takes(pretraining, argument="pictures")
def basis(
    run: dict[str, Any],
    pictures: dict[str, Any],
    student: Annotated[str, typer.Option(help="Whose picture size and normalisation count.")] = "res18-x0.25",
):
    """Make the basis of a teacher's features alone: for several students, or on several machines in turn.

    A killed run goes on with the same command, and any number of processes share the work.

    Example: reid-hub pretrain basis --teacher runs/res50 --basis runs/basis.safetensors --data luperson --data-dir DIR
    """
    from reid_hub.runs.kdep import KDEPSettings, make_basis

    typer.echo(f"basis: {make_basis(KDEPSettings(**run, **pictures, model=student))}")
