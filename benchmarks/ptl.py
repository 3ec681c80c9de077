"""Progressive Transfer Learning: what its memory contributes, on real people and on CIFAR-10.

    python benchmarks/run.py ptl --data-dir DIR --cifar-dir DIR   # run all rows without results
    python benchmarks/run.py ptl --data-dir DIR --scale full      # published networks, sizes and epochs, for a GPU
    python benchmarks/run.py ptl --render                         # write page and plot, run nothing

The first folder holds a data set in Market-1501's layout, the second (optional) CIFAR-10. Each run is evaluated once on
the test identities, at its end.

The arms differ in the side network only: "memory" carries its state from batch to batch; "forgets" starts each batch
from zeros, as the released training script does from its second epoch; "plain" has as many weights but neither gates
nor memory; "none" is the backbone alone. "std" distills into the backbone from the arm with a side network that is best
with the first seed. At the small scale all networks start from random weights and use Adam, because the published SGD
learning rate is for pre-trained weights.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from statistics import mean

import stages
from experiment import CIFAR, Experiment, Options, Row, seeded
from render import Block, Panel, Plot, Series, Table
from words import RETRIEVAL, Result, Runs, by_arm, counts, how, how_run, points, retrieval, score, size, with_spread

# The cell beside the backbone in each arm, and whether it has a memory.
ARMS = {
    "memory": ("v1", True),
    "forgets": ("v1", False),
    "plain": ("plain", False),
    "none": ("none", False),
    "memory-v2": ("v2", True),
}
BESIDE = [arm for arm, (cell, _) in ARMS.items() if cell != "none"]
ON_CIFAR = ("none", "memory", "memory-v2", "forgets")
LAM, DENSENET = 0.8, "densenet-bc-100"
LABELS = {
    "none": "the backbone alone",
    "plain": "with a plain side network of as many weights, without gates or memory",
    "forgets": "with PTL's side network, forgetting before every batch (as released)",
    "memory": "**PTL**: with a memory from batch to batch",
    "memory-v2": "**PTL-v2**",
    "std": "**STD**: the backbone alone, distilled",
}
SHORT = {"none": "none", "plain": "plain", "forgets": "forgets", "memory": "PTL", "memory-v2": "PTL-v2", "std": "STD"}
# Pairs of arms that isolate the memory, the gates and the size of the side network.
QUESTIONS = (
    ("memory", "forgets", "memory (PTL against the same network that forgets)"),
    ("forgets", "plain", "gates instead of a plain convolution of as many weights"),
    ("plain", "none", "more weights beside the backbone"),
    ("memory", "none", "all of PTL beside the backbone"),
    ("std", "none", "distillation into the backbone"),
)


@dataclass(frozen=True)
class Scale:
    """Networks, sizes and epochs."""

    backbone: str
    image_size: tuple[int, int]
    epochs: int
    changes: dict
    init: str | None
    cifar_blocks: tuple[int, int, int]
    cifar_keep: float
    cifar_epochs: int
    arguments: dict


_ADAM = {"optimizer": "adam", "optimizer_options": {}, "learning_rate": 1e-3}
SCALES = {
    "small": Scale("res18-x0.25", (128, 64), 15, _ADAM, None, (4, 4, 4), 0.1, 20, {}),
    "full": Scale("densenet161", (256, 128), 50, {}, "torchvision/densenet161", (16, 16, 16), 1.0, 300, {"bf16": True}),
}


def rows(options: Options) -> Iterator[Row]:
    """Every arm and the student distilled from the best one, on people; arms on CIFAR-10."""
    scale, work = SCALES[options.scale], options.work
    people = {"image_size": scale.image_size, "epochs": scale.epochs, "flip": True, "init": scale.init}
    cifar = {"recipe": "cifar", "keep": scale.cifar_keep}
    cifar |= {"epochs": scale.cifar_epochs, "evaluate_every": scale.cifar_epochs}

    def settings(name: str, arm: str, fields: dict) -> dict:
        return options.settings(name, origin=arm, arg=scale.arguments, **fields)

    for seed in options.seeds:
        for arm, side in ARMS.items():
            name, side = seeded(f"{scale.backbone}.{arm}", seed), stages.side_network(scale.backbone, *side)
            fields = {"recipe": "ptl", **people, **side, "set": {**scale.changes, **side["set"]}}
            after = [partial(stages.compare_states, work / name, options.settings(name))]
            train = partial(stages.run, "train", **settings(name, arm, fields))
            yield options.row(name, train, *(after if arm.startswith("memory") else ()))
        name, teachers = seeded(f"{scale.backbone}.std", seed), [f"{scale.backbone}.{arm}" for arm in BESIDE]
        student = stages.side_network(scale.backbone, *ARMS["none"])["model"]
        fields = {"recipe": "std", **people, "model": student, "set": scale.changes, "lam": [LAM]}
        distill = partial(stages.distill_best, [work / name for name in teachers], **settings(name, "std", fields))
        yield options.row(name, distill, needs=teachers)
        for arm in ON_CIFAR if options.own["cifar_dir"] else ():
            name, side = seeded(f"cifar10.{arm}", seed), stages.side_network(DENSENET, *ARMS[arm], scale.cifar_blocks)
            yield options.row(name, partial(stages.run, "classify", **settings(name, arm, {**cifar, **side})))


def page(runs: Runs, scale: Scale) -> Iterator[Block]:
    """Answer, people, CIFAR-10, and commands."""
    people, cifar = on(runs, "people"), on(runs, "cifar10")
    first = result = next(iter(people.values()))[0]
    schedule = stages.recipe(result["training"]["recipe"]).schedule
    fall = schedule.milestones[0] / schedule.epochs * result["training"]["epochs"]
    yield answer(people)
    yield (
        f"Data set: {result['dataset']['name']} ({counts(result)}). **Not comparable with published figures** on "
        "Market-1501: another split, random initial weights, a narrow backbone, fewer epochs, images of "
        f"{size(result)}. Every arm: {how(result)}. The learning rate falls to a tenth after every {fall:g} epochs, in "
        f"proportion to the published schedule, so most learning happens in the first {2 * fall:g}. Training uses the "
        "training identities only. Each run is evaluated once on the test identities, at its end; as in the paper, "
        "STD's teacher is the arm with the best result there."
    )
    yield RETRIEVAL
    yield table(people, {"parameters": "parameters in use", "figures": "mAP / rank-1"}, retrieval)
    yield from contributions(people, "mAP", "mAP")
    if cifar:
        result = next(iter(cifar.values()))[0]
        training, images = result["training"], result["dataset"]["data_dir_counts"]["train"]["images"]
        blocks = "+".join(map(str, training["changes"]["config.backbone_config"]["blocks"]))
        yield "## CIFAR-10"
        yield (
            f"DenseNet-BC of growth 12 with {blocks} layers, {training['keep']:g} of the {images:,} training images "
            f"(recompressed as JPEG), {how(result)}, with flip and crop. **Not comparable with published figures.** "
            "Cells: error of the last epoch in percent. As in the paper, networks with a side network have two linear "
            "layers as classifier, the others one."
        )
        columns = {"parameters": "parameters", "figures": "error"}
        yield table(cifar, columns, lambda found: with_spread([100 - value for value in points(found, "top1")]))
        yield from contributions(cifar, "top1", "accuracy")
    yield "![mAP of every arm](accuracy.png)"
    call = "python benchmarks/run.py ptl --data-dir DIR --cifar-dir DIR"
    yield from how_run(runs, first, f"All rows: `{call}`; at full size: `{call} --scale full`. Row by row:")


def on(runs: Runs, kind: str) -> Runs:
    """Runs on people or on CIFAR-10, by arm."""
    return {arm: found for (name, arm), found in by_arm(runs).items() if (name == "cifar10") == (kind == "cifar10")}


def table(arms: Runs, columns: dict[str, str], figures) -> Table:
    """Table of the parameters and figures of every arm."""

    def cell(arm: str, column: str) -> str:
        return f"{arms[arm][0]['cost']['parameters']:,}" if column == "parameters" else figures(arms[arm])

    return Table(columns, {arm: label for arm, label in LABELS.items() if arm in arms}, cell)


def answer(people: Runs) -> str | None:
    """Whether the memory helps, and the gain of distillation into the backbone."""
    found = gained(people, "memory", "forgets", "mAP")
    if not found:
        return None
    helps = "helps" if min(found) > 0 else "does not help" if max(found) <= 0 else "helps with some seeds only"
    said = f"**PTL's memory {helps} here**: it changes mAP by {mean(found):+.1f} points."
    if distilled := gained(people, "std", "none", "mAP"):
        said += f" Distillation of a side network into the backbone (STD) changes it by {mean(distilled):+.1f}."
    return said


def contributions(arms: Runs, metric: str, unit: str) -> Iterator[Block]:
    """The contribution of each ingredient, from pairs of runs of one seed, and the use of the memory."""
    gains = {(one, other): gained(arms, one, other, metric) for one, other, _ in QUESTIONS}
    if not any(gains.values()):
        return
    yield f"Contributions in points of {unit}, between runs of the same seed:"
    items = [
        f"{question}: **{with_spread(found, '+.1f')}** ({len(found)} seed{'s' * (len(found) > 1)})"
        for one, other, question in QUESTIONS
        if (found := gains[one, other])
    ]
    taught = next((result["training"].get("taught_by") for result in arms.get("std", [])), None)
    yield items + ([f"teacher of STD: {taught.rpartition('.')[2]}"] if taught else [])
    for arm in ("memory", "memory-v2"):
        for result in arms.get(arm, []):
            yield use_of_memory(arm, result)


def gained(arms: Runs, one: str, other: str, metric: str) -> list[float]:
    """Differences in percentage points between runs of the same seed."""
    found = [{r["training"]["seed"]: r["metrics"][metric] for r in arms.get(arm, [])} for arm in (one, other)]
    after, before = found
    return [100 * (after[seed] - before[seed]) for seed in sorted(before.keys() & after.keys())]


def use_of_memory(arm: str, result: Result) -> str | None:
    """Whether a trained network uses the state of the previous batch."""
    losses = result["training"].get("loss_from_state")
    if not losses:
        return None
    little = abs(losses["carried"] / losses["zeros"] - 1) < 0.02
    return (
        f"The trained {SHORT[arm]} has a cross-entropy on training images of {losses['carried']:.3f} with the state of "
        f"the previous batch, and of {losses['zeros']:.3f} from zeros, as at inference"
        + (": it hardly uses that state, which comes from other people." if little else ".")
    )


def plot(runs: Runs, scale: Scale) -> Plot:
    """mAP of every arm, with a dot for each seed."""
    people = on(runs, "people")
    arms = [arm for arm in LABELS if arm in people]
    bars = Series([(x, score(people[arm])) for x, arm in enumerate(arms)], bars=True, style={"alpha": 0.6})
    dots = [(x, value) for x, arm in enumerate(arms) for value in points(people[arm], "mAP")]
    axes = {"ylabel": "mAP, %", "title": "One backbone, the same epochs, another side network"}
    ticks = {x: SHORT[arm] for x, arm in enumerate(arms)}
    series = [bars, Series(dots, style={"linestyle": "none", "marker": ".", "color": "k"})]
    return Plot([Panel(series, axes, ticks)], (7, 4))


TITLE = "Progressive Transfer Learning on real images"
BENCHMARK = Experiment("ptl", __doc__, TITLE, rows, page, plot, SCALES, options=CIFAR)
