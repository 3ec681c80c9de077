"""The commands of Factorized Distillation."""

from pathlib import Path
from typing import Annotated, Any

import typer

from reid_hub.cli.options import Data, DataDir, DataOption, pairs, show, takes, training_run


@takes(training_run, out=Path("runs/fd"), recipe="fd-demo", flip=True)
def fd(
    run: dict[str, Any],
    student: Annotated[str, typer.Option(help="A variant: squeezenet, res18a, res50b, ...")] = "res18-x0.25",
    init: Annotated[str | None, typer.Option(help="First weights of the student: a file, torchvision/NAME.")] = None,
    initial: Annotated[
        str | None, typer.Option(help="Folder of an initial student's training, in place of training one.")
    ] = None,
    backbone: Annotated[str, typer.Option(help="The variant of the teachers.")] = "res18-x0.25",
    teacher_init: Annotated[str | None, typer.Option(help="Their first weights.")] = None,
    teacher: Annotated[
        list[str] | None, typer.Option(metavar="VIEW=MODEL", help="A teacher that is there: a folder or repository.")
    ] = None,
    view: Annotated[
        list[str] | None,
        typer.Option(help="Hol, Up1, Mid1, Dn1, Up2, Mid2, Dn2, a band NAME=TOP:BOTTOM, Hol+G1, or all (default)."),
    ] = None,
    view_size: Annotated[tuple[int, int] | None, typer.Option(help="Height and width of a part of a picture.")] = None,
    teacher_epochs: Annotated[float | None, typer.Option(help="Of teachers and initial student.")] = None,
    set_teacher: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Replace a value of their recipes.")
    ] = None,
    cache: Annotated[str | None, typer.Option(help="Folder of the representations; by default in --out.")] = None,
    online: Annotated[bool, typer.Option(help="Ask the teachers in every step, and store nothing.")] = False,
):
    """Distill teachers of parts of the picture into a student of the whole: Factorized Distillation, all three steps.

    Below --out lie the initial student, the teachers, what they say, and the student. --resume goes on in any step.

    Example: reid-hub distill fd --student res18a --backbone res50 --recipe fd-student --data market1501 --data-dir DIR
    """
    from reid_hub.runs.fd import FDSettings, distill

    settings = FDSettings(
        **run,
        model=student,
        init=init,
        initial=initial,
        backbone=backbone,
        teacher_init=teacher_init,
        teachers={name: str(value) for name, value in pairs(teacher).items()},
        views=_one_or_several(view),
        view_size=view_size,
        teacher_epochs=teacher_epochs,
        teacher_changes=pairs(set_teacher),
        cache=cache,
        online=online,
    )
    out = Path(settings.output_dir)
    made = {"initial student": out / "initial", "teachers": out / "teachers", "representations": settings.cache_dir}
    show(distill(settings), {**made, "model": out / "student"})


def attention(
    student: Annotated[str, typer.Argument(help="Folder of a student's training, such as runs/fd/student.")],
    data: Data = "synthetic",
    data_dir: DataDir = None,
    data_option: DataOption = None,
    part: Annotated[str, typer.Option(help="Which part of the data set: query, gallery or train.")] = "query",
    count: Annotated[int, typer.Option(min=1, help="How many pictures, evenly spread.")] = 6,
    out: Annotated[Path, typer.Option(help="The drawing.")] = Path("attention.png"),
):
    """Draw what a distilled student looks at, and each of its branches on the feature map.

    Example: reid-hub distill attention runs/fd/student --out attention.png
    """
    from reid_hub.data import load_reid_dataset
    from reid_hub.registry import lookup
    from reid_hub.runs.attention import draw_attention

    splits = load_reid_dataset(data, data_dir, **pairs(data_option))
    typer.echo(draw_attention(student, lookup(dict(splits), part, "part of the data set"), out, count=count))


def _one_or_several(views: list[str] | None) -> str | list[str]:
    """Names of views, or of one set of them."""
    return "all" if not views else views[0] if len(views) == 1 else views
