"""Refine a weight chain: a trained teacher in, a chain out that students of every width are expanded from."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from reid_hub.evaluation import RetrievalEvaluation
from reid_hub.methods import RefineMethod
from reid_hub.models import ReIDModel, WeightChain
from reid_hub.models.weight_chain import default_distance
from reid_hub.models.width_groups import match_widths
from reid_hub.models.width_scale import at_width, width_of
from reid_hub.registry import lookup
from reid_hub.runs.evaluate import evaluate
from reid_hub.runs.models import new_model
from reid_hub.runs.processes import is_main_process, wait_for_everyone
from reid_hub.runs.provenance import provenance
from reid_hub.runs.train import TrainSettings, build_trainer, load_splits, publish, run, start_heads
from reid_hub.training import HEADS_FILE, RECIPES, TrainingSubset, override, write_heads


@dataclass
class RefineSettings(TrainSettings):
    """What to refine; the rest as in `TrainSettings`. `model` is the teacher's folder or repository.

    Attributes:
        width: of the narrowest student, in channels of the stem (CNN) or of the blocks (ViT).
        distance, clustering: see `WeightChain.from_teacher`, which gets the run's `seed`.
    """

    output_dir: str | Path = "runs/chain"
    recipe: str = "oskt-demo"
    width: int = 8
    distance: str | None = None
    clustering: str = "ward"

    @property
    def chain_seed(self) -> int:
        """Of the tables: only random ones depend on it."""
        return self.seed if self.clustering == "random" else 0


def refine(settings: RefineSettings) -> RetrievalEvaluation | None:
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
        chain = _clustered(teacher, settings)
        method = RefineMethod(teacher, len(subset.identities), chain=chain, **recipe.options)
        start_heads(method, settings.model, subset)
        return method

    trainer = build_trainer(
        settings, recipe, splits["train"], make_method=make_method, validated=lambda chain: chain.expand()
    )
    method: RefineMethod = trainer.model
    training = provenance(settings, recipe, trainer)
    keys = ("recipe", "changes", "dataset", "epochs", "seed")
    method.chain.config.refinement = {key: getattr(training, key) for key in keys}
    run(trainer, settings, splits)
    if trainer.is_world_process_zero():
        method.model.save_pretrained(out / "teacher")
        write_heads(out / "teacher", method.teacher_state(), trainer.train_dataset.identities)
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
) -> dict[Path, RetrievalEvaluation | None]:
    """One chain per width; with several, each in a sub-folder of `output_dir`, and a repository, named by its width.

    Args:
        progressive: widest first, and the narrowest student of each chain, with its classifier, is the next's teacher;
            by default all chains are of the same teacher.

    Returns:
        Folder and results of each chain, see `refine`.

    Raises:
        ValueError: if a width is given twice, none is, or the teacher has no such chain; before anything is trained.
    """
    if not widths or len(set(widths)) < len(widths):
        raise ValueError(f"give each width of a chain once, got {list(widths)}")
    check_widths(new_model(settings.model, settings.image_size), widths)
    made, teacher = {}, settings.model
    for width in sorted(widths, reverse=progressive):
        folder = Path(settings.output_dir) / (f"width{width}" if len(widths) > 1 else "")
        push_to = settings.push_to and settings.push_to + (f"-width{width}" if len(widths) > 1 else "")
        made[folder] = refine(replace(settings, output_dir=folder, model=str(teacher), width=width, push_to=push_to))
        if progressive:
            teacher = folder / "student"
            if is_main_process():
                WeightChain.from_pretrained(folder).expand().save_pretrained(teacher)
                shutil.copytree(folder / HEADS_FILE.parent, teacher / HEADS_FILE.parent, dirs_exist_ok=True)
            wait_for_everyone()
    return made


def check_widths(teacher: ReIDModel, widths: Sequence[int]) -> None:
    """Refuse widths of chains that a teacher cannot have.

    Raises:
        ValueError: naming the legal range.
    """
    full = width_of(teacher.config)
    for width in widths:
        if not 1 <= width <= full:
            raise ValueError(f"a chain of this teacher has a width from 1 to {full}, got {width}")
        with torch.device("meta"):
            match_widths(teacher.width_groups(), ReIDModel(at_width(teacher.config, width)).width_groups())


def chain_widths(count: int, narrowest: int = 8) -> list[int]:
    """Widths of several chains of one teacher: round(8 * 8 ** (i / n)), OSKT table C2."""
    return [round(narrowest * 8 ** (i / count)) for i in range(count)]


def _clustered(teacher: ReIDModel, settings: RefineSettings) -> WeightChain:
    """The chain before refinement; kept beside the run, so that a resumed one starts from the same tables at once.

    Raises:
        ValueError: if the chain that lies there was asked for otherwise.
    """
    folder = Path(settings.output_dir) / "clustered"
    # Of several processes the first may be writing it just now: the weights are put in place after the configuration.
    if settings.resume and (folder / "model.safetensors").is_file():
        chain = WeightChain.from_pretrained(folder)
        asked = {
            "width": settings.width,
            "clustering": settings.clustering,
            "distance": settings.distance or default_distance(teacher),
            "seed": settings.chain_seed,
        }
        found = {
            "width": width_of(chain.config.student_config),
            "clustering": chain.config.clustering,
            "distance": chain.config.distance,
            "seed": chain.config.seed,
        }
        differing = [f"{key} was {found[key]} and is {asked[key]}" for key in asked if asked[key] != found[key]]
        if differing:
            raise ValueError(f"{folder} is of another chain: {'; '.join(differing)}. Refine into another folder")
        return chain
    options = {"distance": settings.distance, "clustering": settings.clustering, "seed": settings.chain_seed}
    chain = WeightChain.from_teacher(teacher, settings.width, **options)
    chain.save_pretrained(folder, is_main_process=int(os.environ.get("RANK", 0)) == 0)
    return chain
