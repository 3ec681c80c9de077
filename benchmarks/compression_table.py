"""Tables and plot of the compression proof, rendered from results.json files alone."""

import json
import re
import textwrap
from collections import defaultdict
from pathlib import Path

from tables import cell, counts, mean_map

HEADS = {
    "slice": "slice",
    "low_rank": "low rank",
    "prune": "pruned",
    "matryoshka": "Matryoshka (control)",
    "pca": "PCA (control, not trained)",
    "random": "random projection (control, not trained)",
    "none": "the model itself",
}
NAME = re.compile(r"(?P<model>.+)\.(?P<head>[a-z_]+)-(?P<dim>\d+)(?P<int8>-int8)?(-seed\d+)?$")
FAITHFUL = 96  # float32 of all dimensions to int8 of 1/24 of them


def render(folder: Path) -> None:
    """Write README.md and accuracy.png of a folder of runs."""
    runs, codes = defaultdict(list), []
    for path in sorted(folder.glob("*/results.json")):
        result = json.loads(path.read_text())
        if found := NAME.match(path.parent.name):
            runs[found["head"], bool(found["int8"]), int(found["dim"])].append(result)
        else:
            codes.append(result)
    if not runs:
        raise SystemExit(f"nothing measured in {folder} yet")
    plot(folder / "accuracy.png", runs, codes)
    (folder / "README.md").write_text(page(runs, codes), encoding="utf-8")
    print(f"{folder / 'README.md'}, {folder / 'accuracy.png'}")


def page(runs: dict, codes: list[dict]) -> str:
    """The README: what was run, on what, with which figures."""
    full = max(dim for _, _, dim in runs)
    dims = sorted({dim for _, _, dim in runs}, reverse=True)
    base = runs["none", False, full][0]
    trained = next(r[0] for (head, _, _), r in runs.items() if head in ("slice", "low_rank"))
    lines = [
        "# Compressed embeddings on real people",
        "",
        "Rendered by `python benchmarks/compression.py --render` from the results.json files beside it; mAP / rank-1",
        "in percent, after quantisation, mean over seeds, with the standard deviation of mAP where there are several.",
        "",
        *textwrap.wrap(
            f"Data set: {base['dataset']['name']} ({counts(base)}), **not comparable with published figures** on "
            f"Market-1501. Model: {base['training']['init']}, {base['cost']['parameters']:,} parameters, embedding of "
            f"{full}, pictures of {'x'.join(map(str, base['cost']['image_size']))}. Trained heads go on from it for "
            f"{trained['training']['epochs']:g} epochs of the recipe `{trained['training']['recipe']}` (pruning: 0.2 "
            "of them from size to size, in int8 after all of them at full length). Training sees the training "
            "identities alone, nothing is selected, the test identities are met once, at the end of a run.",
            120,
        ),
        "",
        "| head | numbers | " + " | ".join(f"{dim}" for dim in dims) + " |",
        "|---|---|" + "---:|" * len(dims),
    ]
    for head, label in HEADS.items():
        for int8 in (False, True):
            cells = [cell(runs.get((head, int8, dim), [])) for dim in dims]
            if any(cell != "-" for cell in cells):
                lines.append(f"| {label} | {'int8' if int8 else 'float32'} | {' | '.join(cells)} |")
    lines += ["", *_claim(runs, full), *_code_table(codes)]
    commands = sorted({result["command"] for results in (*runs.values(), codes) for result in results})
    lines += [
        "",
        "![mAP against bytes per vector](accuracy.png)",
        "",
        "## How it was run",
        "",
        *[f"- `{command}`" for command in commands],
        "",
        f"Measured in {trained['training']['precision']} on {trained['cost']['latency_device']}.",
        "",
    ]
    return "\n".join(lines)


def _claim(runs: dict, full: int) -> list[str]:
    """The paper's claim, for this model: 96 times smaller, at most 4 points lost."""
    reference = mean_map(runs["slice", False, full]) if ("slice", False, full) in runs else None
    small = {
        head: mean_map(results)
        for (head, int8, dim), results in runs.items()
        if int8 and 4 * full / dim >= FAITHFUL and head in ("slice", "low_rank", "prune")
    }
    if reference is None or not small:
        return []
    best = max(small, key=small.get)
    dim = max(dim for head, int8, dim in runs if head == best and int8 and 4 * full / dim >= FAITHFUL)
    lost = 100 * (reference - small[best])
    untrained = 100 * (mean_map(runs["none", False, full]) - small[best])
    verdict = "confirmed" if lost <= 4 else "**refuted**"
    control = runs.get(("pca", True, dim))
    beside = f" PCA, which trains nothing, scores {100 * mean_map(control):.1f} at that size." if control else ""
    return textwrap.wrap(
        f'The paper\'s claim "96x smaller, about 4 % lost" is {verdict} for this model: {HEADS[best]} at {dim} bytes '
        f"({4 * full / dim:.1f}x smaller) scores {100 * small[best]:.1f} mAP, {lost:.1f} points below the full "
        f"float32 embedding trained for the same epochs ({100 * reference:.1f}), {untrained:.1f} below the model it "
        f"started from.{beside}",
        120,
    )


def _code_table(codes: list[dict]) -> list[str]:
    if not codes:
        return []
    lines = ["", "The model itself, its gallery stored in codes, nothing trained:", ""]
    lines += ["| codec | bytes per vector | mAP / rank-1 | ms per query |", "|---|---:|---:|---:|"]
    for result in sorted(codes, key=lambda result: -result["cost"]["bytes_per_vector"]):
        cost, name = result["cost"], result["protocol"]["codec"]
        lines.append(f"| {name} | {cost['bytes_per_vector']} | {cell([result])} | {cost['search_ms']} |")
    return lines


def plot(path: Path, runs: dict, codes: list[dict]) -> None:
    """mAP against bytes per vector, one line per head and precision."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for color, (head, label) in zip(plt.cm.tab10.colors, HEADS.items(), strict=False):
        for int8, style in ((False, "-"), (True, "--")):
            points = sorted(
                (results[0]["cost"]["bytes_per_vector"], 100 * mean_map(results))
                for (name, quantised, _), results in runs.items()
                if (name, quantised) == (head, int8)
            )
            if points:
                name = label + (", int8" if int8 else "")
                axes.plot(*zip(*points, strict=True), style, marker="s" if int8 else "o", color=color, label=name, ms=4)
    for result in codes:
        point = result["cost"]["bytes_per_vector"], 100 * result["metrics"]["mAP"]
        axes.plot(*point, "k*")
        place = {"textcoords": "offset points", "xytext": (2, -5), "ha": "left", "va": "top"}
        axes.annotate(result["protocol"]["codec"], point, fontsize=6, rotation=-40, **place)
    axes.set(xscale="log", xlabel="bytes per vector", ylabel="mAP, %", title="What a stored vector costs and gives")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=7)
    figure.savefig(path, dpi=120)
    plt.close(figure)
