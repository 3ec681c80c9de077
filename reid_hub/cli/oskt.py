"""Commands of One-Shot Knowledge Transfer: refine a weight chain, expand students from it."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from reid_hub.cli.options import Model, Revision, pairs, show, takes, training_run
from reid_hub.errors import ReIDError


class Clustering(StrEnum):
    """Of a teacher's rows: the method's, and its ablations."""

    ward = "ward"
    random = "random"
    inverse = "inverse"


class Distance(StrEnum):
    """Between rows."""

    euclidean = "euclidean"
    cosine = "cosine"


@takes(training_run, out=Path("runs/chain"), recipe="oskt-demo")
def refine(
    run: dict[str, Any],
    model: Annotated[str, typer.Option(help="The trained teacher: a folder or repository; a variant is a random one.")],
    width: Annotated[
        list[int], typer.Option(help="Of the narrowest student: channels of the stem, width of a ViT. Several: chains.")
    ] = [8],  # noqa: B006 - typer copies it
    progressive: Annotated[
        bool, typer.Option(help="Refine the widest chain first; its narrowest student teaches the next.")
    ] = False,
    distance: Annotated[Distance | None, typer.Option(help="By default the architecture's published one.")] = None,
    clustering: Annotated[Clustering, typer.Option(help="How rows are clustered.")] = Clustering.ward,
):
    """Refine a teacher's weight chain, from which students of any width are expanded.

    With several widths the chains lie in sub-folders of --out, named by their width.

    Example: reid-hub refine --model runs/train --width 8
    """
    from reid_hub.runs.refine import RefineSettings, refine_all

    options = {"distance": distance and str(distance), "clustering": str(clustering)}
    settings = RefineSettings(**run, model=model, **options)
    for folder, results in refine_all(settings, width, progressive=progressive).items():
        show(results, {"weight chain": folder, "refined teacher": folder / "teacher"})


def expand(
    chain: Annotated[str, typer.Argument(help="A chain's folder or a repository of the Hub.")],
    out: Annotated[Path, typer.Option(help="Folder for the student.")],
    student: Annotated[str | None, typer.Option(help="A variant (`reid-hub list variants`), or a width.")] = None,
    width: Annotated[int | None, typer.Option(help="Channels of the stem, or width of a ViT.")] = None,
    budget_params: Annotated[str | None, typer.Option(help="The widest student with at most, e.g., 1.5M.")] = None,
    budget_macs: Annotated[str | None, typer.Option(help="... that multiplies and adds at most, e.g., 0.2G.")] = None,
    budget_ms: Annotated[float | None, typer.Option(help="... that takes at most so long for a picture here.")] = None,
    statistics: Annotated[bool, typer.Option(help="Carry statistics of the norms and the neck over.")] = True,
    rescale_queries: Annotated[bool, typer.Option(help="ViT: keep the attention of merged channels.")] = False,
    revision: Revision = None,
):
    """Expand a student from a weight chain: by name, by width, or the widest within budgets. Needs no data.

    Example: reid-hub expand runs/chain --budget-params 0.3M --out runs/student
    """
    from reid_hub.evaluation import measure_cost
    from reid_hub.runs.expand import expand_within, parse_amount
    from reid_hub.runs.models import open_chain

    budgets = {
        "params": None if budget_params is None else parse_amount(budget_params),
        "macs": None if budget_macs is None else parse_amount(budget_macs),
        "ms": budget_ms,
    }
    asked = [student is not None, width is not None, any(value is not None for value in budgets.values())]
    if sum(asked) > 1:
        raise ReIDError("give one of --student, --width or the budgets, not several")
    options = {"statistics": statistics, "rescale_queries": rescale_queries}
    if Path(chain).resolve() == out.resolve():
        raise ReIDError(f"the student would take the place of its chain: give another --out than {out}")
    opened = open_chain(chain, revision)
    if asked[2]:
        model = expand_within(opened, **budgets, **options)
    else:
        model = opened.expand(student if width is None else width, **options)
    model.save_pretrained(out)
    cost = measure_cost(model)
    typer.echo(
        f"{out}: {cost.parameters:,} parameters, {cost.all_macs:,} multiply-adds, "
        f"{cost.latency_ms:.1f} ms a picture here; train it with `reid-hub train --model {out}`"
    )


class Shrinker(StrEnum):
    """What weight chains are compared with."""

    wtsel = "wtsel"
    depgraph = "depgraph"


def shrink(
    model: Model,
    student: Annotated[str, typer.Option(help="A variant, or a width.")],
    out: Annotated[Path, typer.Option(help="Folder for the student.")],
    by: Annotated[Shrinker, typer.Option(help="Weight selection, or pruning by DepGraph.")] = Shrinker.wtsel,
):
    """Cut a narrower student out of a trained model: the baselines of weight chains. Train it further afterwards.

    Example: reid-hub shrink runs/train --student 8 --by wtsel --out runs/selected
    """
    from reid_hub.runs.baselines import shrink as job

    job(model, student, str(by)).save_pretrained(out)
    typer.echo(f"{out}: train it with `reid-hub train --model {out}`")


@takes(training_run, out=Path("runs/sparse"))
def sparsify(
    run: dict[str, Any],
    model: Annotated[str, typer.Option(help="A trained model: a folder or a repository of the Hub.")],
    reg: Annotated[float, typer.Option(help="Decay of the heaviest channels.")] = 1e-4,
    alpha: Annotated[float, typer.Option(help="Times that of the lightest.")] = 16.0,
):
    """Train a model on so that unimportant channels fade: DepGraph's sparsity learning, before `reid-hub shrink`.

    Example: reid-hub sparsify --model runs/train --epochs 4
    """
    from reid_hub.runs.baselines import train_sparse
    from reid_hub.runs.train import TrainSettings

    settings = TrainSettings(**run, model=model, origin="sparse")
    show(train_sparse(settings, reg=reg, alpha=alpha), {"model": run["output_dir"]})


@takes(training_run, out=Path("runs/kdpp"))
def kdpp(
    run: dict[str, Any],
    teacher: Annotated[str, typer.Option(help="Folder of a training run on the same identities.")],
    model: Annotated[str, typer.Option(help="The student: a variant, or a checkpoint.")] = "res18-x0.25",
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Of KD++: kd_weight, nd_weight, temperature, ...")
    ] = None,
):
    """Train a student beside a frozen teacher: logits, and the direction and norm of features (KD++).

    Example: reid-hub distill kdpp --teacher runs/train --model res18-x0.25 --epochs 4
    """
    from reid_hub.runs.baselines import train_kdpp
    from reid_hub.runs.train import TrainSettings

    out = run["output_dir"]
    settings = TrainSettings(**run, model=model, origin="kdpp")
    show(train_kdpp(settings, teacher, **pairs(option)), {"model": out, "best of the validation": out / "best"})
