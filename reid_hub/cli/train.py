"""Commands that make models."""

from pathlib import Path

import typer

from reid_hub.cli.commands import command, refuse_options, show, show_table
from reid_hub.evaluation import measure_cost
from reid_hub.runs import attention as attentions
from reid_hub.runs import baselines, ptl
from reid_hub.runs import classify as classifiers
from reid_hub.runs import compress as compressing
from reid_hub.runs import demo as demos
from reid_hub.runs import expand as chains
from reid_hub.runs import fd as fds
from reid_hub.runs import kdep as kdeps
from reid_hub.runs import refine as refining
from reid_hub.runs import surface as surfaces
from reid_hub.runs import train as training
from reid_hub.runs.settings import RunSettings, TrainSettings


@command(demos.DemoSettings)
def demo(settings: demos.DemoSettings):
    """Train, evaluate, save, load back, index and search on drawn people, in minutes on two cores.

    Example: reid-hub demo
    """
    title = "What was made (from drawn people, so the figures say nothing about real ones)"
    show_table(title, demos.run_demo(settings.demo.out, epochs=settings.demo.epochs))


@command(TrainSettings)
def train(settings: TrainSettings):
    """Train a model by a recipe, evaluate it once on the test set, save it with its results and card.

    Example: reid-hub train --data market1501 --data-dir ~/market --model res50 --recipe bot --arg bf16=true
    """
    show(training.train(settings), _model_and_best(settings))


@command(classifiers.ClassifySettings)
def classify(settings: classifiers.ClassifySettings):
    """Train a classifier of general images, evaluate it on the test set, save it with its results and card.

    Reported are the accuracy of the last epoch and the best on the way, which papers report and which flatters.

    Example: reid-hub classify --data cifar10 --data-dir ~/cifar --model densenet-bc-100 --recipe cifar --arg bf16=true
    """
    out = Path(settings.output.out)
    show(classifiers.classify(settings), {"model of the last epoch": out, "best on the test set": out / "best"})


@command(compressing.CompressSettings)
def compress(settings: compressing.CompressSettings):
    """Shorten a model's embedding and quantise it; each size is a checkpoint below --out.

    Example: reid-hub compress --model runs/demo/model --head low_rank --dim 32 --dim 16 --int8
    """
    for folder, results in compressing.compress(settings).items():
        show(results, {"model": folder})
        if results is not None:
            typer.echo(f"bytes per vector: {results.cost.bytes_per_vector}")


@command(refining.RefineAllSettings)
def refine(settings: refining.RefineAllSettings):
    """Refine a teacher's weight chain, from which students of any width are expanded.

    With several widths the chains lie in sub-folders of --out, named by their width.

    Example: reid-hub refine --model runs/train --width 8
    """
    for folder, results in refining.refine_all(settings).items():
        show(results, {"weight chain": folder, "refined teacher": folder / "teacher"})


@command(chains.ExpandSettings)
def expand(settings: chains.ExpandSettings):
    """Expand a student from a weight chain: by name, by width, or the widest within budgets. Needs no data.

    Example: reid-hub expand runs/chain --budget-params 0.3M --out runs/student
    """
    cost, out = measure_cost(chains.expand(settings)), settings.expand.out
    typer.echo(
        f"{out}: {cost.parameters:,} parameters, {cost.all_macs:,} multiply-adds, "
        f"{cost.latency_ms:.1f} ms an image on this machine; train it with `reid-hub train --model {out}`"
    )


@command(baselines.ShrinkSettings)
def shrink(settings: baselines.ShrinkSettings):
    """Cut a narrower student out of a trained model: the baselines of weight chains. Train it further afterwards.

    Example: reid-hub shrink runs/train --student 8 --by wtsel --out runs/selected
    """
    how = settings.shrink
    baselines.shrink(how.model, how.student, how.by).save_pretrained(how.out)
    typer.echo(f"{how.out}: train it with `reid-hub train --model {how.out}`")


@command(baselines.SparseSettings)
def sparsify(settings: baselines.SparseSettings):
    """Continue training a model so that unimportant channels fade: DepGraph's sparsity learning, before `shrink`.

    Example: reid-hub sparsify --model runs/train --epochs 4
    """
    show(baselines.train_sparse(settings), {"model": settings.output.out})


@command(baselines.KDPPSettings)
def kdpp(settings: baselines.KDPPSettings):
    """Distill a frozen teacher into a student: logits, and the direction and norm of features (KD++).

    Example: reid-hub distill kdpp --teacher runs/train --model res18-x0.25 --epochs 4
    """
    show(baselines.train_kdpp(settings), _model_and_best(settings))


@command(fds.FDSettings)
def fd(settings: fds.FDSettings):
    """Distill teachers of parts of the image into a student of the whole: Factorized Distillation, all three steps.

    The initial student, the teachers, their representations and the final student lie below --out.

    Example: reid-hub distill fd --model res18a --backbone res50 --recipe fd-student --data market1501 --data-dir DIR
    """
    out = Path(settings.output.out)
    made = {"initial student": out / "initial", "teachers": out / "teachers", "representations": settings.cache_dir}
    show(fds.distill(settings), {**made, "model": out / "student"})


@command(attentions.AttentionSettings)
def attention(settings: attentions.AttentionSettings):
    """Draw what a distilled student looks at, and each of its branches on the feature map.

    Example: reid-hub distill attention runs/fd/student --out attention.png
    """
    typer.echo(attentions.attention(settings))


@command(ptl.STDSettings)
def std(settings: ptl.STDSettings):
    """Distill a network with a memory, or any other, into a plain one with features as long: PTL's STD.

    A folder lam-VALUE for each weight, and table.md, lie below --out.

    Example: reid-hub distill std --teacher runs/ptl --model res50-conv --lam 0 --lam 0.8 --recipe std --data market1501
    """
    for folder, results in ptl.distill(settings).items():
        show(results, {"model": folder})
    show(None, {"table": Path(settings.output.out) / "table.md"})


@command(surfaces.SurfaceSettings)
def surface(settings: surfaces.SurfaceSettings):
    """Draw the training loss around trained models, side by side, along two random directions.

    Example: reid-hub surface runs/ptl runs/baseline --out surface.png
    """
    typer.echo(surfaces.surface(settings))


@command(kdeps.PretrainSettings)
def pretrain(context: typer.Context, settings: kdeps.PretrainSettings):
    """Pre-train a compact backbone from a teacher's features, without labels: KDEP, basis and training.

    The folder is a model like any other: fine-tune it with `reid-hub train --model`, or `reid-hub classify --model`.

    Example: reid-hub pretrain --teacher runs/res50 --model res18 --recipe kdep-people --data luperson --data-dir DIR
    """
    if context.invoked_subcommand is not None:
        refuse_options(context)
        return
    show(kdeps.pretrain(settings), {"model": settings.output.out})


@command(kdeps.BasisSettings)
def basis(settings: kdeps.BasisSettings):
    """Make the basis of a teacher's features alone: for several students, or on several machines in turn.

    To resume, repeat the command; any number of processes share the work.

    Example: reid-hub pretrain basis --teacher runs/res50 --basis runs/basis.safetensors --data luperson --data-dir DIR
    """
    typer.echo(f"basis: {kdeps.make_basis(settings)}")


def _model_and_best(settings: RunSettings) -> dict[str, Path]:
    out = Path(settings.output.out)
    return {"model": out, "best of the validation": out / "best"}
