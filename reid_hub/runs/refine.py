"""Refine a trained teacher into a weight chain, from which students of any width can be expanded."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from transformers import PreTrainedModel

from reid_hub.errors import ReIDError
from reid_hub.evaluation import RetrievalEvaluation
from reid_hub.methods.state import STATE_FILE, write_state
from reid_hub.models import ReIDModel, WeightChain
from reid_hub.models.weight_chain import default_distance
from reid_hub.models.width_groups import match_widths
from reid_hub.models.width_scale import at_width, width_of
from reid_hub.records import RunRecord
from reid_hub.runs.models import new_model
from reid_hub.runs.options import Part, option
from reid_hub.runs.processes import is_main_process, wait_for_everyone
from reid_hub.runs.settings import OutputArguments, RecipeArguments, TrainSettings
from reid_hub.runs.train import Train
from reid_hub.training import ReIDTrainer, TrainingSubset

WIDTH = "Width of the narrowest student: stem channels (CNN) or block width (ViT)"


@dataclass(frozen=True)
class ClusteringArguments(Part):
    """How a teacher's rows are clustered; see `WeightChain.from_teacher`."""

    distance: Literal["euclidean", "cosine"] | None = option(None, "Distance between rows (default: as published).")
    clustering: Literal["ward", "random", "inverse"] = option("ward", "Clustering: the method's, or an ablation.")


@dataclass(frozen=True)
class RefineSettings(TrainSettings):
    """Settings of a refinement. `model` is the teacher: a folder or repository; a variant has random weights."""

    recipe: RecipeArguments = RecipeArguments(recipe="oskt-demo")
    output: OutputArguments = OutputArguments(out="runs/chain")
    rows: ClusteringArguments = ClusteringArguments()
    width: int = 8  # of the narrowest student

    @property
    def clustering(self) -> dict[str, Any]:
        """What decides the chain before it is refined; only a random one depends on the seed."""
        seed = self.recipe.seed if self.rows.clustering == "random" else 0
        return {"distance": self.rows.distance, "clustering": self.rows.clustering, "seed": seed}


@dataclass(frozen=True)
class ChainArguments(Part):
    """Which chains to refine."""

    width: list[int] = option(list, f"{WIDTH}. Repeat for several chains.")
    progressive: bool = option(False, "Refine the widest chain first; its narrowest student is the next one's teacher.")


@dataclass(frozen=True)
class RefineAllSettings(TrainSettings):
    """Settings for refining one or several chains of one teacher."""

    recipe: RecipeArguments = RecipeArguments(recipe="oskt-demo")
    output: OutputArguments = OutputArguments(out="runs/chain")
    rows: ClusteringArguments = ClusteringArguments()
    chains: ChainArguments = ChainArguments(width=[8])

    def of_width(self, width: int, **options: Any) -> RefineSettings:
        """The settings of one chain."""
        return RefineSettings.like(self, width=width, origin=self.origin, **options)


