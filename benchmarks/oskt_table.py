"""Table and plot of the OSKT proof, rendered from results.json files alone."""

import json
import re
from collections import defaultdict
from pathlib import Path

from tables import cell, counts, how, mean_map, size, wrapped

FULL = "python benchmarks/oskt.py --data-dir DIR --scale full"
ARMS = {
    "oskt": "OSKT",
    "wtsel": "weight selection",
    "depgraph": "DepGraph",
    "scratch": "scratch",
    "scratch-lr": "scratch, its own rate",
    "oskt-own": "OSKT, chain of its own width",
}


def render(folder: Path, teacher: str) -> None:
    """Write README.md and accuracy.png of a folder of runs."""
    runs = defaultdict(list)
    for path in sorted(folder.glob("*/results.json")):
        variant, _, arm = path.parent.name.partition(".")
        runs[variant, re.sub(r"-seed\d+$", "", arm)].append(json.loads(path.read_text()))
    if not runs:
        raise SystemExit(f"nothing measured in {folder} yet")
    plot(folder / "accuracy.png", runs, teacher)
    (folder / "README.md").write_text(page(runs, teacher), encoding="utf-8")
    print(f"{folder / 'README.md'}, {folder / 'accuracy.png'}")


def page(runs: dict, teacher: str) -> str:
    """The README: what was run, on what, with which figures."""
    first = next(iter(runs.values()))[0]
    before = {arm: results for (variant, arm), results in runs.items() if arm not in ARMS}
    refined = next((results[0] for arm, results in before.items() if arm.startswith("chain")), first)
    lines = [
        "# OSKT on real people",
        "",
        "Rendered by `python benchmarks/oskt.py --render` from the results.json files beside it; mAP / rank-1 in",
        "percent, mean over seeds, with the standard deviation of mAP where there are several.",
        "",
        *wrapped(
            f"Data set: {first['dataset']['name']} ({counts(first)}). **Not comparable with published figures** on "
            f"Market-1501: another split, the teacher is a {teacher} trained from random weights, fewer epochs, "
            f"pictures of {size(first)}. Training sees the training identities alone, nothing is selected, the test "
            "identities are met once, at the end of a run.",
        ),
        "",
        "| student | parameters | " + " | ".join(ARMS.values()) + " |",
        "|---|---:|" + "---:|" * len(ARMS),
    ]
    variants = sorted({variant for variant, arm in runs if arm in ARMS}, key=lambda name: _parameters(runs, name))
    for variant in variants:
        cells = [cell(runs.get((variant, arm), [])) for arm in ARMS]
        lines.append(f"| {variant} | {_parameters(runs, variant):,} | {' | '.join(cells)} |")
    for variant in variants:
        scores = {arm: mean_map(runs[variant, arm]) for arm in ARMS if (variant, arm) in runs}
        own = scores.pop("oskt-own", None)
        best = max(scores, key=scores.get)
        if "oskt" in scores and best != "oskt":
            behind = 100 * (scores[best] - scores["oskt"])
            lines += ["", f"**{variant}: OSKT is not ahead**, {ARMS[best]} is by {behind:.1f} points of mAP."]
        if "oskt" in scores and own is not None:
            gain = 100 * (own - scores["oskt"])
            lines += [
                "",
                *wrapped(
                    f"{variant} lies in between: its stages are not as wide as those of its chain's narrowest student, "
                    "so some of its channels begin with the same row. From a chain that was refined for the same "
                    f"epochs at {variant}'s own widths, nothing repeated, it scores {gain:+.1f} points of mAP more.",
                ),
            ]
    copies = {v: results[0]["copies"] for (v, arm), results in runs.items() if arm == "oskt" and "copies" in results[0]}
    copies = {variant: found for variant, found in copies.items() if "same_row" in found}
    if copies:
        lines += [
            "",
            "How far a student's own training moves such copies apart: mean cosine of filters that began with the same",
            "row (1 = still copies) at its end, and of filters of different rows.",
            "",
            "| student | began with the same row | different rows |",
            "|---|---:|---:|",
            *(f"| {v} | {found['same_row']:.2f} | {found['other_rows']:.2f} |" for v, found in sorted(copies.items())),
        ]
    lines += ["", "| before any student is trained | mAP / rank-1 | epochs |", "|---|---:|---:|"]
    for arm in sorted(before, key=lambda arm: (not arm.startswith("teacher"), len(arm), arm)):
        name = {"teacher": "the teacher", "sparse": "the teacher after sparsity learning (for DepGraph)"}.get(
            arm, f"narrowest student of chain {arm.removeprefix('chain').removeprefix('-')}, as expanded"
        )
        lines.append(f"| {name} | {cell(before[arm])} | {before[arm][0]['training']['epochs']:g} |")
    student = next(results[0] for (_, arm), results in runs.items() if arm in ARMS)
    lines += [
        "",
        *wrapped(
            f"Every student is trained alike: {how(student)}. The chains were refined with {how(refined)}. OSKT and "
            "DepGraph have spent these epochs on the same pictures before (once for all students of a chain, once for "
            'all widths); weight selection and scratch have not. "Scratch, its own rate" has the learning rate that '
            f"the teacher was trained with, {_rate(runs, teacher)}. {teacher} itself, the widest student, is no row: "
            "it would be the teacher.",
        ),
        "",
        "![accuracy against parameters](accuracy.png)",
        "",
        "## How each was run",
        "",
        f"All of it: `python benchmarks/oskt.py --data-dir DIR`; full size: `{FULL}`. One by one:",
        "",
    ]
    lines += [f"- `{result['command']}`" for results in runs.values() for result in results]
    lines += ["", f"Measured in {student['training']['precision']} on {student['cost']['latency_device']}.", ""]
    return "\n".join(lines)


def plot(path: Path, runs: dict, teacher: str) -> None:
    """mAP against parameters, one line per arm."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for arm, label in ARMS.items():
        points = sorted((_parameters(runs, v), 100 * mean_map(results)) for (v, a), results in runs.items() if a == arm)
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=label)
    if (teacher, "teacher") in runs:
        axes.axhline(
            100 * mean_map(runs[teacher, "teacher"]), color="grey", linestyle="--", label=f"teacher, {teacher}"
        )
    axes.set(xscale="log", xlabel="parameters", ylabel="mAP, %", title="Students of one teacher, under one recipe")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _parameters(runs: dict, variant: str) -> int:
    return next(results[0]["cost"]["parameters"] for (v, _), results in runs.items() if v == variant)


def _rate(runs: dict, teacher: str) -> str:
    changes = runs[teacher, "teacher"][0]["training"]["changes"] if (teacher, "teacher") in runs else {}
    return str(changes.get("learning_rate", "unknown"))
