"""OSKT on real people: a teacher, chains, and students of several widths against baselines, under one recipe.

    python benchmarks/run.py oskt --data-dir DIR               # run all rows without results
    python benchmarks/run.py oskt --data-dir DIR --scale full  # ResNet-50 at 256x128, published epochs, for a GPU
    python benchmarks/run.py oskt --render                     # write page and plot, run nothing

DIR holds a data set in Market-1501's layout. Each run is evaluated once on the test identities, at its end.

All students use the published recipe with its identity classification loss only: from random weights, the recipe's
triplet loss with hard factor 0.2 collapses the features (see model_cards/res50-s1.bot-market1501_tr751), which would
favour OSKT. "scratch-lr" is scratch with a higher learning rate, which suits it better. "oskt-own" is the control for
students between two widths: expanded from a chain that was refined at their own widths. The "copies" in a student's
results.json tell how similar the channels that share a row of the chain still are after its training.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import stages
from experiment import Experiment, Options, Row, seeded
from render import Block, Panel, Plot, Series, Table
from words import RETRIEVAL, Runs, by_arm, data_set, how, how_run, retrieval, score, spread

CLASSIFICATION = {"options.metric": None, "options.center_weight": 0.0}
OWN_RATE = {**CLASSIFICATION, "learning_rate": 2e-3}
ARMS = {
    "oskt": "OSKT",
    "wtsel": "weight selection",
    "depgraph": "DepGraph",
    "scratch": "scratch",
    "scratch-lr": "scratch, its own rate",
    "oskt-own": "OSKT, chain of its own width",
}
WANTED = ("oskt", "scratch", "wtsel", "depgraph", "scratch-lr", "oskt-own")
STARTS = {"oskt": "chain{width}", "oskt-own": "chain-{student}", "wtsel": "teacher", "depgraph": "sparse"}
IN_BETWEEN = ("res50-s2", "res50-s4")  # some stages are wider than those of a chain's narrowest student
BEFORE = {"teacher": "the teacher", "sparse": "the teacher after sparsity learning (for DepGraph)"}


@dataclass(frozen=True)
class Scale:
    """Networks, sizes and epochs; `students` gives the width of the chain that each student is expanded from."""

    teacher: str
    image_size: tuple[int, int]
    students: dict[str, int]
    teacher_epochs: int
    refine_epochs: int
    student_epochs: int
    arguments: dict


SMALL = {"res50-s1": 8, "res50-s3": 16, "res50-s2": 8, "res50-s4": 16}
FULL = {"res50-s1": 8, "res50-s3": 16, "res50-s5": 32, "res50-s2": 8, "res50-s4": 16}
SCALES = {
    "small": Scale("res50-s5", (128, 64), SMALL, 20, 6, 12, {}),
    "full": Scale("res50", (256, 128), FULL, 200, 100, 100, {"bf16": True}),
}


def rows(options: Options) -> Iterator[Row]:
    """Students, then their sources: the teacher, the teacher after sparsity learning, and chains."""
    scale, work = SCALES[options.scale], options.work
    teacher = f"{scale.teacher}.teacher"

    def run(kind: str, name: str, **fields) -> partial:
        common = {"image_size": scale.image_size, "arg": scale.arguments, "set": CLASSIFICATION}
        return partial(stages.run, kind, **options.settings(name, **{**common, "recipe": "bot", **fields}))

    for seed in options.seeds:
        for student, width in scale.students.items():
            for arm in WANTED[: None if student in IN_BETWEEN else -1]:
                name, start = seeded(f"{student}.{arm}", seed), student
                before, after, needs = [], [], []
                if arm in STARTS:
                    needs = [f"{scale.teacher}.{STARTS[arm].format(width=width, student=student)}"]
                    start = work / name / "start"
                    before = [partial(stages.start_student, work / needs[0], student, arm, start)]
                if arm == "oskt":
                    after = [partial(stages.compare_copies, work / name, work / needs[0], student)]
                fields = {"model": str(start), "epochs": scale.student_epochs, "origin": arm}
                train = run("train", name, **fields, set=OWN_RATE if arm == "scratch-lr" else CLASSIFICATION)
                yield options.row(name, *before, train, *after, needs=needs)

    fields = {"epochs": scale.teacher_epochs, "set": OWN_RATE, "origin": "teacher"}
    yield options.row(teacher, run("train", teacher, model=scale.teacher, **fields), wanted=False)
    source = partial(options.row, needs=[teacher], wanted=False)
    fields = {"model": str(work / teacher), "epochs": scale.refine_epochs}
    sparse = f"{scale.teacher}.sparse"
    yield source(sparse, run("train_sparse", sparse, **fields, origin="sparse"))
    for width in dict.fromkeys(scale.students.values()):
        name = f"{scale.teacher}.chain{width}"
        yield source(name, run("refine", name, **fields, recipe="oskt", width=width))
    for student in IN_BETWEEN:
        name = f"{scale.teacher}.chain-{student}"
        own = partial(stages.cluster, work / teacher, student, work / name / "clustered")
        yield source(name, own, run("refine", name, **fields, recipe="oskt", width=stages.width(student)))


def page(runs: Runs, scale: Scale) -> Iterator[Block]:
    """Answer, students by arm, similarity of copies, sources of the students, and commands."""
    arms, teacher = by_arm(runs), scale.teacher
    before = {arm: results for (_, arm), results in arms.items() if arm not in ARMS}
    parameters = {variant: results[0]["cost"]["parameters"] for (variant, _), results in arms.items()}
    students = {v: v for v in sorted({v for v, arm in arms if arm in ARMS}, key=parameters.get)}
    first = next(iter(arms.values()))[0]

    def cell(student: str, arm: str) -> str:
        return f"{parameters[student]:,}" if arm == "parameters" else retrieval(arms.get((student, arm), []))

    yield answer({student: {arm: arms[student, arm] for arm in ARMS if (student, arm) in arms} for student in students})
    yield data_set(first, f"the teacher is a {teacher} trained from random weights, fewer epochs")
    yield RETRIEVAL
    yield Table({"parameters": "parameters", **ARMS}, students, cell, "student")
    for student in students:
        yield in_between(student, {arm: score(arms[student, arm]) for arm in ARMS if (student, arm) in arms})
    found = {student: arms[student, "oskt"][0].get("copies", {}) for student in students if (student, "oskt") in arms}
    if copied := {student: student for student in sorted(found) if "same_row" in found[student]}:
        yield (
            "A student's own training moves such copies apart. Mean cosine after training of filters that started from "
            "the same row (1: still copies), and of filters from different rows:"
        )
        columns = {"same_row": "same row", "other_rows": "different rows"}
        yield Table(columns, copied, lambda student, which: f"{found[student][which]:.2f}", "student")

    def source(arm: str, column: str) -> str:
        return retrieval(before[arm]) if column == "figures" else f"{before[arm][0]['training']['epochs']:g}"

    order = sorted(before, key=lambda arm: (arm != "teacher", len(arm), arm))
    chains = {
        arm: f"narrowest student of chain {arm.removeprefix('chain').removeprefix('-')}, as expanded" for arm in order
    }
    columns = {"figures": "mAP / rank-1", "epochs": "epochs"}
    yield Table(columns, {arm: BEFORE.get(arm, chains[arm]) for arm in order}, source, "source of students")
    student = next(results[0] for (_, arm), results in arms.items() if arm in ARMS)
    refined = next((results[0] for arm, results in before.items() if arm.startswith("chain")), first)
    rate = before["teacher"][0]["training"]["changes"]["learning_rate"] if "teacher" in before else "unknown"
    yield (
        f"All students: {how(student)}. Chains: {how(refined)}. OSKT and DepGraph add the epochs of their source on "
        "the same images (once for all students of a chain, once for all widths); weight selection and scratch do not. "
        f'"Scratch, its own rate" uses the learning rate of the teacher, {rate}. {teacher}, the widest student, has no '
        "row: it is the teacher."
    )
    yield "![accuracy against parameters](accuracy.png)"
    call = "python benchmarks/run.py oskt --data-dir DIR"
    yield from how_run(runs, student, f"All rows: `{call}`; at full size: `{call} --scale full`. Row by row:")


def answer(students: dict[str, Runs]) -> str | None:
    """Whether OSKT is ahead of every baseline, for each student, from its results by arm."""
    said, ahead = [], 0
    for student, arms in students.items():
        scores = {arm: score(results) for arm, results in arms.items() if arm != "oskt-own"}
        ours = scores.pop("oskt", None)
        if ours is None or not scores:
            continue
        best = max(scores, key=scores.get)
        close = abs(ours - scores[best]) <= max(spread(arms["oskt"]), spread(arms[best]))
        ahead += ours > scores[best]
        said += [
            f"{student} {ours:.1f}, {ARMS[best]} {scores[best]:.1f}" + " (within the deviation over seeds)" * close
        ]
    if not said:
        return None
    who = "all students" if ahead == len(said) else f"{ahead} of {len(said)} students" if ahead else "no student"
    return f"**For {who}, OSKT gives a higher mAP than every baseline.** OSKT and the best baseline: {'; '.join(said)}."


def in_between(student: str, scores: dict[str, float]) -> str | None:
    """The cost of repeated rows for a student between two widths."""
    if not {"oskt", "oskt-own"} <= scores.keys():
        return None
    return (
        f"Some stages of {student} are wider than those of its chain's narrowest student, so some of its channels "
        "start from the same row. From a chain refined for the same epochs at its own widths, without repeated rows, "
        f"its mAP is {scores['oskt-own'] - scores['oskt']:+.1f} points higher."
    )


def plot(runs: Runs, scale: Scale) -> Plot:
    """mAP against parameters, one line per arm."""
    lines = []
    for arm, label in ARMS.items():
        found = [results for (_, a), results in by_arm(runs).items() if a == arm]
        line = sorted((results[0]["cost"]["parameters"], score(results)) for results in found)
        lines += [Series(line, label, {"marker": "o"})] if line else []
    axes = {"xscale": "log", "xlabel": "parameters", "ylabel": "mAP, %"}
    axes["title"] = "Students of one teacher, under one recipe"
    teacher = runs.get(f"{scale.teacher}.teacher")
    return Plot([Panel(lines, axes, level=teacher and (score(teacher), f"teacher, {scale.teacher}"))], (7, 4.5))


BENCHMARK = Experiment("oskt", __doc__, "OSKT on real people", rows, page, plot, SCALES)
