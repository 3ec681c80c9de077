"""Proof of OSKT on real people: teacher, chains, and students of several widths against baselines, under one recipe.

    python benchmarks/oskt.py --data-dir DIR               # everything that is not measured yet; stop it any time
    python benchmarks/oskt.py --data-dir DIR --scale full  # ResNet-50 at 256x128 and the published epochs, for a GPU
    python benchmarks/oskt.py --render                     # table and plot from what is measured

DIR holds a data set in Market-1501's layout. Every run is a process of its own and resumes from its checkpoints; a run
whose results.json lies in benchmarks/oskt is not repeated. The test identities are met once, at the end of a run.

Every student is trained by the published recipe, but on identity classification alone: from random weights the
recipe's triplet with hard factor 0.2 draws all features together (see model_cards/res50-s1.bot-market1501_tr751), and
OSKT must not win by that. "scratch-lr" is scratch with the higher learning rate that suits it better. "oskt-own" is the
control for the in-between students: expanded from a chain that was refined at their own width. How far the channels
that share a row of the chain have moved apart during a student's training is kept in its results.json as "copies".
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from proofs import is_measured, keep, parse, proof_parser, run_all

CLASSIFICATION = {"options.metric": None, "options.center_weight": 0.0}
SCRATCH_RATE = 2e-3


@dataclass(frozen=True)
class Scale:
    """What is trained and for how long; `chains` are widths of the stem."""

    teacher: str
    image_size: tuple[int, int]
    chains: tuple[int, ...]
    students: dict[str, int]  # variant: the chain it is expanded from
    teacher_epochs: int
    refine_epochs: int
    student_epochs: int
    arguments: dict


SCALES = {
    "small": Scale(
        "res50-s5", (128, 64), (8, 16), {"res50-s1": 8, "res50-s3": 16, "res50-s2": 8, "res50-s4": 16}, 20, 6, 12, {}
    ),
    "full": Scale(
        "res50", (256, 128), (8, 16, 32),
        {"res50-s1": 8, "res50-s3": 16, "res50-s5": 32, "res50-s2": 8, "res50-s4": 16}, 200, 100, 100, {"bf16": True},
    ),
}  # fmt: skip
ARMS = ("oskt", "scratch", "wtsel", "depgraph", "scratch-lr", "oskt-own")
IN_BETWEEN = ("res50-s2", "res50-s4")  # whose stages are not as wide as those of a chain's narrowest student


def main() -> None:
    parser = proof_parser("oskt", __doc__, SCALES, seeds=(0, 1))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--students", nargs="+", help="variants; by default all of the scale")
    options = parse(parser)
    if options.one:
        return execute(options.one, options)
    if not options.render:
        run_all(plan(options), options)
    from oskt_table import render

    render(options.results, SCALES[options.scale].teacher)


def plan(options: argparse.Namespace) -> dict[str, list[str]]:
    """The runs that are left, most wanted first, each with those that it starts from."""
    scale = SCALES[options.scale]
    teacher, sparse = f"{scale.teacher}.teacher", f"{scale.teacher}.sparse"
    wanted = {
        f"{student}.{arm}" + (f"-seed{seed}" if seed else ""): {
            "oskt": [chain_of(scale, student, arm)], "oskt-own": [chain_of(scale, student, arm)],
            "wtsel": [teacher], "depgraph": [sparse],
        }.get(arm, [])
        for seed in options.seeds
        for student in options.students or scale.students
        for arm in options.arms
        if arm != "oskt-own" or student in IN_BETWEEN
    }  # fmt: skip
    left = {name: needs for name, needs in wanted.items() if not is_measured(name, options)}
    # What they start from must lie in the work folder, also where its figures are known from an earlier session.
    needed = dict.fromkeys(need for needs in left.values() for need in needs)
    sources = {name: [teacher] if name != teacher else [] for name in [teacher, *needed]}
    missing = {name: needs for name, needs in sources.items() if not (options.work / name / "results.json").is_file()}
    left = {**missing, **left}
    return {name: [need for need in needs if need in left] for name, needs in left.items()}


def chain_of(scale: Scale, student: str, arm: str) -> str:
    """The run of the chain that a student is expanded from."""
    return f"{scale.teacher}.chain{'-' + student if arm == 'oskt-own' else scale.students[student]}"


def execute(name: str, options: argparse.Namespace) -> None:
    """One run, resumed where it was; its results.json is copied to benchmarks/oskt."""
    from reid_hub import ReIDConfig, WeightChain
    from reid_hub.models.width_scale import student_of, width_of
    from reid_hub.runs.baselines import shrink, train_sparse
    from reid_hub.runs.models import open_chain, open_model
    from reid_hub.runs.refine import RefineSettings, refine
    from reid_hub.runs.train import TrainSettings, train

    scale, out = SCALES[options.scale], options.work / name
    variant, _, arm = name.partition(".")
    arm, _, seed = arm.partition("-seed")
    teacher = options.work / f"{scale.teacher}.teacher"
    common = {
        "data": "market_layout", "data_dir": options.data_dir, "dataset_name": options.dataset_name,
        "image_size": scale.image_size, "validation": 0, "channels_last": True, "resume": True,
        "output_dir": out, "seed": int(seed or 0), "arguments": scale.arguments,
    }  # fmt: skip
    changes = {**CLASSIFICATION, **({"learning_rate": SCRATCH_RATE} if arm in ("teacher", "scratch-lr") else {})}
    student = {**common, "recipe": "bot", "changes": changes, "epochs": scale.student_epochs, "origin": arm}
    if arm == "teacher":
        train(TrainSettings(**{**student, "epochs": scale.teacher_epochs}, model=variant))
    elif arm.startswith("chain"):
        own = arm.removeprefix("chain-") if "-" in arm else None
        width = width_of(ReIDConfig.from_variant(own)) if own else int(arm.removeprefix("chain"))
        if own and not (out / "clustered" / "model.safetensors").is_file():
            config = student_of(open_model(teacher).config, own)  # refining takes the chain that lies there
            WeightChain.from_teacher(open_model(teacher), config).save_pretrained(out / "clustered")
        refine(
            RefineSettings(
                **common, recipe="oskt", changes=changes, model=str(teacher), width=width, epochs=scale.refine_epochs
            )
        )
    elif arm == "sparse":
        train_sparse(TrainSettings(**{**student, "epochs": scale.refine_epochs}, model=str(teacher)))
    else:
        start = Path(variant) if arm.startswith("scratch") else out / "start"
        if not arm.startswith("scratch") and not (start / "config.json").is_file():
            if arm in ("oskt", "oskt-own"):
                model = open_chain(options.work / chain_of(scale, variant, arm)).expand(variant)
            else:
                source = options.work / f"{scale.teacher}.{'sparse' if arm == 'depgraph' else 'teacher'}"
                model = shrink(source, variant, by=arm)
            model.save_pretrained(start)
        train(TrainSettings(**student, model=str(start)))
        if arm == "oskt":
            record_copies(out, options.work / chain_of(scale, variant, arm), variant)
    keep(name, out / "results.json", options)


def record_copies(student: Path, folder: Path, variant: str) -> None:
    """Add to a student's results how alike channels are (mean cosine of their filters) that began with the same row."""
    import torch

    from reid_hub.runs.models import open_chain, open_model

    chain, state = open_chain(folder), open_model(student).state_dict()
    slots, alike = chain.slots(chain.sizes_of(variant)), {True: [], False: []}
    for name, axes in chain.groups.axes.items():
        if state[name].ndim == 4 and len(axes.rows) == 1:
            source = slots[axes.rows[0]].source
            filters = torch.nn.functional.normalize(state[name].flatten(1), dim=1)
            pairs = torch.ones(len(source), len(source)).triu(1).bool()
            for same in alike:
                alike[same].append((filters @ filters.T)[pairs & ((source[:, None] == source) == same)])
    means = {key: torch.cat(alike[same]).mean().item() for key, same in {"same_row": True, "other_rows": False}.items()}
    path = student / "results.json"
    copies = {key: round(value, 4) for key, value in means.items() if value == value}
    path.write_text(json.dumps({**json.loads(path.read_text()), "copies": copies}, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
