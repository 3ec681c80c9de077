"""Commands that create models."""

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
    """Train, evaluate, save, reload, index and search on synthetic people, in minutes on two cores.

    Example: reid-hub demo
    """
    title = "What was made (from drawn people, so the figures say nothing about real ones)"
    show_table(title, demos.run_demo(settings.demo.out, epochs=settings.demo.epochs))


@command(TrainSettings)
def train(settings: TrainSettings):
    """Train a model with a recipe, evaluate it once on the test set, and save it with its results and card.

    Example: reid-hub train --data market1501 --data-dir ~/market --model res50 --recipe bot --arg bf16=true
    """
    show(training.train(settings), _model_and_best(settings))


@command(classifiers.ClassifySettings)
def classify(settings: classifiers.ClassifySettings):
    """Train a general image classifier, evaluate it on the test set, and save it with its results and card.

    Reports the accuracy of the last epoch and of the best epoch; papers report the latter, which is biased upwards.

    Example: reid-hub classify --data cifar10 --data-dir ~/cifar --model densenet-bc-100 --recipe cifar --arg bf16=true
    """
    out = Path(settings.output.out)
    show(classifiers.classify(settings), {"model of the last epoch": out, "best on the test set": out / "best"})


@command(compressing.CompressSettings)
def compress(settings: compressing.CompressSettings):
    """Shorten a model's embedding and quantise it; each size is saved as a checkpoint below --out.

    Example: reid-hub compress --model runs/demo/model --head low_rank --dim 32 --dim 16 --int8
    """
    for folder, results in compressing.compress(settings).items():
        show(results, {"model": folder})
        if results is not None:
            typer.echo(f"bytes per vector: {results.cost.bytes_per_vector}")


@command(refining.RefineAllSettings)
def refine(settings: refining.RefineAllSettings):
    """Refine a teacher's weight chain, from which students of any width can be expanded.

    With several widths, the chains are saved in sub-folders of --out, named after their width.

    Example: reid-hub refine --model runs/train --width 8
    """
    for folder, results in refining.refine_all(settings).items():
        show(results, {"weight chain": folder, "refined teacher": folder / "teacher"})


@command(chains.ExpandSettings)
def expand(settings: chains.ExpandSettings):
    """Expand a student from a weight chain: by name, by width, or the widest within the given budgets. Needs no data.

    Example: reid-hub expand runs/chain --budget-params 0.3M --out runs/student
    """
    cost, out = measure_cost(chains.expand(settings)), settings.expand.out
    typer.echo(
        f"{out}: {cost.parameters:,} parameters, {cost.all_macs:,} multiply-adds, "
        f"{cost.latency_ms:.1f} ms an image on this machine; train it with `reid-hub train --model {out}`"
    )


@command(baselines.ShrinkSettings)
def shrink(settings: baselines.ShrinkSettings):
    """Extract a narrower student from a trained model: the baselines of weight chains. Train the student afterwards.

    Example: reid-hub shrink runs/train --student 8 --by wtsel --out runs/selected
    """
    how = settings.shrink
    baselines.shrink(how.model, how.student, how.by).save_pretrained(how.out)
    typer.echo(f"{how.out}: train it with `reid-hub train --model {how.out}`")


@command(baselines.SparseSettings)
def sparsify(settings: baselines.SparseSettings):
    """Continue training a model to decay unimportant channels: DepGraph's sparsity learning, before `shrink`.

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
    """Distill teachers of image parts into a whole-image student: Factorized Distillation, all three steps.

    The initial student, the teachers, their representations and the final student are saved below --out.

    Example: reid-hub distill fd --model res18a --backbone res50 --recipe fd-student --data market1501 --data-dir DIR
    """
    out = Path(settings.output.out)
    made = {"initial student": out / "initial", "teachers": out / "teachers", "representations": settings.cache_dir}
    show(fds.distill(settings), {**made, "model": out / "student"})


@command(attentions.AttentionSettings)
def attention(settings: attentions.AttentionSettings):
    """Draw attention maps of a distilled student and of each of its branches.

    Example: reid-hub distill attention runs/fd/student --out attention.png
    """
    typer.echo(attentions.attention(settings))


@command(ptl.STDSettings)
def std(settings: ptl.STDSettings):
    """Distill a network, with or without a memory, into a plain one with features of the same length: PTL's STD.

    Writes a folder lam-VALUE for each weight, and table.md, below --out.

    Example: reid-hub distill std --teacher runs/ptl --model res50-conv --lam 0 --lam 0.8 --recipe std --data market1501
    """
    for folder, results in ptl.distill(settings).items():
        show(results, {"model": folder})
    show(None, {"table": Path(settings.output.out) / "table.md"})


@command(surfaces.SurfaceSettings)
def surface(settings: surfaces.SurfaceSettings):
    """Draw the training loss around trained models along two random directions, side by side.

    Example: reid-hub surface runs/ptl runs/baseline --out surface.png
    """
    typer.echo(surfaces.surface(settings))


@command(kdeps.PretrainSettings)
def pretrain(context: typer.Context, settings: kdeps.PretrainSettings):
    """Pre-train a compact backbone from a teacher's features, without labels: KDEP, basis and training.

    The result is an ordinary model: fine-tune it with `reid-hub train --model`, or `reid-hub classify --model`.

    Example: reid-hub pretrain --teacher runs/res50 --model res18 --recipe kdep-people --data luperson --data-dir DIR
    """
    if context.invoked_subcommand is not None:
        refuse_options(context)
        return
    show(kdeps.pretrain(settings), {"model": settings.output.out})


@command(kdeps.BasisSettings)
def basis(settings: kdeps.BasisSettings):
    """Compute only the basis of a teacher's features: for several students, or before training on another machine.

    To resume, repeat the command; any number of processes share the work.

    Example: reid-hub pretrain basis --teacher runs/res50 --basis runs/basis.safetensors --data luperson --data-dir DIR
    """
    typer.echo(f"basis: {kdeps.make_basis(settings)}")


def _model_and_best(settings: RunSettings) -> dict[str, Path]:
    out = Path(settings.output.out)
    return {"model": out, "best of the validation": out / "best"}
