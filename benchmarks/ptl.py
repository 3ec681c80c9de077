"""Proof of Progressive Transfer Learning: what its memory contributes, on real people and on CIFAR-10.

    python benchmarks/ptl.py --data-dir DIR --cifar-dir DIR   # everything that is not measured yet; stop it any time
    python benchmarks/ptl.py --data-dir DIR --scale full      # the published networks, sizes and epochs, for a GPU
    python benchmarks/ptl.py --render                         # table and plot from what is measured

The first folder holds a data set in Market-1501's layout; the second CIFAR-10, and may be left out. Every run is a
process of its own and resumes from its checkpoints; a run whose results.json lies in benchmarks/ptl is not repeated.
The test identities are met once, at the end of a run.

The arms differ in the side network alone: "memory" carries its state from batch to batch, "forgets" begins each batch
with zeros, as the released training script did from its second epoch on, "plain" has as many weights but neither gates
nor memory, "none" is the backbone. "std" is distilled into the backbone from the arm with a side network that did best
with the first seed. At the small scale everything starts from random weights, so Adam takes the place of the published
SGD, whose rate is for pre-trained weights.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from proofs import is_measured, keep, missing, parse, proof_parser, run_all

# What stands beside the backbone in each arm: the cell, and whether it remembers.
ARMS = {
    "memory": ("v1", True),
    "forgets": ("v1", False),
    "plain": ("plain", False),
    "none": ("none", False),
    "memory-v2": ("v2", True),
}
CIFAR = ("none", "memory", "memory-v2", "forgets")
LAM = 0.8


@dataclass(frozen=True)
class Scale:
    """What is trained and for how long."""

    backbone: str
    image_size: tuple[int, int]
    epochs: int
    changes: dict
    init: str | None
    cifar_blocks: tuple[int, int, int]
    cifar_keep: float
    cifar_epochs: int
    arguments: dict


_ADAM = {"optimizer": "adam", "optimizer_options": {}, "learning_rate": 1e-3}
SCALES = {
    "small": Scale("res18-x0.25", (128, 64), 15, _ADAM, None, (4, 4, 4), 0.1, 20, {}),
    "full": Scale("densenet161", (256, 128), 50, {}, "torchvision/densenet161", (16, 16, 16), 1.0, 300, {"bf16": True}),
}


def main() -> None:
    parser = proof_parser("ptl", __doc__, SCALES, seeds=(0, 1))
    parser.add_argument("--cifar-dir", help="CIFAR-10 as it is distributed, or one folder of pictures for each class")
    parser.add_argument("--arms", nargs="+", choices=[*ARMS, "std"], default=[*ARMS, "std"])
    options = parse(parser, "--cifar-dir")
    if options.one:
        return execute(options.one, options)
    if not options.render:
        run_all(plan(options), options)
    from ptl_table import render

    render(options.results)


def plan(options: argparse.Namespace) -> dict[str, list[str]]:
    """The runs that are left, most wanted first, each with those that it starts from."""
    backbone, wanted = SCALES[options.scale].backbone, {}
    for seed in options.seeds:
        after = f"-seed{seed}" if seed else ""
        for arm in options.arms:
            wanted[f"{backbone}.{arm}{after}"] = beside(backbone) if arm == "std" else []
        if options.cifar_dir:
            wanted |= {f"cifar10.{arm}{after}": [] for arm in CIFAR}
    left = {name: needs for name, needs in wanted.items() if not is_measured(name, options)}
    # The best is found by the figures that are kept, and taken from the work folder.
    needed = {need for needs in left.values() for need in needs}
    again = [name for name in needed if not is_measured(name, options)] + missing(sorted(needed), options)
    left = {**left, **{name: [] for name in sorted(again)}}
    return {name: [need for need in needs if need in left] for name, needs in left.items()}


def execute(name: str, options: argparse.Namespace) -> None:
    """One run, resumed where it was; its results.json is copied to benchmarks/ptl."""
    from reid_hub.runs.ptl import STDSettings, distill, side_network
    from reid_hub.runs.train import TrainSettings, train

    scale, (variant, _, arm) = SCALES[options.scale], name.rpartition(".")
    arm, _, seed = arm.partition("-seed")
    out = options.work / name
    common = {
        "output_dir": out, "seed": int(seed or 0), "validation": 0, "channels_last": True, "resume": True,
        "arguments": scale.arguments, "origin": arm,
    }  # fmt: skip
    if variant == "cifar10":
        classify_cifar(arm, options, common)
        return keep(name, out / "results.json", options)
    people = {
        **common, "data": "market_layout", "data_dir": options.data_dir, "dataset_name": options.dataset_name,
        "image_size": scale.image_size, "epochs": scale.epochs, "flip": True, "init": scale.init,
    }  # fmt: skip
    if arm == "std":
        best = best_arm(options)
        settings = {"recipe": "std", "changes": scale.changes, "model": side_network(variant, "none")["model"]}
        made = distill(STDSettings(**people, **settings, teacher=str(options.work / best), lams=[LAM]))
        (folder,) = made
        results = json.loads((folder / "results.json").read_text())
        results["training"]["taught_by"] = best
        (out / "results.json").write_text(json.dumps(results, indent=2, sort_keys=True) + "\n")
    else:
        side = side_network(variant, *ARMS[arm])
        train(TrainSettings(**people, recipe="ptl", model=side["model"], changes={**scale.changes, **side["changes"]}))
        if arm.startswith("memory"):
            add_use_of_memory(out, people)
    keep(name, out / "results.json", options)


def add_use_of_memory(folder: Path, people: dict, count: int = 1280) -> None:
    """Add to results.json what the state of the batch before does to a trained network's loss on training pictures."""
    from reid_hub import load_reid_dataset
    from reid_hub.runs.surface import training_loss

    split = load_reid_dataset(people["data"], people["data_dir"])["train"]
    method, loss = training_loss(folder, split, count=count)  # batches of other people than those before
    losses = {"zeros": loss()}
    for cell in method.model.modules():
        if hasattr(cell, "slots"):
            cell.train()  # reads and writes its memory; the norms stay as they are
    losses["carried"] = loss()
    results = json.loads((folder / "results.json").read_text())
    results["training"]["loss_from_state"] = losses
    (folder / "results.json").write_text(json.dumps(results, indent=2, sort_keys=True) + "\n")


