"""Embedding Compression on real people: mAP against bytes per vector, every reduction with and without int8.

    python benchmarks/run.py compression --model MODEL --data-dir DIR   # run all rows without results
    python benchmarks/run.py compression --render                       # write page and plot, run nothing

MODEL is the folder of a training run, with its checkpoint and classifier; DIR holds a data set in Market-1501's layout.
Every reduction continues from MODEL for the same number of epochs of one recipe. So does the embedding at full length
("slice" of all dimensions), the reference. As published, pruning retrains for 0.2 of the epochs from size to size. The
controls are not trained. Each run is evaluated once on the test identities, at its end.
"""

import re
from collections.abc import Iterator, Sequence
from functools import partial

import stages
from experiment import Experiment, Options, Row, seeded
from render import Block, Panel, Plot, Series, Table
from words import PROTOCOL, RETRIEVAL, Result, Runs, counts, how_run, retrieval, score, size

CODES = ("float16", "int8", "binary", "binary+int8", "binary+float16", "binary+float32")
HEADS = {
    "slice": "slice",
    "low_rank": "low rank",
    "prune": "pruned",
    "matryoshka": "Matryoshka (control)",
    "pca": "PCA (control, not trained)",
    "random": "random projection (control, not trained)",
    "none": "the model itself",
}
PUBLISHED = (768, 576, 384, 192, 64, 32)  # embedding lengths; the first is the full one
FAITHFUL = 96  # compression ratio: float32 of all dimensions against int8 of 1/24 of them
NAME = re.compile(r"(?P<model>.+)\.(?P<head>[a-z_]+)-(?P<dim>\d+)(?P<int8>-int8)?$")
OPTIONS = {
    "--model": {"help": "folder of the trained model"},
    "--epochs": {"type": float, "default": 3, "help": "number of epochs of each training (default: 3)"},
    "--heads": {
        "nargs": "+",
        "choices": list(HEADS),
        "default": list(HEADS),
        "help": "run only these reductions (default: all)",
    },
}
Sizes = dict[tuple[str, bool, int], list[Result]]  # by reduction, whether int8, and length


def rows(options: Options) -> Iterator[Row]:
    """Reductions by size, most wanted first; then the model itself with its gallery stored in codes."""
    model = options.own["model"]
    variant, full = stages.describe(model)
    for seed in options.seeds:
        for head, int8, dims in heads(full):
            if head in options.own["heads"]:
                yield compressed(options, f"{variant}.{head}", full, int8, dims, seed)
    for codec in CODES:
        name = f"{variant}.{codec}"
        call = partial(stages.evaluate_codec, model, codec, options.settings(name), name, options.work / name)
        yield options.row(name, call)


def heads(full: int) -> list[tuple[str, bool, list[int]]]:
    """Reduction, whether int8, and sizes of each call."""
    sizes = [round(full * size / PUBLISHED[0]) for size in PUBLISHED[1:]]
    pairs = [(head, int8) for head in ("none", "pca", "random") for int8 in (False, True)]
    found = [(head, int8, [] if head == "none" else sizes) for head, int8 in pairs]
    found += [("slice", False, [full])]
    trained = [(head, int8) for int8 in (True, False) for head in ("low_rank", "slice")]
    found += [(head, int8, [sizes[-1]]) for head, int8 in trained]
    found += [(head, int8, sizes) for int8 in (False, True) for head in ("prune", "matryoshka")]
    found += [("slice", True, [full])]
    return found + [(head, int8, [size]) for size in (sizes[2], sizes[3], *sizes[:2]) for head, int8 in trained]


def compressed(options: Options, name: str, full: int, int8: bool, dims: list[int], seed: int) -> Row:
    """A row with one reduction and precision, at one or several sizes."""
    head, kind, work = name.rpartition(".")[2], "-int8" if int8 else "", options.work / f"seed{seed}"
    fields = {"model": options.own["model"], "head": head, "dim": dims, "int8": int8, "out": work}
    fields |= {"recipe": "compress-bot", "epochs": options.own["epochs"]}
    call = partial(stages.run, "compress", **options.settings(seeded(name, seed), **fields))
    # Matryoshka trains at full length, and pruning in int8 starts there.
    whole = [full] if head in ("none", "matryoshka") or (head == "prune" and int8) else []
    makes = {seeded(f"{name}-{dim}{kind}", seed): work / f"{head}-{dim}{kind}" for dim in [*whole, *dims]}
    label = f"{name}-{dims[0]}{kind}" if len(dims) == 1 else f"{name}{kind}"
    return options.row(seeded(label, seed), call, makes=makes)


