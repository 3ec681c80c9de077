"""What the tables of the proofs share: cells, counts and words of results.json files."""

import json
import textwrap
from statistics import mean, stdev


def mean_map(results: list[dict]) -> float:
    """Mean mAP over seeds, as a fraction."""
    return mean(result["metrics"]["mAP"] for result in results)


def cell(results: list[dict]) -> str:
    """mAP, with its deviation over several seeds, and rank-1, in percent."""
    if not results:
        return "-"
    spread = f" ± {100 * stdev(r['metrics']['mAP'] for r in results):.1f}" if len(results) > 1 else ""
    return f"{100 * mean_map(results):.1f}{spread} / {100 * mean(r['metrics']['rank1'] for r in results):.1f}"


def counts(result: dict) -> str:
    """Images and identities, or classes, of each split."""
    said = []
    for split, part in result["dataset"]["data_dir_counts"].items():
        who = f"{part['identities']} ids" if "identities" in part else f"{part['classes']} classes"
        said.append(f"{split} {part['images']:,} images of {who}")
    return ", ".join(said)


def size(result: dict) -> str:
    """Height and width of the pictures."""
    return "x".join(map(str, result["cost"]["image_size"]))


def how(result: dict) -> str:
    """Epochs and recipe of a training, and what was changed in it."""
    training = result["training"]
    changes = {name: value for name, value in training.get("changes", {}).items() if not name.startswith("config.")}
    changed = ", ".join(f"{name.rpartition('.')[2]} {json.dumps(value)}" for name, value in changes.items())
    return f"{training['epochs']:g} epochs of the recipe `{training['recipe']}`" + (f" ({changed})" if changed else "")


def wrapped(text: str) -> list[str]:
    """A paragraph as lines."""
    return textwrap.wrap(text, 120, break_on_hyphens=False)
