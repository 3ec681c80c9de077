"""Tables and plot of the KDEP proof, rendered from results.json files alone."""

import json
import re
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

from tables import cell, counts, how, size, wrapped

STARTS = {
    "scratch": "random initial weights",
    "svd+pts": "**KDEP** (SVD+PTS), without labels",
    "supervised": "trained on all labels for the same epochs",
}
ALIGNMENTS = {
    "svd+pts": "SVD+PTS",
    "svd": "SVD",
    "sn": "SVD, unit variances (SN)",
    "sm": "SVD, the teacher's variances (SM)",
    "cs.var": "channels of the largest variance",
    "cs.rand": "random channels",
    "interp": "nearest interpolation",
    "pre-relu": "1x1 convolution, in front of the ReLU",
    "post-relu": "1x1 convolution, behind the ReLU",
    "overhaul": "overhaul",
}
KINDS = {"people": "people", "cifar10": "CIFAR-10"}
Runs = dict[tuple[str, str, int], list[dict]]  # (kind, start, percent of the labels) -> results, one a seed


def parts(name: str) -> tuple[str, str, int | None, int]:
    """Kind, start, percent of the labels, and seed of a run's name; no percent for a teacher and what is pre-trained.

    "people.pre-relu-10" is fine-tuned behind the alignment pre-relu, "people.pre-pre-relu" is its pre-training, and
    "people.svd+pts-slow-10" is fine-tuned slowly.
    """
    kind, start, share, seed = re.fullmatch(r"([^.]+)\.(.+?)(?:-(\d+))?(?:-seed(\d+))?", name).groups()
    return kind, start, share and int(share), int(seed or 0)


def render(folder: Path) -> None:
    """Write README.md and accuracy.png of a folder of runs."""
    runs, before = defaultdict(list), {}
    for path in sorted(folder.glob("*/results.json")):
        kind, start, share, _ = parts(path.parent.name)
        results = json.loads(path.read_text())
        if share is None:
            before[kind, start] = results
        else:
            runs[kind, start, share].append(results)
    if not runs:
        raise SystemExit(f"nothing measured in {folder} yet")
    plot(folder / "accuracy.png", runs)
    (folder / "README.md").write_text(page(runs, before), encoding="utf-8")
    print(f"{folder / 'README.md'}, {folder / 'accuracy.png'}")


def page(runs: Runs, before: dict) -> str:
    """The README: what was run, on what, with which figures."""
    lines = [
        "# KDEP on real pictures",
        "",
        "Rendered by `python benchmarks/kdep.py --render` from the results.json files beside it, in percent, mean over",
        "seeds, with the standard deviation where there are several: of people mAP / rank-1, of CIFAR-10 the top-1 of",
        "the last epoch.",
        "",
    ]
    for kind in KINDS:
        found = {key: results for key, results in runs.items() if key[0] == kind}
        if found:
            lines += section(kind, found, {stage: results for (k, stage), results in before.items() if k == kind})
    first = next(iter(runs.values()))[0]
    lines += [
        "![accuracy against the share of labels](accuracy.png)",
        "",
        "## How each was run",
        "",
        *wrapped(
            "All of it: `python benchmarks/kdep.py --data-dir DIR --cifar-dir DIR`, one seed: `--seeds 0`; full size "
            "with `--scale full`. One alone: with `--one NAME`, its folder's name; each results.json has its command."
        ),
        "",
        f"Measured in {first['training']['precision']} on {first['cost']['latency_device']}.",
        "",
    ]
    return "\n".join(lines)


