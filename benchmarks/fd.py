"""Factorized Distillation on real people: students taught by seven teachers, by some of them, and by none.

    python benchmarks/run.py fd --data-dir DIR                # run all rows without results
    python benchmarks/run.py fd --data-dir DIR --scale full   # the published networks, sizes and epochs, for a GPU
    python benchmarks/run.py fd --render                      # write page and plot, run nothing

DIR holds a data set in Market-1501's layout. Each run is evaluated once on the test identities, at its end.

All arms of a student start from the same initial student and train for the same epochs with the same recipe; "control"
trains without teachers. As published, the teacher of the whole image is the initial student with the teachers' own
backbone; one of the students has this backbone, too. At the small scale all networks start from random weights and use
Adam, because the published SGD learning rate is for pre-trained weights.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import stages
from experiment import Experiment, Options, Row, seeded
from render import Block, Panel, Plot, Series, Table
from words import RETRIEVAL, Runs, by_arm, data_set, how, how_run, retrieval, score, size

# Views and recipe changes of each arm.
ARMS = {
    "control": ("all", {"options.alpha": 0.0, "options.beta": 0.0}),
    "all": ("all", {}),
    "hol": ("Hol", {}),
    "hol-g1": ("Hol+G1", {}),
    "attribute": ("all", {"options.beta": 0.0}),
    "metric": ("all", {"options.alpha": 0.0}),
}
LABELS = {
    "initial": "initial student",
    "control": "control: continued without teachers",
    "all": "FD, all seven teachers",
    "hol": "FD, Hol alone",
    "hol-g1": "FD, Hol+G1",
    "attribute": "FD, attribute loss alone",
    "metric": "FD, metric loss alone",
}
VIEWS = ("Hol", "Up1", "Mid1", "Dn1", "Up2", "Mid2", "Dn2")


@dataclass(frozen=True)
class Scale:
    """Networks, sizes and epochs; `students` gives the configuration changes of each student."""

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

    def teacher_of(self, view: str) -> str:
        """The row of a view's teacher; the teacher of the whole image is an initial student."""
        return f"{self.teacher}.{'initial' if view == 'Hol' else view}"


_POOLED = {"config.pooling": "stabilised_max", "config.head": "linear", "config.embedding_dim": 512}
_HEAD = {**_POOLED, "config.neck": "none"}
_ADAM = {"optimizer": "adam", "optimizer_options": {}, "learning_rate": 1e-3}
_IMAGENET = {"res18a": "resnet18", "squeezenet": "squeezenet1_0", "res101a": "resnet101"}
SCALES = {
    # SqueezeNet's feature map is 7x3 at this size, so its pooling windows are 3x3.
    "small": Scale(
        {"res50-s1": _HEAD, "squeezenet": {"config.pooling_window": 3}, "res18-x0.25": _HEAD}, "res18-x0.25", (128, 64),
        (96, 96), 20, 12, 10, _ADAM, {}, {},
    ),
    "full": Scale(
        {"res18a": {}, "squeezenet": {}}, "res101a", (256, 128), None, 80, 80, 50, {},
        {name: f"torchvision/{source}" for name, source in _IMAGENET.items()}, {"bf16": True},
    ),
}  # fmt: skip


def rows(options: Options) -> Iterator[Row]:
    """Students by arm, then their sources: initial students, and teachers of the views."""
    scale = SCALES[options.scale]
    seen = {views: stages.view_names(views) for views, _ in ARMS.values()}

    def folder(name: str, below: str = "initial") -> Path:
        view = name.rpartition(".")[2]
        return options.work / name / (f"teachers/{view}" if view in VIEWS else below)

    def run(kind: str, name: str, **fields) -> partial:
        variant = name.rpartition(".")[0]
        sizes = {"image_size": scale.image_size, "view_size": scale.view_size, "arg": scale.arguments}
        start = {"recipe": "fd-student", "model": variant, "init": scale.init.get(variant)}
        return partial(stages.run, f"fd_{kind}", **options.settings(name, **sizes, **start, **fields))

    for seed in options.seeds:
        for student in scale.students:
            for arm, (views, changes) in ARMS.items():
                name, initial = seeded(f"{student}.{arm}", seed), f"{student}.initial"
                teachers = {view: scale.teacher_of(view) for view in seen[views]}
                fields = {
                    "view": [views], "set": {**scale.changes, **changes}, "epochs": scale.student_epochs,
                    "initial": str(folder(initial)), "cache": str(options.work / "cache"), "origin": arm,
                    "teacher": {view: str(folder(teacher)) for view, teacher in teachers.items()},
                }  # fmt: skip
                calls = [run(kind, name, **fields) for kind in ("cache", "student")[arm == "control" :]]
                needs = dict.fromkeys([initial, *(teachers.values() if arm != "control" else ())])
                yield options.row(name, *calls, needs=list(needs), folder=folder(name, "student"))
    for variant in dict.fromkeys([*scale.students, scale.teacher]):
        name, changes = f"{variant}.initial", {**scale.changes, **scale.students.get(variant, {})}
        call = run("initial", name, teacher_epochs=scale.initial_epochs, set_teacher=changes)
        yield options.row(name, call, folder=folder(name), wanted=False)
    for view in VIEWS[1:]:
        name, init = scale.teacher_of(view), scale.init.get(scale.teacher)
        fields = {"teacher_epochs": scale.teacher_epochs, "set_teacher": scale.changes, "view": [view]}
        call = run("teachers", name, **fields, backbone=scale.teacher, teacher_init=init)
        yield options.row(name, call, folder=folder(name), wanted=False)


