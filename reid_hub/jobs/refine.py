"""Refine a weight chain: a trained teacher in, a chain out that students of every width are expanded from."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from reid_hub.jobs.evaluate import evaluate
from reid_hub.jobs.train import TrainSettings, build_trainer, load_splits, provenance, publish, run, start_heads
from reid_hub.methods import RefineMethod
from reid_hub.models import ReIDModel, WeightChain
from reid_hub.models.width_scale import width_of
from reid_hub.registry import lookup
from reid_hub.training import RECIPES, TrainingSubset, override, read_heads, write_heads


@dataclass
class RefineSettings(TrainSettings):
    """What to refine; the rest as in `TrainSettings`. `model` is the teacher's folder or repository.

    Attributes:
        width: of the narrowest student, in channels of the stem (CNN) or of the blocks (ViT).
        distance, clustering, cluster_seed: see `WeightChain.from_teacher`.
    """

    output_dir: str | Path = "runs/chain"
    recipe: str = "oskt-demo"
    width: int = 8
    distance: str | None = None
    clustering: str = "ward"
    cluster_seed: int = 0


def refine(settings: RefineSettings) -> dict[str, Any] | None:
    """Cluster a teacher and refine the chain; `output_dir` becomes the chain's folder, with the refined teacher in it.

    Returns:
        What results.json holds: the narrowest student as expanded, without further training. None where the data set
        has no query and gallery.

    Raises:
        ValueError, FileNotFoundError: for anything unknown or impossible, before training starts.
    """
    recipe = override(lookup(RECIPES, settings.recipe, "recipe"), settings.changes)
    if recipe.method != "oskt":
        raise ValueError(
            f"refining needs a recipe of the method 'oskt' (oskt, oskt-vit, oskt-demo), got {settings.recipe!r}"
        )
    splits, out = load_splits(settings), Path(settings.output_dir)

    def make_method(teacher: ReIDModel, subset: TrainingSubset) -> RefineMethod:
        chain, num_ids = _clustered(teacher, settings), int(subset.pids.max()) + 1
        method = RefineMethod(teacher, num_ids, chain=chain, **recipe.options)
        start_heads(method, settings.model, num_ids)
        return method

    trainer = build_trainer(
        settings, recipe, splits["train"], make_method=make_method, validated=lambda chain: chain.expand()
    )
    method: RefineMethod = trainer.model
    training = provenance(settings, recipe, trainer)
    keys = ("recipe", "changes", "dataset", "epochs", "seed")
    method.chain.config.refinement = {key: training[key] for key in keys}
    run(trainer, settings, splits)
    if trainer.is_world_process_zero():
        method.model.save_pretrained(out / "teacher")
        write_heads(out / "teacher", method.teacher_state())
    results = None
    if {"query", "gallery"} <= splits.keys():
        variant = method.model.config.variant or method.model.config.backbone_config.model_type
        results = evaluate(
            method.export().expand(),
            splits,
            dataset_name=settings.dataset_name or settings.data,
            name=f"{variant}.chain{width_of(method.chain.config.student_config)}",
            flip=settings.flip,
            training=training,
            folder=out,
        )
    publish(trainer, settings)
    return results


def refine_all(
    settings: RefineSettings, widths: Sequence[int], *, progressive: bool = False
) -> dict[Path, dict[str, Any] | None]:
    """One chain per width; with several, each in a sub-folder of `output_dir` named by its width.

    Args:
        progressive: widest first, and the narrowest student of each chain, with its classifier, is the next's teacher;
            by default all chains are of the same teacher.

    Returns:
        Folder and results of each chain, see `refine`.

    Raises:
        ValueError: if a width is given twice or none is.
    """
    if not widths or len(set(widths)) < len(widths):
        raise ValueError(f"give each width of a chain once, got {list(widths)}")
    made, teacher = {}, settings.model
    for width in sorted(widths, reverse=progressive):
        folder = Path(settings.output_dir) / (f"width{width}" if len(widths) > 1 else "")
        made[folder] = refine(replace(settings, output_dir=folder, model=str(teacher), width=width))
        if progressive:
            teacher = folder / "student"
            WeightChain.from_pretrained(folder).expand().save_pretrained(teacher)
            write_heads(teacher, read_heads(folder))
    return made


def chain_widths(count: int, narrowest: int = 8) -> list[int]:
    """Widths of several chains of one teacher: round(8 * 8 ** (i / n)), OSKT table C2."""
    return [round(narrowest * 8 ** (i / count)) for i in range(count)]


def _clustered(teacher: ReIDModel, settings: RefineSettings) -> WeightChain:
    """The chain before refinement; kept beside the run, so that a resumed one starts from the same tables at once."""
    folder = Path(settings.output_dir) / "clustered"
    if settings.resume and (folder / "config.json").is_file():
        return WeightChain.from_pretrained(folder)
    options = {"distance": settings.distance, "clustering": settings.clustering, "seed": settings.cluster_seed}
    chain = WeightChain.from_teacher(teacher, settings.width, **options)
    chain.save_pretrained(folder, is_main_process=int(os.environ.get("RANK", 0)) == 0)
    return chain