class Refine(Train):
    """Cluster a teacher and refine the chain; the folder then contains the chain and the refined teacher."""

    settings: RefineSettings
    kind: ClassVar[str] = "refine"
    method: ClassVar[str] = "oskt"

    @property
    def source(self) -> str:
        return self.settings.model.model

    @property
    def clustering_key(self) -> dict[str, Any]:
        """What decides the chain before it is refined."""
        return {"width": self.settings.width, **self.settings.clustering}

    def key(self) -> dict[str, Any]:
        return {**super().key(), "chain": self.clustering_key}

    def parts(self, model: ReIDModel, subset: TrainingSubset) -> Mapping[str, Any]:
        chain = self.clustered(model)
        chain.config.refinement = {
            "recipe": self.settings.recipe.recipe,
            "changes": dict(self.settings.recipe.set),
            "dataset": self.settings.data.name,
            "epochs": self.settings.epochs,
            "seed": self.settings.recipe.seed,
        }
        return {"chain": chain}

    def clustered(self, teacher: ReIDModel) -> WeightChain:
        """The chain before refinement, saved beside the run so that a resumed run reuses the same tables.

        Raises:
            ReIDError: if the saved chain was made with other settings.
        """
        folder = self.folder / "clustered"
        # The main process may still be writing it: the weights are written last.
        if self.resume and (folder / "model.safetensors").is_file():
            chain = WeightChain.from_pretrained(folder)
            found, asked = chain.config, dict(self.clustering_key)
            asked["distance"] = asked["distance"] or default_distance(teacher)
            before = {name: getattr(found, name) for name in ("clustering", "distance", "seed")}
            before["width"] = width_of(found.student_config)
            RunRecord("clustering", before).check(RunRecord("clustering", asked), folder)
            return chain
        chain = WeightChain.from_teacher(teacher, self.settings.width, **self.settings.clustering)
        chain.save_pretrained(folder, is_main_process=is_main_process())
        return chain

    def evaluated(self, exported: PreTrainedModel) -> ReIDModel:
        return exported.expand()

    def save(self, trainer: ReIDTrainer) -> None:
        if trainer.is_world_process_zero():
            method, folder = trainer.model, self.folder / "teacher"
            method.model.save_pretrained(folder)
            write_state(folder, method.teacher_state(), trainer.train_dataset.identities)

    def result_name(self, trainer: ReIDTrainer) -> str:
        config, chain = trainer.model.model.config, trainer.model.chain
        return f"{config.variant or config.backbone_config.model_type}.chain{width_of(chain.config.student_config)}"


def refine(settings: RefineSettings) -> RetrievalEvaluation | None:
    """Cluster a teacher and refine the chain.

    Returns:
        The contents of results.json: the narrowest student as expanded, without further training. None if the data set
        has no query and gallery.

    Raises:
        ReIDError: for unknown or invalid settings, before training starts.
    """
    return Refine(settings).run()


def refine_all(settings: RefineAllSettings) -> dict[Path, RetrievalEvaluation | None]:
    """One chain per width; with several, each in a sub-folder of `out`, and a repository, named by its width.

    With `progressive` the widest is first, and the narrowest student of each chain, with its classifier, is the next's
    teacher; by default all chains are of the same teacher.

    Returns:
        Folder and results of each chain, see `refine`.

    Raises:
        ReIDError: if a width is given twice, or the teacher has no such chain; before anything is trained.
    """
    widths, progressive = settings.chains.width, settings.chains.progressive
    if not widths or len(set(widths)) < len(widths):
        raise ReIDError(f"give each width of a chain once, got {widths}")
    check_widths(new_model(settings.model.model, settings.model.image_size), widths)
    made, teacher = {}, settings.model.model
    for width in sorted(widths, reverse=progressive):
        name = f"width{width}" if len(widths) > 1 else ""
        folder, push = Path(settings.output.out) / name, settings.output.push
        push = push and push + (f"-{name}" if name else "")
        made[folder] = refine(settings.of_width(width, out=folder, model=teacher, push=push))
        if progressive:
            teacher = str(folder / "student")
            if is_main_process():
                WeightChain.from_pretrained(folder).expand().save_pretrained(teacher)
                (Path(teacher) / STATE_FILE.parent).mkdir(exist_ok=True)
                shutil.copy2(folder / STATE_FILE, Path(teacher) / STATE_FILE)
            wait_for_everyone()
    return made


def check_widths(teacher: ReIDModel, widths: Sequence[int]) -> None:
    """Refuse widths of chains that a teacher cannot have.

    Raises:
        ReIDError: naming the legal range.
    """
    full = width_of(teacher.config)
    for width in widths:
        if not 1 <= width <= full:
            raise ReIDError(f"a chain of this teacher has a width from 1 to {full}, got {width}")
        with torch.device("meta"):
            match_widths(teacher.width_groups(), ReIDModel(at_width(teacher.config, width)).width_groups())


def chain_widths(count: int, narrowest: int = 8) -> list[int]:
    """Widths of several chains of one teacher: round(8 * 8 ** (i / n)), OSKT table C2."""
    return [round(narrowest * 8 ** (i / count)) for i in range(count)]