def page(runs: Runs, scale: Scale) -> Iterator[Block]:
    """Answer, students by arm, gains, teachers, and commands."""
    arms, students, teacher = by_arm(runs), students_of(runs, scale), scale.teacher
    initial = next(results[0] for (_, arm), results in arms.items() if arm == "initial")
    start = "random initial weights" if initial["training"].get("init") == "random" else "pre-trained weights"
    yield answer({student: gains(runs, student) for student in students})
    yield data_set(initial, f"{teacher} as teachers, {start}, fewer epochs")
    yield RETRIEVAL
    columns = {student: f"{student} ({parameters:,})" for student, parameters in students.items()}
    yield Table(columns, LABELS, lambda arm, student: retrieval(arms.get((student, arm), [])))
    for student in students:
        yield verdict(runs, student, teacher)
    found = {view: runs[scale.teacher_of(view)] for view in VIEWS if scale.teacher_of(view) in runs}
    yield Table(
        {"size": "image size", "figures": "mAP / rank-1"},
        {view: view for view in found},
        lambda view, column: size(found[view][0]) if column == "size" else retrieval(found[view]),
        "teacher",
    )
    taught = next((results[0] for (_, arm), results in arms.items() if arm in ("all", "hol", "hol-g1")), initial)
    yield (
        f"Initial students: {how(initial)}. Every arm continues from them with {how(taught)}. The control, which the "
        "paper lacks, trains for as many epochs as distillation, without teachers. The teacher of the whole image is "
        f"the initial {teacher}."
    )
    yield "![mAP of every arm](accuracy.png)"
    call = "python benchmarks/run.py fd --data-dir DIR"
    yield from how_run(runs, initial, f"All rows: `{call}`; at full size: `{call} --scale full`. Row by row:")


def gains(runs: Runs, student: str) -> dict[str, float]:
    """Points of mAP of every arm of distillation over the control, as many epochs without teachers."""
    scores = {arm: score(runs[f"{student}.{arm}"]) for arm in LABELS if f"{student}.{arm}" in runs}
    control = scores.pop("control", None)
    scores.pop("initial", None)
    return {} if control is None else {arm: found - control for arm, found in scores.items()}


def answer(found: dict[str, dict[str, float]]) -> str | None:
    """The gain of all teachers for each student, and of the arm that is best for all of them, if one is."""
    found = {student: by for student, by in found.items() if "all" in by}
    if not found:
        return None
    listed = ", ".join(f"{by['all']:+.1f} ({student})" for student, by in found.items())
    said = f"**All seven teachers change mAP by {listed} points over the same epochs without teachers.**"
    best = {max(by, key=by.get) for by in found.values()}
    if len(best) == 1 and (arm := best.pop()) != "all":
        each = ", ".join(f"{by[arm]:+.1f}" for by in found.values())
        said += f" The {LABELS[arm].removeprefix('FD, ')} is better for every student: {each}."
    return said


def verdict(runs: Runs, student: str, teacher: str) -> str | None:
    """The gains of distillation, and where they are not as published."""
    taught = gains(runs, student)
    if not taught:
        return None
    listed = ", ".join(f"{LABELS[arm].removeprefix('FD, ')} {gain:+.1f}" for arm, gain in taught.items())
    said = f"**{student}**, points of mAP over the same epochs without teachers: {listed}."
    if max(taught.values()) <= 0:
        said += " **Distillation does not help here.**"
    if student == teacher and min(taught.values()) <= 0:
        said += (
            " The teachers are no stronger than this student. Its teacher of the whole image is the initial student "
            "itself: distillation pulls its vectors back to that, while the control keeps learning."
        )
    alone = [arm for arm in ("attribute", "metric") if arm in taught]
    if "all" in taught and alone and (best := max(alone, key=taught.get)) and taught[best] > taught["all"]:
        said += f" Unlike published (table 7), the {best} loss alone is better than both losses together."
    return said


def plot(runs: Runs, scale: Scale) -> Plot:
    """mAP of every arm, one group of bars per student."""
    students, arms, bars = list(students_of(runs, scale)), by_arm(runs), []
    for arm, label in LABELS.items():
        heights = [(x, score(arms[name, arm])) for x, name in enumerate(students) if (name, arm) in arms]
        bars += [Series(heights, label, bars=True)] if heights else []
    axes = {"ylabel": "mAP, %", "title": "One student, the same epochs, different teachers"}
    beside = {"loc": "upper left", "bbox_to_anchor": (1, 1)}
    return Plot([Panel(bars, axes, dict(enumerate(students)), legend=beside)], (8, 4.5))


def students_of(runs: Runs, scale: Scale) -> dict[str, int]:
    """Students with results and their numbers of parameters, smallest first."""
    arms = by_arm(runs)
    found = {name for name, arm in arms if arm == "control" or (arm == "initial" and name != scale.teacher)}
    parameters = {v: results[0]["cost"]["parameters"] for (v, arm), results in arms.items() if arm in LABELS}
    return {name: parameters[name] for name in sorted(found, key=parameters.get)}


BENCHMARK = Experiment("fd", __doc__, "Factorized Distillation on real people", rows, page, plot, SCALES)
