"""Stages of the rows: every call into the package's runs. Options are plain mappings; all stages resume."""

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Module, settings and function of each run.
RUNS = {
    "train": ("train", "TrainSettings", "train"),
    "classify": ("classify", "ClassifySettings", "classify"),
    "pretrain": ("kdep", "PretrainSettings", "pretrain"),
    "compress": ("compress", "CompressSettings", "compress"),
    "refine": ("refine", "RefineSettings", "refine"),
    "train_sparse": ("baselines", "SparseSettings", "train_sparse"),
    "fd_initial": ("fd", "FDSettings", "train_initial"),  # below the folder in initial/
    "fd_teachers": ("fd", "FDSettings", "train_teachers"),  # in teachers/VIEW/
    "fd_cache": ("fd", "FDSettings", "make_cache"),
    "fd_student": ("fd", "FDSettings", "train_student"),  # in student/
    "distill_std": ("ptl", "STDSettings", "distill"),
}


def run(name: str, /, **options: Any) -> Any:
    """Call one of `RUNS` with its options; no identities are held out for validation."""
    module, _, call = RUNS[name]
    return getattr(importlib.import_module(f"reid_hub.runs.{module}"), call)(settings_of(name, **options))


def settings_of(name: str, /, **options: Any) -> Any:
    """The settings of one of `RUNS` from its options."""
    module, kind, _ = RUNS[name]
    settings = getattr(importlib.import_module(f"reid_hub.runs.{module}"), kind)
    return settings.of(**{**({"validation": 0} if "validation" in settings.options() else {}), **options})


def strip_classifier(model: Path, folder: Path) -> None:
    """Save an image classifier's model without the classifier: fine-tuning starts with other classes."""
    from reid_hub import ReIDModel

    ReIDModel.from_pretrained(model).save_pretrained(folder)


def evaluate_codec(model: str, codec: str, data: Mapping[str, Any], name: str, folder: Path) -> None:
    """Evaluate a model with its gallery stored in a codec."""
    from reid_hub import load_reid_dataset
    from reid_hub.runs.evaluate import evaluate, recorded_training
    from reid_hub.runs.models import open_model

    splits = load_reid_dataset(data["data"], data["data_dir"])
    fields = {"dataset_name": data["dataset_name"], "name": name, "codec": codec}
    evaluate(open_model(model), splits, training=recorded_training(model), **fields).write(folder / "results.json")


def cluster(teacher: Path, student: str, folder: Path) -> None:
    """Cluster a chain at a student's own widths, for the run `refine`, which starts from the folder clustered/."""
    from reid_hub import WeightChain
    from reid_hub.models.width_scale import student_of
    from reid_hub.runs.models import open_model

    if not (folder / "model.safetensors").is_file():
        model = open_model(teacher)
        WeightChain.from_teacher(model, student_of(model.config, student)).save_pretrained(folder)


def start_student(source: Path, student: str, how: str, folder: Path) -> None:
    """Save a student's initial weights: expanded from a chain ("oskt") or cut from a teacher ("wtsel", "depgraph")."""
    from reid_hub.runs.baselines import shrink
    from reid_hub.runs.models import open_chain

    if not (folder / "config.json").is_file():
        model = open_chain(source).expand(student) if how.startswith("oskt") else shrink(source, student, by=how)
        model.save_pretrained(folder)


def compare_copies(student: Path, chain: Path, variant: str) -> None:
    """Add to a student's results the mean cosine of filters that started from the same row, and of all others."""
    import torch

    from reid_hub.runs.models import open_chain, open_model

    opened, state = open_chain(chain), open_model(student).state_dict()
    slots, alike = opened.slots(opened.sizes_of(variant)), {True: [], False: []}
    for name, axes in opened.groups.axes.items():
        if state[name].ndim == 4 and len(axes.rows) == 1:
            source = slots[axes.rows[0]].source
            filters = torch.nn.functional.normalize(state[name].flatten(1), dim=1)
            pairs = torch.ones(len(source), len(source)).triu(1).bool()
            for same in alike:
                alike[same].append((filters @ filters.T)[pairs & ((source[:, None] == source) == same)])
    means = {key: torch.cat(alike[same]).mean().item() for key, same in {"same_row": True, "other_rows": False}.items()}
    copies = {key: round(value, 4) for key, value in means.items() if value == value}
    _write(student, {**_read(student), "copies": copies})


def distill_best(teachers: Sequence[Path], **options: Any) -> None:
    """Run STD from the teacher with the best test mAP; the paper chose its teacher in the same way."""
    best = max(teachers, key=lambda folder: _read(folder)["metrics"]["mAP"])
    (made,) = run("distill_std", teacher=str(best), **options)
    results = _read(made)
    results["training"]["taught_by"] = best.name
    _write(Path(options["out"]), results)


def compare_states(folder: Path, data: Mapping[str, Any], count: int = 1280) -> None:
    """Add a trained network's loss on training images to its results, from zeros and from the state carried over."""
    from reid_hub import load_reid_dataset
    from reid_hub.runs.surface import training_loss

    split = load_reid_dataset(data["data"], data["data_dir"])["train"]
    method, loss = training_loss(folder, split, count=count)  # each batch shows other people than the one before
    losses = {"zeros": loss()}
    for cell in method.model.modules():
        if hasattr(cell, "slots"):
            cell.train()  # the cell reads and writes its memory; the norms stay in evaluation mode
    losses["carried"] = loss()
    results = _read(folder)
    results["training"]["loss_from_state"] = losses
    _write(folder, results)


# Facts about the package that rows and pages need.


def describe(model: str) -> tuple[str, int]:
    """Variant and embedding length of a trained model."""
    from reid_hub.runs.models import open_model

    opened = open_model(model)
    return opened.config.variant, opened.embedding_dim


def width(variant: str) -> int:
    """Number of channels of a variant's stem."""
    from reid_hub import ReIDConfig
    from reid_hub.models.width_scale import width_of

    return width_of(ReIDConfig.from_variant(variant))


def view_names(views: str) -> list[str]:
    """Names of the views in a set such as "all" or "Hol+G1"."""
    from reid_hub.data.views import choose_views

    return [view.name for view in choose_views(views)]


def side_network(backbone: str, cell: str, memory: bool, blocks: Sequence[int] | None = None) -> dict[str, Any]:
    """Model and recipe changes of a backbone with a side network; with `blocks`, of a DenseNet classifier."""
    from reid_hub.models.backbones import find_variant
    from reid_hub.runs.ptl import classification_arm, side_network

    if blocks is None:
        return side_network(backbone, cell, memory)
    fields = classification_arm(backbone, cell, memory, augment=True)
    network = {**find_variant(fields["model"])["backbone_config"], "blocks": list(blocks)}
    return {**fields, "set": {**fields["set"], "config.backbone_config": network}}


def recipe(name: str) -> Any:
    """A recipe of the package by name."""
    from reid_hub.training import RECIPES

    return RECIPES[name]


def _read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def _write(folder: Path, results: Mapping[str, Any]) -> None:
    from reid_hub.files import atomic_file

    with atomic_file(folder / "results.json") as temporary:
        temporary.write_text(json.dumps(results, indent=2, sort_keys=True) + "\n")