def section(kind: str, runs: Runs, before: dict) -> list[str]:
    """What was found on one kind of pictures."""
    first, shares = next(iter(runs.values()))[0], sorted({share for *_, share in runs})
    least = shares[0]
    taught = next((before[stage] for stage in before if stage not in ("teacher", "pre-supervised")), first)
    what = "identities" if kind == "people" else "pictures of each class"

    bare = kind == "people"  # who has no labels at all can compare people, but not name classes

    def tuned(start: str, share: int) -> str:
        return _cell(kind, runs.get((kind, start, share), []))

    def pretrained(start: str) -> list[dict]:
        return [before[stage] for stage in (f"pre-{start}",) if bare and stage in before]

    lines = [
        f"## {KINDS[kind][0].upper() + KINDS[kind][1:]}",
        "",
        *wrapped(
            f"Data set: {first['dataset']['name']} ({counts(first)}), pictures of {size(first)}. **Not comparable with "
            f"published figures.** Students of {first['cost']['parameters']:,} parameters; pre-training: "
            f"{how(taught)}, {taught['training'].get('crops', 0)} stored crops of each picture"
            f"{teacher_of(taught['training'])}. "
            f"Then the recipe `{first['training']['recipe']}` on a share of the labels, {epochs_of(runs, shares)}."
        ),
        "",
        "| start |" + bare * " as it starts |" + "".join(f" {share} % of {what} |" for share in shares),
        "|---|" + "---:|" * (bare + len(shares)),
        *(
            "| "
            + " | ".join([label, *bare * [_cell(kind, pretrained(start))], *(tuned(start, n) for n in shares)])
            + " |"
            for start, label in STARTS.items()
        ),
        "",
    ]
    if "teacher" in before:
        lines += [f"The teacher, trained on all labels: {_cell(kind, [before['teacher']])}.", ""]
    both = ("svd+pts", "scratch")
    gains = {n: [_score(kind, runs[kind, start, n]) for start in both] for n in shares if _all(runs, kind, both, n)}
    if gains:
        said = ", ".join(f"{ours - theirs:+.1f} with {share} %" for share, (ours, theirs) in gains.items())
        lines += [f"**KDEP without labels against random initial weights, in points: {said} of the labels.**", ""]
    scores = {"svd+pts": gains[least][0]} if least in gains else {}
    slow = {start: runs[kind, f"{start}-slow", least] for start in STARTS if (kind, f"{start}-slow", least) in runs}
    if slow:
        lines += [*wrapped(forgetting(kind, scores, slow, pretrained("svd+pts"), least)), ""]
    compared = {start: runs[kind, start, least] for start in ALIGNMENTS if (kind, start, least) in runs}
    if len(compared) > 1:
        lines += [
            "| alignment |" + bare * " as it starts |" + f" {least} % of {what} |",
            "|---|" + "---:|" * (bare + 1),
            *(
                "| "
                + " | ".join([ALIGNMENTS[name], *bare * [_cell(kind, pretrained(name))], tuned(name, least)])
                + " |"
                for name in compared
            ),
            "",
        ]
        ranked = sorted(compared, key=lambda name: -_score(kind, compared[name]))
        if ranked[0] != "svd+pts" and "svd+pts" in compared:
            ahead = _score(kind, compared[ranked[0]]) - _score(kind, compared["svd+pts"])
            seeds = min(len(compared[name]) for name in (ranked[0], "svd+pts"))
            lines += [
                f"Unlike published, {ALIGNMENTS[ranked[0]]} is ahead of SVD+PTS, by {ahead:.1f} points over {seeds} "
                f"seed{'s' * (seeds > 1)}.",
                "",
            ]
    return lines


def forgetting(kind: str, scores: dict[str, float], slow: dict[str, list[dict]], starts: list[dict], least: int) -> str:
    """What a tenth of the fine-tuning's rate does, and whether the recipe's own forgets what was learned before."""
    trunks = {"svd+pts": "KDEP's trunk", "supervised": "the supervised trunk"}
    found = " and ".join(f"{trunks[start]} {_score(kind, runs):.1f}" for start, runs in slow.items())
    said = f"Fine-tuned with {least} % of the labels at a tenth of the rate: {found}."
    if starts and _score(kind, starts) > scores.get("svd+pts", 100):
        said += (
            f" At the recipe's rate KDEP's student is worse behind the few labels ({scores['svd+pts']:.1f}) than in "
            f"front of them ({_score(kind, starts):.1f}): what the teacher knows of all people is then forgotten for a "
            "few."
        )
    return said


def epochs_of(runs: Runs, shares: list[int]) -> str:
    """How many epochs each share of the labels was shown for, in words."""
    lengths = {share: found[0]["training"]["epochs"] for (*_, share), found in runs.items()}
    return ", ".join(f"{lengths[share]:g} epochs of {share} %" for share in shares)


def teacher_of(training: dict) -> str:
    """Whom a student was taught by, in words."""
    return f", taught by {training['teacher']}, which was trained on all labels" if "teacher" in training else ""


def plot(path: Path, runs: Runs) -> None:
    """Accuracy against the share of the labels, one line a start."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    kinds = [kind for kind in KINDS if any(key[0] == kind for key in runs)]
    figure, grid = plt.subplots(1, len(kinds), figsize=(5.5 * len(kinds), 4), layout="constrained", squeeze=False)
    for axes, kind in zip(grid[0], kinds, strict=True):
        for start, label in STARTS.items():
            points = sorted(
                (share, _score(kind, found)) for (k, s, share), found in runs.items() if (k, s) == (kind, start)
            )
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", label=label.replace("*", ""))
        axes.set(xscale="log", xlabel="share of the labels, %", title=KINDS[kind])
        axes.set_ylabel("mAP, %" if kind == "people" else "top-1, %")
        axes.set_xticks(sorted({share for k, _, share in runs if k == kind}))
        axes.get_xaxis().set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _all(runs: Runs, kind: str, starts: tuple[str, ...], share: int) -> bool:
    return all((kind, start, share) in runs for start in starts)


def _cell(kind: str, results: list[dict]) -> str:
    if kind == "people" or not results:
        return cell(results)
    values = [100 * result["metrics"]["top1"] for result in results]
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def _score(kind: str, results: list[dict]) -> float:
    return 100 * mean(result["metrics"]["mAP" if kind == "people" else "top1"] for result in results)
