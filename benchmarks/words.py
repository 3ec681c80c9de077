"""Table cells and phrases of the benchmark pages, from results."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from render import Block

Result = dict[str, Any]  # the content of a results.json
Runs = dict[str, list[Result]]  # by name without seed, one result a seed
RETRIEVAL = "Cells: mAP / rank-1 in percent; mean over seeds, ± the standard deviation of mAP where there are several."
PROTOCOL = (
    "Training uses the training identities only. Each run is evaluated once on the test identities, at its end; "
    "nothing is selected"
)


def read_runs(folder: Path) -> Runs:
    """All results.json below a folder, in the order of their names, grouped over seeds."""
    runs: Runs = {}
    for path in sorted(folder.glob("*/results.json")):
        runs.setdefault(re.sub(r"-seed\d+$", "", path.parent.name), []).append(json.loads(path.read_text()))
    return runs


def by_arm(runs: Runs) -> dict[tuple[str, str], list[Result]]:
    """Runs by variant and arm, from names VARIANT.ARM."""
    return {(name.rpartition(".")[0], name.rpartition(".")[2]): results for name, results in runs.items()}


def points(results: Sequence[Result], metric: str) -> list[float]:
    """A metric in percent, one value per seed."""
    return [100 * result["metrics"][metric] for result in results]


def score(results: Sequence[Result], metric: str = "mAP") -> float:
    """The mean over seeds, in percent."""
    return mean(points(results, metric))


def spread(results: Sequence[Result], metric: str = "mAP") -> float:
    """The standard deviation over seeds, in percentage points; 0 for a single seed."""
    return stdev(points(results, metric)) if len(results) > 1 else 0.0


def with_spread(values: Sequence[float], form: str = ".1f") -> str:
    """Mean, ± the standard deviation where there are several values."""
    return f"{mean(values):{form}}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def cell(results: Sequence[Result], metric: str = "mAP", *more: str) -> str:
    """A metric with its deviation over seeds, and the means of further metrics, in percent; "-" without results."""
    if not results:
        return "-"
    return " / ".join([with_spread(points(results, metric)), *(f"{score(results, other):.1f}" for other in more)])


def retrieval(results: Sequence[Result]) -> str:
    """A cell with mAP / rank-1."""
    return cell(results, "mAP", "rank1")


def counts(result: Result) -> str:
    """Numbers of images and of identities or classes in each split."""
    said = []
    for split, part in result["dataset"]["data_dir_counts"].items():
        who = f"{part['identities']} ids" if "identities" in part else f"{part['classes']} classes"
        said.append(f"{split} {part['images']:,} images of {who}")
    return ", ".join(said)


def size(result: Result) -> str:
    """Height and width of the images."""
    return "x".join(map(str, result["cost"]["image_size"]))


def how(result: Result) -> str:
    """Epochs, recipe and changed values of a training."""
    training = result["training"]
    changes = {name: value for name, value in training.get("changes", {}).items() if not name.startswith("config.")}
    changed = ", ".join(f"{name.rpartition('.')[2]} {json.dumps(value)}" for name, value in changes.items())
    return f"{training['epochs']:g} epochs of the recipe `{training['recipe']}`" + (f" ({changed})" if changed else "")


def data_set(result: Result, differs: str) -> str:
    """Data set, why published figures do not compare (`differs`), and the evaluation protocol."""
    return (
        f"Data set: {result['dataset']['name']} ({counts(result)}). **Not comparable with published figures** on "
        f"Market-1501: another split, {differs}, images of {size(result)}. {PROTOCOL}."
    )


def command(result: Result) -> str:
    """The command that measured a result, as called today: each benchmark used to be a script of its own."""
    return re.sub(r"^(?:benchmarks/)?(?!run\.py)(\w+)\.py\b", r"benchmarks/run.py \1", result["command"])


def how_run(runs: Runs, result: Result, said: str | None = None) -> Iterator[Block]:
    """The last section of a page: every command, and the precision and device of a result."""
    yield "## Commands"
    yield said
    yield list(dict.fromkeys(f"`{command(found)}`" for results in runs.values() for found in results))
    yield f"Measured in {result['training']['precision']} on {result['cost']['latency_device']}."
