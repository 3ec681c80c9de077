"""Table and plot of the FD proof, rendered from results.json files alone."""

import json
import re
from collections import defaultdict
from pathlib import Path

from tables import cell, counts, how, mean_map, size, wrapped

FULL = "python benchmarks/fd.py --data-dir DIR --scale full"
ARMS = {
    "initial": "initial student",
    "control": "control: continued without teachers",
    "all": "FD, all seven teachers",
    "hol": "FD, Hol alone",
    "hol-g1": "FD, Hol+G1",
    "attribute": "FD, attribute loss alone",
    "metric": "FD, metric loss alone",
}
SAME = ("initial", "control", "attribute", "metric")  # without teachers, or with another weight of a loss
VIEWS = ("Up1", "Mid1", "Dn1", "Up2", "Mid2", "Dn2")


def render(folder: Path, teacher: str) -> None:
    """Write README.md and accuracy.png of a folder of runs."""
    runs = defaultdict(list)
    for path in sorted(folder.glob("*/results.json")):
        variant, _, arm = path.parent.name.rpartition(".")
        runs[variant, re.sub(r"-seed\d+$", "", arm)].append(json.loads(path.read_text()))
    if not runs:
        raise SystemExit(f"nothing measured in {folder} yet")
    students = [variant for variant, arm in runs if arm == "control" or (arm == "initial" and variant != teacher)]
    students = sorted(dict.fromkeys(students), key=lambda name: _parameters(runs, name))
    plot(folder / "accuracy.png", runs, students)
    (folder / "README.md").write_text(page(runs, students, teacher), encoding="utf-8")
    print(f"{folder / 'README.md'}, {folder / 'accuracy.png'}")


def page(runs: dict, students: list[str], teacher: str) -> str:
    """The README: what was run, on what, with which figures."""
    first = next(results[0] for (variant, arm), results in runs.items() if arm == "initial")
    lines = [
        "# Factorized Distillation on real people",
        "",
        "Rendered by `python benchmarks/fd.py --render` from the results.json files beside it; mAP / rank-1 in",
        "percent, mean over seeds, with the standard deviation of mAP where there are several.",
        "",
        *wrapped(
            f"Data set: {first['dataset']['name']} ({counts(first)}). **Not comparable with published figures** on "
            f"Market-1501: another split, {teacher} as teachers, {_start(first)}, fewer epochs, pictures of "
            f"{size(first)}. Training sees the training identities alone, nothing is selected, the test identities "
            "are met once, at the end of a run."
        ),
        "",
        "| | " + " | ".join(f"{student} ({_parameters(runs, student):,})" for student in students) + " |",
        "|---|" + "---:|" * len(students),
        *(
            f"| {label} | " + " | ".join(cell(runs.get((student, arm), [])) for student in students) + " |"
            for arm, label in ARMS.items()
        ),
        "",
        *(line for student in students for line in _verdict(runs, student, teacher)),
        "| teacher | seen at | mAP / rank-1 |",
        "|---|---:|---:|",
    ]
    for view in ("Hol", *VIEWS):
        found = runs.get((teacher, "initial" if view == "Hol" else view), [])
        if found:
            lines.append(f"| {view} | {size(found[0])} | {cell(found)} |")
    trained = next((results[0] for (_, arm), results in runs.items() if arm in ARMS and arm not in SAME), first)
    before = next((results[0] for (_, arm), results in runs.items() if arm == "initial"), first)
    lines += [
        "",
        *wrapped(
            f"Initial students: {how(before)}. Every arm goes on from them with {how(trained)}; the control is what "
            "the paper lacks: as many epochs as distillation, without teachers. Whole-picture teacher: the initial "
            f"{teacher}."
        ),
        "",
        "![mAP of every arm](accuracy.png)",
        "",
        "## How each was run",
        "",
        f"All of it: `python benchmarks/fd.py --data-dir DIR`; full size: `{FULL}`. One by one:",
        "",
        *(f"- `{result['command']}`" for results in runs.values() for result in results),
        "",
        f"Measured in {first['training']['precision']} on {first['cost']['latency_device']}.",
        "",
    ]
    return "\n".join(lines)


def _verdict(runs: dict, student: str, teacher: str) -> list[str]:
    """What distillation gave over the same epochs without teachers, in words."""
    scores = {arm: 100 * mean_map(runs[student, arm]) for arm in ARMS if (student, arm) in runs}
    control = scores.get("control")
    taught = {arm: score for arm, score in scores.items() if arm not in ("initial", "control")}
    if control is None or not taught:
        return []
    gains = ", ".join(f"{ARMS[arm].removeprefix('FD, ')} {score - control:+.1f}" for arm, score in taught.items())
    said = f"**{student}**, points of mAP over the same epochs without teachers: {gains}."
    if max(taught.values()) <= control:
        said += " **Distillation does not help here.**"
    if student == teacher and min(taught.values()) <= control:
        said += (
            " The teachers are no stronger than this student: that of the whole picture is the initial student "
            "itself, whose vectors it is drawn back to, while the control goes on learning."
        )
    alone = [arm for arm in ("attribute", "metric") if arm in taught]
    if "all" in taught and alone and (best := max(alone, key=taught.get)) and taught[best] > taught["all"]:
        said += f" Unlike published (table 7), the {best} loss alone is better than both together."
    return [*wrapped(said), ""]


def plot(path: Path, runs: dict, students: list[str]) -> None:
    """mAP of every arm, a group of bars for each student."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    shown = {arm: label for arm, label in ARMS.items() if any((student, arm) in runs for student in students)}
    width = 0.85 / len(shown)
    for number, (arm, label) in enumerate(shown.items()):
        places = [row for row, student in enumerate(students) if (student, arm) in runs]
        heights = [100 * mean_map(runs[students[row], arm]) for row in places]
        bars = axes.bar([row + (number - len(shown) / 2 + 0.5) * width for row in places], heights, width, label=label)
        axes.bar_label(bars, fmt="%.1f", fontsize=7)
    axes.set_xticks(range(len(students)), students)
    axes.set(ylabel="mAP, %", title="One student, the same epochs, different teachers")
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _parameters(runs: dict, variant: str) -> int:
    return next(results[0]["cost"]["parameters"] for (v, arm), results in runs.items() if v == variant and arm in ARMS)


def _start(result: dict) -> str:
    return "random initial weights" if result["training"].get("init") == "random" else "pre-trained weights"