def page(runs: Runs, scale: None) -> Iterator[Block]:
    """The paper's claim, reductions by length, codes, and commands."""
    sizes, codes = sorted_out(runs)
    full = max(dim for *_, dim in sizes)
    base = sizes["none", False, full][0]
    trained = next(found[0] for (head, *_), found in sizes.items() if head in ("slice", "low_rank"))
    yield claim(sizes, full)
    yield (
        f"Data set: {base['dataset']['name']} ({counts(base)}), **not comparable with published figures** on "
        f"Market-1501. Model: {base['training']['init']}, {base['cost']['parameters']:,} parameters, embedding of "
        f"{full}, images of {size(base)}. Trained reductions continue from it for "
        f"{trained['training']['epochs']:g} epochs of the recipe `{trained['training']['recipe']}` (pruning: 0.2 "
        f"of them from size to size, in int8 after all of them at full length). {PROTOCOL}."
    )
    yield RETRIEVAL.replace("percent;", "percent, after quantisation;")
    measured_heads = {(head, int8) for head, int8, _ in sizes}
    yield Table(
        {dim: str(dim) for dim in sorted({dim for *_, dim in sizes}, reverse=True)},
        {
            (head, int8): f"{label} | {'int8' if int8 else 'float32'}"
            for head, label in HEADS.items()
            for int8 in (False, True)
            if (head, int8) in measured_heads
        },
        lambda row, dim: retrieval(sizes.get((*row, dim), [])),
        "reduction | precision",
    )
    if codes:
        yield "The model itself with its gallery stored in codes, without training:"
        yield code_table(codes)
    yield "![mAP against bytes per vector](accuracy.png)"
    yield from how_run(runs, trained)


def sorted_out(runs: Runs) -> tuple[Sizes, list[Result]]:
    """Results of reductions, and results of codes."""
    found = {name: NAME.match(name) for name in runs}
    sizes = {(m["head"], bool(m["int8"]), int(m["dim"])): runs[name] for name, m in found.items() if m}
    return sizes, [result for name, m in found.items() if not m for result in runs[name]]


def claim(sizes: Sizes, full: int) -> str | None:
    """The paper's claim for this model: 96 times smaller, at most 4 points of mAP lost."""
    small = {
        (head, dim): score(results)
        for (head, int8, dim), results in sizes.items()
        if int8 and 4 * full / dim >= FAITHFUL and head in ("slice", "low_rank", "prune")
    }
    if ("slice", False, full) not in sizes or not small:
        return None
    reference, untrained = score(sizes["slice", False, full]), score(sizes["none", False, full])
    (head, dim), best = max(small.items(), key=lambda item: item[1])
    verdict = "**confirmed**" if reference - best <= 4 else "**refuted**"
    control = sizes.get(("pca", True, dim))
    return (
        f'The paper\'s claim "96x smaller, about 4 % lost" is {verdict} for this model: {HEADS[head]} at {dim} bytes '
        f"({4 * full / dim:.1f}x smaller) scores {best:.1f} mAP, {reference - best:.1f} points below the full float32 "
        f"embedding trained for the same epochs ({reference:.1f}) and {untrained - best:.1f} below the model it starts "
        "from." + (f" PCA, which needs no training, scores {score(control):.1f} at that size." if control else "")
    )


def code_table(codes: Sequence[Result]) -> Table:
    """Size, accuracy and search time of a gallery in each codec, largest first."""
    found = {result["protocol"]["codec"]: result for result in codes}

    def cell(codec: str, column: str) -> str:
        cost = found[codec]["cost"]
        return retrieval([found[codec]]) if column == "figures" else str(cost[column])

    columns = {"bytes_per_vector": "bytes per vector", "figures": "mAP / rank-1", "search_ms": "ms per query"}
    order = sorted(found, key=lambda codec: -found[codec]["cost"]["bytes_per_vector"])
    return Table(columns, {codec: codec for codec in order}, cell, "codec")


def plot(runs: Runs, scale: None) -> Plot:
    """mAP against bytes per vector, one line per reduction and precision."""
    sizes, codes = sorted_out(runs)
    series = []
    for number, (head, label) in enumerate(HEADS.items()):
        for int8 in (False, True):
            found = [results for (name, quantised, _), results in sizes.items() if (name, quantised) == (head, int8)]
            line = sorted((results[0]["cost"]["bytes_per_vector"], score(results)) for results in found)
            style = {"marker": "s" if int8 else "o", "linestyle": "--" if int8 else "-", "color": f"C{number}", "ms": 4}
            series += [Series(line, label + (", int8" if int8 else ""), style)] if line else []
    stars = [(result["cost"]["bytes_per_vector"], score([result])) for result in codes]
    texts = [result["protocol"]["codec"] for result in codes]
    style = {"marker": "*", "color": "k", "linestyle": "none"}
    series += [Series(stars, style=style, texts=texts)] if stars else []
    axes = {"xscale": "log", "xlabel": "bytes per vector", "ylabel": "mAP, %"}
    return Plot([Panel(series, {**axes, "title": "Accuracy against storage"})], (8, 5))


BENCHMARK = Experiment(
    "compression", __doc__, "Compressed embeddings on real people", rows, page, plot, {"small": None}, seeds=(0,),
    options=OPTIONS, required=("data_dir", "model"),
)  # fmt: skip
