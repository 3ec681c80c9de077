"""What the tables of the proofs share: cells and counts of results.json files."""

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
    """Images and identities of each split."""
    parts = result["dataset"]["data_dir_counts"]
    return ", ".join(f"{split} {part['images']:,} images of {part['identities']} ids" for split, part in parts.items())
