"""Proof of Factorized Distillation on real people: students taught by seven teachers, by some of them, and by none.

    python benchmarks/fd.py --data-dir DIR                # everything that is not measured yet; stop it any time
    python benchmarks/fd.py --data-dir DIR --scale full   # the published networks, sizes and epochs, for a GPU
    python benchmarks/fd.py --render                      # table and plot from what is measured

DIR holds a data set in Market-1501's layout. Every run is a process of its own and resumes from its checkpoints; a run
whose results.json lies in benchmarks/fd is not repeated. The test identities are met once, at the end of a run.

All of a student's arms start from the same initial student and train for the same epochs by the same recipe; "control"
is that without any teacher. The teacher of the whole picture is the initial student of the teachers' own kind, as
published; a student of that kind is among the students. At the small scale everything starts from random weights, so
Adam takes the place of the published SGD, whose rate is for pre-trained weights.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

from proofs import is_measured, keep, parse, proof_parser, run_all

# What is distilled in each arm: the views, and what is changed in the recipe.
ARMS = {
    "control": ("all", {"options.alpha": 0.0, "options.beta": 0.0}),
    "all": ("all", {}),
    "hol": ("Hol", {}),
    "hol-g1": ("Hol+G1", {}),
    "attribute": ("all", {"options.beta": 0.0}),
    "metric": ("all", {"options.alpha": 0.0}),
}


@dataclass(frozen=True)
class Scale:
    """What is trained and for how long; `students` and the teacher with what is changed in their configuration."""

    students: dict[str, dict]
    teacher: str
    image_size: tuple[int, int]
    view_size: tuple[int, int] | None
    initial_epochs: int
    teacher_epochs: int
    student_epochs: int
    changes: dict
    init: dict[str, str]
    arguments: dict


_HEAD = {
    "config.pooling": "stabilised_max",
    "config.head": "linear",
    "config.embedding_dim": 512,
    "config.neck": "none",
}
_ADAM = {"optimizer": "adam", "optimizer_options": {}, "learning_rate": 1e-3}
SCALES = {
    # SqueezeNet's map is 7x3 at this size, so its windows are 3x3.
    "small": Scale(
        {"res50-s1": _HEAD, "squeezenet": {"config.pooling_window": 3}, "res18-x0.25": _HEAD}, "res18-x0.25", (128, 64),
        (96, 96), 20, 12, 10, _ADAM, {}, {},
    ),
    "full": Scale(
        {"res18a": {}, "squeezenet": {}}, "res101a", (256, 128), None, 80, 80, 50, {},
        {name: f"torchvision/{source}" for name, source in
         {"res18a": "resnet18", "squeezenet": "squeezenet1_0", "res101a": "resnet101"}.items()}, {"bf16": True},
    ),
}  # fmt: skip


def main() -> None:
    parser = proof_parser("fd", __doc__, SCALES, seeds=(0, 1))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--students", nargs="+", help="variants; by default all of the scale")
    options = parse(parser)
    if options.one:
        return execute(options.one, options)
    if not options.render:
        run_all(plan(options), options)
    from fd_table import render

    render(options.results, SCALES[options.scale].teacher)


def plan(options: argparse.Namespace) -> dict[str, list[str]]:
    """The runs that are left, most wanted first, each with those that it starts from."""
    from reid_hub.data.views import choose_views

    scale = SCALES[options.scale]
    wanted = {}
    for seed in options.seeds:
        for student in options.students or scale.students:
            for arm in options.arms:
                views = [] if arm == "control" else [view.name for view in choose_views(ARMS[arm][0])]
                needs = [f"{student}.initial", *(teacher_of(scale, view) for view in views)]
                wanted[f"{student}.{arm}" + (f"-seed{seed}" if seed else "")] = needs
    left = {name: needs for name, needs in wanted.items() if not is_measured(name, options)}
    # What they start from must lie in the work folder, also where its figures are known from an earlier session.
    needed = dict.fromkeys(need for needs in left.values() for need in needs)
    missing = {name: [] for name in needed if not (folder_of(name, options) / "results.json").is_file()}
    left = {**missing, **left}
    return {name: [need for need in needs if need in left] for name, needs in left.items()}


def teacher_of(scale: Scale, view: str) -> str:
    """The run of a view's teacher; that of the whole picture is an initial student."""
    return f"{scale.teacher}.initial" if view == "Hol" else f"{scale.teacher}.{view}"


def folder_of(name: str, options: argparse.Namespace) -> Path:
    """Where a run leaves its model."""
    arm = name.rpartition(".")[2].partition("-seed")[0]
    stage = "initial" if arm == "initial" else "student" if arm in ARMS else f"teachers/{arm}"
    return options.work / name / stage


def execute(name: str, options: argparse.Namespace) -> None:
    """One run, resumed where it was; its results.json is copied to benchmarks/fd."""
    from reid_hub.runs.fd import FDSettings, make_cache, train_initial, train_student, train_teachers

    scale, (variant, _, arm) = SCALES[options.scale], name.rpartition(".")
    arm, _, seed = arm.partition("-seed")
    head = scale.students.get(variant, {})
    views, changes = ARMS.get(arm, (arm, {}))
    common = {
        "data": "market_layout", "data_dir": options.data_dir, "dataset_name": options.dataset_name,
        "image_size": scale.image_size, "view_size": scale.view_size, "validation": 0, "channels_last": True,
        "resume": True, "output_dir": options.work / name, "recipe": "fd-student", "model": variant,
        "init": scale.init.get(variant), "arguments": scale.arguments,
    }  # fmt: skip
    if arm == "initial":
        epochs = {"teacher_epochs": scale.initial_epochs, "teacher_changes": {**scale.changes, **head}}
        train_initial(FDSettings(**common, **epochs))
    elif arm in ARMS:
        settings = FDSettings(
            **common,
            views=views,
            changes={**scale.changes, **changes},
            epochs=scale.student_epochs,
            seed=int(seed or 0),
            initial=str(folder_of(f"{variant}.initial", options)),
            cache=str(options.work / "cache"),
            origin=arm,
        )
        teachers = {view.name: str(folder_of(teacher_of(scale, view.name), options)) for view in settings.chosen}
        settings.teachers = teachers
        if arm != "control":
            make_cache(settings)
        train_student(settings)
    else:
        epochs = {"teacher_epochs": scale.teacher_epochs, "teacher_changes": scale.changes}
        train_teachers(FDSettings(**common, **epochs, backbone=variant, teacher_init=common["init"], views=[arm]))
    keep(name, folder_of(name, options) / "results.json", options)


if __name__ == "__main__":
    main()
