"""KDEP: students pre-trained without labels, then fine-tuned with few, on people and on CIFAR-10.

    python benchmarks/run.py kdep --data-dir DIR --cifar-dir DIR   # run all rows without results
    python benchmarks/run.py kdep --data-dir DIR --scale full      # a ResNet-50 as teacher, full budgets, for a GPU
    python benchmarks/run.py kdep --render                         # write page and plot, run nothing

The first folder holds a data set in Market-1501's layout, the second (optional) CIFAR-10. Each run is evaluated once on
the test identities, at its end.

The teacher is trained on the labels of all training images (or given by --people-teacher, --cifar10-teacher). Students
are pre-trained on the same images without labels, then fine-tuned on the labels of some identities, or of some images
of each class; fewer labels get more epochs. They are compared with random initial weights, and with a backbone that was
trained on all labels for the same epochs. With the fewest labels, the alignments are compared, and fine-tuning at a
tenth of the learning rate ("-slow").
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import stages
from experiment import CIFAR, Experiment, Options, Row, seeded
from render import Block, Panel, Plot, Series, Table
from words import Result, Runs, cell, counts, how, how_run, score, size

ALIGNMENTS = {
    "svd+pts": "SVD+PTS",
    "svd": "SVD",
    "sn": "SVD, unit variances (SN)",
    "sm": "SVD, the teacher's variances (SM)",
    "cs.var": "channels of the largest variance",
    "cs.rand": "random channels",
    "interp": "nearest interpolation",
    "pre-relu": "1x1 convolution before the ReLU",
    "post-relu": "1x1 convolution after the ReLU",
    "overhaul": "overhaul",
}
STARTS = {  # fine-tuned on every share of the labels
    "scratch": "random initial weights",
    "svd+pts": "**KDEP** (SVD+PTS), without labels",
    "supervised": "trained on all labels for the same epochs",
}
KINDS = {"people": "people", "cifar10": "CIFAR-10"}
SHARES = {"people": (10, 30, 100), "cifar10": (1, 10, 100)}  # percent of the identities, or of the images of each class
CELLS = {"people": "mAP / rank-1", "cifar10": "top-1 of the last epoch"}
METRICS = {"people": ("mAP", "rank1"), "cifar10": ("top1",)}
# Whole images, without cropped edges, and a classifier on the pooled average.
WHOLE = {"config.neck": "none", "config.resize_shortest": None}


@dataclass(frozen=True)
class Scale:
    """Networks, sizes and epochs, of people and of CIFAR-10; `crops` of each image, see `PretrainSettings`.

    `tuning_epochs` has an entry for each share of the labels: a small share needs more epochs, or random weights would
    not have converged. `networks` holds the values that all runs share, whatever their recipe: otherwise random weights
    would train another network, on other crops of the images.
    """

    teacher: str
    student: str
    sizes: dict[str, tuple[int, int]]
    teacher_epochs: dict[str, float]
    epochs: dict[str, float]
    tuning_epochs: dict[str, tuple[float, ...]]
    crops: int
    pretraining: dict
    networks: dict[str, dict]
    arguments: dict


SCALES = {
    "small": Scale(
        "res50-s5", "res18-x0.25", {"people": (128, 64), "cifar10": (64, 64)}, {"people": 20, "cifar10": 4},
        {"people": 12, "cifar10": 4}, {"people": (60, 30, 15), "cifar10": (100, 20, 6)}, 4,
        {"batch_size": 64, "learning_rate": 0.1}, {"people": {}, "cifar10": {**WHOLE, "config.last_stride": 1}}, {},
    ),
    "full": Scale(
        "res50", "res18", {"people": (256, 128), "cifar10": (224, 224)}, {"people": 120, "cifar10": 30},
        {"people": 90, "cifar10": 90}, {"people": (240, 120, 60), "cifar10": (600, 300, 150)}, 0, {},
        {"people": {}, "cifar10": {**WHOLE, "config.last_stride": None}}, {"bf16": True},
    ),
}  # fmt: skip
GIVEN = "folder of a trained teacher (default: train one)"
OPTIONS = {**CIFAR, "--people-teacher": {"help": GIVEN}, "--cifar10-teacher": {"help": GIVEN}}


def rows(options: Options) -> Iterator[Row]:
    """Fine-tuning, then its sources: pre-training and the teacher."""
    kinds = KINDS if options.own["cifar_dir"] else ("people",)
    for seed in options.seeds:
        for kind in kinds:
            yield from (fine_tuning(options, kind, start, share, seed) for start, share in compared(kind))
    for kind in kinds:
        yield from sources(options, kind)


def compared(kind: str) -> list[tuple[str, int]]:
    """Start and share of the labels of every fine-tuning, most wanted first."""
    least = SHARES[kind][0]
    pairs = [(start, share) for start in STARTS for share in SHARES[kind]]
    pairs += [(align, least) for align in ALIGNMENTS if align not in STARTS]
    return pairs + [(f"{start}-slow", least) for start in STARTS if start != "scratch"]


def run(call: str, options: Options, name: str, changes: dict | None = None, **fields) -> partial:
    """A stage; `changes` add to those of the network."""
    scale, kind = SCALES[options.scale], name.partition(".")[0]
    common = {"image_size": scale.sizes[kind], "arg": scale.arguments}
    common["set"] = {**scale.networks[kind], **(changes or {})}
    return partial(stages.run, call, **options.settings(name, **common, **fields))


def supervised(options: Options, name: str, epochs: float, slowly: bool = False, **fields) -> partial:
    """Training with labels: a teacher, a baseline, or fine-tuning (default: with the demo recipe)."""
    people = name.startswith("people")
    fields = {"recipe": "demo" if people else "classify-demo", "epochs": epochs, **fields}
    fields |= {} if people else {"evaluate_every": max(1, round(epochs))}
    fields |= {"changes": {"learning_rate": stages.recipe(fields["recipe"]).learning_rate / 10}} if slowly else {}
    return run("train" if people else "classify", options, name, **fields)


def fine_tuning(options: Options, kind: str, start: str, share: int, seed: int) -> Row:
    """Fine-tuning of a student, from random weights or from a pre-trained backbone."""
    scale, name, before = SCALES[options.scale], seeded(f"{kind}.{start}-{share}", seed), start.removesuffix("-slow")
    fields = {"keep_ids" if kind == "people" else "keep": share / 100, "origin": start}
    fields["model"] = scale.student if before == "scratch" else str(backbone_of(options, kind, before))
    epochs = scale.tuning_epochs[kind][SHARES[kind].index(share)]
    needs = [] if before == "scratch" else [f"{kind}.pre-{before}"]
    return options.row(name, supervised(options, name, epochs, slowly=before != start, **fields), needs=needs)


def backbone_of(options: Options, kind: str, start: str) -> Path:
    """The folder of the backbone that fine-tuning starts from."""
    folder = options.work / f"{kind}.pre-{start}"
    return folder / "backbone" if (kind, start) == ("cifar10", "supervised") else folder


def sources(options: Options, kind: str) -> Iterator[Row]:
    """The teacher and every pre-training; all alignments share the basis and the stored features."""
    scale, name, shared = SCALES[options.scale], f"{kind}.pre-supervised", options.work / f"{kind}.shared"
    teacher, given = f"{kind}.teacher", options.own[f"{kind}_teacher"]
    fields = {"model": scale.student, "epochs": scale.epochs[kind], "changes": scale.pretraining}
    recipe = "kdep-people-supervised" if kind == "people" else "kdep-supervised"
    strip = partial(stages.strip_classifier, options.work / name, backbone_of(options, kind, "supervised"))
    calls = [supervised(options, name, **fields, recipe=recipe), *([strip] if kind == "cifar10" else [])]
    yield options.row(name, *calls, wanted=False)
    fields |= {"recipe": "kdep-people" if kind == "people" else "kdep", "crops": scale.crops}
    fields |= {"teacher": str(given or options.work / teacher)}
    fields |= {"basis": str(shared / "basis.safetensors"), "cache": str(shared / "features")}
    for align in ALIGNMENTS:
        name = f"{kind}.pre-{align}"
        call = run("pretrain", options, name, **fields, align=align)
        yield options.row(name, call, needs=[] if given else [teacher], wanted=False)
    call = supervised(options, teacher, scale.teacher_epochs[kind], model=scale.teacher)
    yield options.row(teacher, call, wanted=False)


def page(runs: Runs, scale: Scale) -> Iterator[Block]:
    """Answer, people, CIFAR-10, and commands."""
    tuned = {}
    for kind in KINDS:
        names = {pair: f"{kind}.{pair[0]}-{pair[1]}" for pair in compared(kind)}
        tuned[kind] = {pair: runs[name] for pair, name in names.items() if name in runs}
    yield answer(tuned)
    for kind, found in tuned.items():
        if found:
            yield from section(kind, runs, found)
    yield "![accuracy against the share of labels](accuracy.png)"
    said = (
        "All rows: `python benchmarks/run.py kdep --data-dir DIR --cifar-dir DIR`; with one seed: `--seeds 0`; at full "
        "size: `--scale full`. A single row: `--one NAME`, with the name of its folder. Each results.json holds its "
        "command."
    )
    yield from how_run({}, next(iter(runs.values()))[0], said)


def answer(tuned: dict[str, dict[tuple[str, int], list[Result]]]) -> str | None:
    """The gain of KDEP over random initial weights, for each kind of images and share of the labels."""
    gains = {}
    for kind, found in tuned.items():
        for share in SHARES[kind]:
            if {("svd+pts", share), ("scratch", share)} <= found.keys():
                ours, random = (score(found[start, share], METRICS[kind][0]) for start in ("svd+pts", "scratch"))
                gains.setdefault(kind, {})[share] = ours - random
    if not gains:
        return None
    better = [gain > 0 for by_share in gains.values() for gain in by_share.values()]
    shares = "every share" if all(better) else f"{sum(better)} of {len(better)} shares"
    listed = [
        f"{KINDS[kind]} ({'mAP' if kind == 'people' else 'top-1'}) "
        + ", ".join(f"{gain:+.1f} with {share} %" for share, gain in by_share.items())
        for kind, by_share in gains.items()
    ]
    return (
        f"**KDEP pre-training, which needs no labels, beats random initial weights at {shares} of the labels.** Gain "
        f"in points: {'; '.join(listed)}."
    )


def section(kind: str, runs: Runs, tuned: dict[tuple[str, int], list[Result]]) -> Iterator[Block]:
    """Results on one kind of images, fine-tuned on shares of the labels."""
    bare = kind == "people"  # without any labels a network can compare people, but not name classes
    what = "identities" if bare else "images of each class"
    least, shares = SHARES[kind][0], sorted({share for _, share in tuned})
    before = {start: runs.get(f"{kind}.pre-{start}", []) if bare else [] for start in (*STARTS, *ALIGNMENTS)}
    scores = {pair: score(results, METRICS[kind][0]) for pair, results in tuned.items()}

    def figures(start: str, share: int) -> str:
        return cell(tuned.get((start, share), []) if share else before[start], *METRICS[kind])

    columns = {**({0: "before fine-tuning"} if bare else {}), **{share: f"{share} % of {what}" for share in shares}}
    yield f"## {KINDS[kind][0].upper() + KINDS[kind][1:]}"
    yield what_was_run(kind, runs, tuned, shares)
    yield f"Cells: {CELLS[kind]} in percent; mean over seeds, ± the standard deviation where there are several."
    yield Table(columns, STARTS, figures, "start")
    if teacher := runs.get(f"{kind}.teacher"):
        yield f"The teacher, trained on all labels: {cell(teacher, *METRICS[kind])}."
    yield slower(least, scores, before["svd+pts"])
    aligned = {align: label for align, label in ALIGNMENTS.items() if (align, least) in tuned}
    if len(aligned) > 1:
        yield Table({share: columns[share] for share in (0, least) if share in columns}, aligned, figures, "alignment")
        best = max(aligned, key=lambda align: scores[align, least])
        if "svd+pts" in aligned and best != "svd+pts":
            ahead = scores[best, least] - scores["svd+pts", least]
            seeds = min(len(tuned[align, least]) for align in (best, "svd+pts"))
            yield (
                f"Unlike published, {ALIGNMENTS[best]} is better than SVD+PTS, by {ahead:.1f} points over {seeds} "
                f"seed{'s' * (seeds > 1)}."
            )


def what_was_run(kind: str, runs: Runs, tuned: dict[tuple[str, int], list[Result]], shares: list[int]) -> str:
    """Data, students, pre-training and fine-tuning, as text."""
    result, names = next(iter(tuned.values()))[0], [f"{kind}.pre-{align}" for align in ALIGNMENTS]
    taught = next((runs[name][0] for name in names if name in runs), result)
    by = taught["training"].get("teacher")
    lengths = {share: found[0]["training"]["epochs"] for (_, share), found in tuned.items()}
    return (
        f"Data set: {result['dataset']['name']} ({counts(result)}), images of {size(result)}. **Not comparable with "
        f"published figures.** Students: {result['cost']['parameters']:,} parameters. Pre-training: {how(taught)}, "
        f"{taught['training'].get('crops', 0)} stored crops of each image"
        + (f", with the teacher {by}, trained on all labels" if by else "")
        + f". Fine-tuning: recipe `{result['training']['recipe']}` on a share of the labels, "
        + f"{', '.join(f'{lengths[share]:g} epochs with {share} %' for share in shares)}."
    )


def slower(least: int, scores: dict[tuple[str, int], float], starts: list[Result]) -> str | None:
    """Fine-tuning at a tenth of the learning rate, and whether the recipe's own rate makes KDEP's student worse."""
    backbones = {"svd+pts": "KDEP's backbone", "supervised": "the supervised backbone"}
    slow = {name: scores.get((f"{start}-slow", least)) for start, name in backbones.items()}
    found = " and ".join(f"{name} {value:.1f}" for name, value in slow.items() if value is not None)
    if not found:
        return None
    said = f"Fine-tuned with {least} % of the labels at a tenth of the learning rate: {found}."
    tuned = scores.get(("svd+pts", least))
    if starts and tuned is not None and score(starts) > tuned:
        said += (
            f" At the recipe's learning rate, fine-tuning on so few labels makes KDEP's student worse (from "
            f"{score(starts):.1f} to {tuned:.1f}): it forgets what the teacher taught about all people."
        )
    return said


def plot(runs: Runs, scale: Scale) -> Plot:
    """Accuracy against the share of the labels, one line per start."""
    panels = []
    for kind, title in KINDS.items():
        metric, lines = METRICS[kind][0], []
        for start, label in STARTS.items():
            found = {share: runs.get(f"{kind}.{start}-{share}") for share in SHARES[kind]}
            line = [(share, score(results, metric)) for share, results in found.items() if results]
            lines += [Series(line, label.replace("*", ""), {"marker": "o"})] if line else []
        axes = {"xscale": "log", "xlabel": "share of the labels, %", "title": title}
        axes["ylabel"] = "mAP, %" if kind == "people" else "top-1, %"
        panels += [Panel(lines, axes, {share: str(share) for share in SHARES[kind]})] if lines else []
    return Plot(panels, (5.5 * len(panels), 4))


BENCHMARK = Experiment("kdep", __doc__, "KDEP on real images", rows, page, plot, SCALES, options=OPTIONS)
