"""Table and plot of the PTL proof, rendered from results.json files alone."""

import json
import re
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

from tables import cell, counts, how, mean_map, size, wrapped

from reid_hub.training import RECIPES

ARMS = {
    "none": "the backbone alone",
    "plain": "with a plain side network of as many weights, no gates, no memory",
    "forgets": "with PTL's side network, forgetting before every batch (as released)",
    "memory": "**PTL**: with its memory from batch to batch",
    "memory-v2": "**PTL-v2**",
    "std": "**STD**: the backbone alone, distilled",
}
SHORT = {"none": "none", "plain": "plain", "forgets": "forgets", "memory": "PTL", "memory-v2": "PTL-v2", "std": "STD"}
# What is compared to see what the memory, the gates and the mere size of the side network contribute.
QUESTIONS = (
    ("memory", "forgets", "the memory itself (PTL against the same network forgetting)"),
    ("forgets", "plain", "gates instead of a plain convolution of as many weights"),
    ("plain", "none", "more weights beside the backbone"),
    ("memory", "none", "all of PTL beside the backbone"),
    ("std", "none", "distilling into the backbone"),
)


def render(folder: Path) -> None:
    """Write README.md and accuracy.png of a folder of runs."""
    runs = defaultdict(list)
    for path in sorted(folder.glob("*/results.json")):
        variant, _, arm = path.parent.name.rpartition(".")
        kind = "cifar" if variant == "cifar10" else "people"
        runs[kind, re.sub(r"-seed\d+$", "", arm)].append(json.loads(path.read_text()))
    if not any(kind == "people" for kind, _ in runs):
        raise SystemExit(f"nobody measured in {folder} yet")
    plot(folder / "accuracy.png", runs)
    (folder / "README.md").write_text(page(runs), encoding="utf-8")
    print(f"{folder / 'README.md'}, {folder / 'accuracy.png'}")


def page(runs: dict) -> str:
    """The README: what was run, on what, with which figures."""
    people = {arm: results for (kind, arm), results in runs.items() if kind == "people"}
    first = next(iter(people.values()))[0]
    lines = [
        "# Progressive Transfer Learning on real pictures",
        "",
        "Rendered by `python benchmarks/ptl.py --render` from the results.json files beside it; mAP / rank-1 in",
        "percent, mean over seeds, with the standard deviation of mAP where there are several.",
        "",
        *wrapped(
            f"Data set: {first['dataset']['name']} ({counts(first)}). **Not comparable with published figures** on "
            "Market-1501: another split, random initial weights, a narrow backbone, fewer epochs, pictures of "
            f"{size(first)}. Every arm: {how(first)}. The rate falls to a tenth after every {falls(first):g} epochs, "
            f"as published in proportion, so most is learnt in the first {2 * falls(first):g}. Training sees the "
            "training identities alone; the test identities are met once, at the end of a run (STD's teacher is the "
            "arm that did best there, as in the paper)."
        ),
        "",
        "| | parameters in use | mAP / rank-1 |",
        "|---|---:|---:|",
        *(
            f"| {label} | {people[arm][0]['cost']['parameters']:,} | {cell(people[arm])} |"
            for arm, label in ARMS.items()
            if arm in people
        ),
        "",
        *verdicts(people, "mAP", "mAP"),
    ]
    if any(kind == "cifar" for kind, _ in runs):
        lines += cifar({arm: results for (kind, arm), results in runs.items() if kind == "cifar"})
    lines += [
        "![mAP of every arm](accuracy.png)",
        "",
        "## How each was run",
        "",
        "All of it: `python benchmarks/ptl.py --data-dir DIR --cifar-dir DIR`; full size: with `--scale full`. Each:",
        "",
        *(f"- `{result['command']}`" for results in runs.values() for result in results),
        "",
        f"Measured in {first['training']['precision']} on {first['cost']['latency_device']}.",
        "",
    ]
    return "\n".join(lines)


def falls(result: dict) -> float:
    """Epochs from one fall of the rate to the next, in a training by a recipe with steps."""
    schedule = RECIPES[result["training"]["recipe"]].schedule
    return schedule.milestones[0] / schedule.epochs * result["training"]["epochs"]