def beside(backbone: str) -> list[str]:
    """The runs with a side network, with the first seed."""
    return [f"{backbone}.{arm}" for arm, (cell, _) in ARMS.items() if cell != "none"]


def best_arm(options: argparse.Namespace) -> str:
    """The run with a side network that did best with the first seed, chosen by its test figure, as the paper's was."""
    names = beside(SCALES[options.scale].backbone)
    found = {name: json.loads((options.results / name / "results.json").read_text()) for name in names}
    return max(names, key=lambda name: found[name]["metrics"]["mAP"])


def classify_cifar(arm: str, options: argparse.Namespace, common: dict) -> None:
    """A DenseNet-BC of growth 12 on CIFAR-10, with flip and crop."""
    from reid_hub.models.backbones import find_variant
    from reid_hub.runs.classify import ClassifySettings, classify
    from reid_hub.runs.ptl import classification_arm

    scale, fields = SCALES[options.scale], classification_arm("densenet-bc-100", *ARMS[arm], augment=True)
    blocks = {**find_variant(fields["model"])["backbone_config"], "blocks": list(scale.cifar_blocks)}
    changes = {**fields.pop("changes"), "config.backbone_config": blocks}
    classify(
        ClassifySettings(
            **common, **fields, data="cifar10", data_dir=options.cifar_dir, dataset_name="CIFAR-10", recipe="cifar",
            changes=changes, epochs=scale.cifar_epochs, keep=scale.cifar_keep, evaluate_every=scale.cifar_epochs,
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
