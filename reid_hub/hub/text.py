"""Format values for model cards."""

from collections.abc import Mapping
from typing import Any

LABELS = {
    "macs": "MACs per image", "attention_macs": "MACs of attention", "latency_ms": "Latency, one image",
    "data_dir_counts": "Data found", "rerank": "Re-ranked", "flip": "Flip-averaged",
}  # fmt: skip
STEP = ("method", "recipe", "epochs", "dataset", "init", "teachers", "teachers_saw")  # of a lineage, in this order


def table(values: Mapping[str, Any]) -> dict[str, str]:
    """Rows of a table, without unknown (None) and empty values."""
    known = {name: value for name, value in values.items() if value not in (None, {}, [])}
    return {LABELS.get(name, name.replace("_", " ").capitalize()): text(name, value) for name, value in known.items()}


def step_text(step: Mapping[str, Any]) -> str:
    """One step of a lineage, on one line."""
    rows = table({name: step[name] for name in STEP if name in step})
    return ", ".join(f"{name.lower()} {value}" for name, value in rows.items())


def text(name: str, value: Any) -> str:
    """Format a value; `name` determines the unit."""
    if isinstance(value, Mapping):
        nested = any(isinstance(item, Mapping) for item in value.values())
        rows = [(key.replace("_", " "), text(key, item)) for key, item in value.items() if item is not None]
        return "; ".join(f"{key}: {row}" for key, row in rows) if nested else ", ".join(f"{k} {row}" for k, row in rows)
    if isinstance(value, (list, tuple)):
        return ", ".join(text(name, item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name.endswith("macs"):
        return f"{value / 1e9:.3f} G"
    if name == "latency_ms":
        return f"{value:.2f} ms"
    if isinstance(value, int) and name != "seed":
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).replace("|", "\\|").replace("\n", " ")