def verdicts(arms: dict, metric: str, unit: str) -> list[str]:
    """What each ingredient contributed, by pairs of runs of one seed, and a plain word on the memory."""
    lines, gains = [f"What contributes what, in points of {unit}, seed by seed:", ""], {}
    for one, other, question in QUESTIONS:
        gained = gains[one, other] = gains_by_seed(arms.get(one, []), arms.get(other, []), metric)
        if gained:
            spread = f" ± {stdev(gained):.1f}" if len(gained) > 1 else ""
            seeds = f"{len(gained)} seed{'s' if len(gained) > 1 else ''}"
            lines.append(f"- {question}: **{mean(gained):+.1f}{spread}** ({seeds})")
    taught = next((result["training"].get("taught_by") for result in arms.get("std", [])), None)
    if taught:
        lines.append(f"- the teacher of STD was {taught.rpartition('.')[2]}")
    if gained := gains["memory", "forgets"]:
        helps = "helped" if min(gained) > 0 else "did not help" if max(gained) <= 0 else "helped with some seeds only"
        lines += ["", f"**Carrying the state from batch to batch {helps} here**: {mean(gained):+.1f} points of {unit}."]
    for arm in ("memory", "memory-v2"):
        for result in arms.get(arm, []):
            if losses := result["training"].get("loss_from_state"):
                little = abs(losses["carried"] / losses["zeros"] - 1) < 0.02
                lines.append("")
                lines += wrapped(
                    f"The trained {SHORT[arm]} classifies training pictures with a cross-entropy of "
                    f"{losses['carried']:.3f} where it meets the state of the batch before, and of "
                    f"{losses['zeros']:.3f} from zeros, as in use"
                    + (
                        ": it has learnt to make hardly any use of that state, which is of other people."
                        if little
                        else "."
                    )
                )
    return [*lines, ""] if any(gains.values()) else []


def gains_by_seed(ones: list[dict], others: list[dict], metric: str) -> list[float]:
    """Differences in points between runs of the same seed."""
    before = {result["training"]["seed"]: result["metrics"][metric] for result in others}
    after = {result["training"]["seed"]: result["metrics"][metric] for result in ones}
    return [100 * (after[seed] - before[seed]) for seed in sorted(before.keys() & after.keys())]


def cifar(found: dict) -> list[str]:
    """Error of every arm on CIFAR-10, last epoch."""
    first = next(iter(found.values()))[0]
    training, data = first["training"], first["dataset"]["data_dir_counts"]
    blocks = training["changes"]["config.backbone_config"]["blocks"]
    lines = [
        "## CIFAR-10",
        "",
        *wrapped(
            f"DenseNet-BC of growth 12 with {'+'.join(map(str, blocks))} layers, {training['keep']:g} of the "
            f"{data['train']['images']:,} training pictures (recompressed as JPEG), {how(first)}, with flip and crop. "
            "**Not comparable with published figures.** Error of the last epoch in percent; as in the paper, two "
            "linear layers classify where there is a side network, one where there is none."
        ),
        "",
        "| | parameters | error |",
        "|---|---:|---:|",
    ]
    for arm, label in ARMS.items():
        if arm in found:
            errors = [100 * (1 - result["metrics"]["top1"]) for result in found[arm]]
            spread = f" ± {stdev(errors):.1f}" if len(errors) > 1 else ""
            lines.append(f"| {label} | {found[arm][0]['cost']['parameters']:,} | {mean(errors):.1f}{spread} |")
    return [*lines, "", *verdicts(found, "top1", "accuracy")]


def plot(path: Path, runs: dict) -> None:
    """mAP of every arm, a dot for each seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    arms = [arm for arm in ARMS if ("people", arm) in runs]
    heights = [100 * mean_map(runs["people", arm]) for arm in arms]
    bars = axes.bar(range(len(arms)), heights, color="tab:blue", alpha=0.6)
    axes.bar_label(bars, fmt="%.1f", label_type="center")
    for place, arm in enumerate(arms):
        dots = [100 * result["metrics"]["mAP"] for result in runs["people", arm]]
        axes.plot([place] * len(dots), dots, "k.")
    axes.set_xticks(range(len(arms)), [SHORT[arm] for arm in arms])
    axes.set(ylabel="mAP, %", title="One backbone, the same epochs, another side network")
    figure.savefig(path, dpi=120)
    plt.close(figure)
