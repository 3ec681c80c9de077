"""`results.json`: one evaluation with everything that is needed to read it and to run it again."""

import json
import math
import platform
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from reid_hub.errors import MissingError, ReIDError
from reid_hub.evaluation.metrics import RetrievalResults
from reid_hub.files import atomic_file
from reid_hub.registry import lookup

METRICS = ("mAP", "rank1", "rank5", "rank10", "mINP")
# What results of a "task" other than retrieval hold: accuracies of the last epoch, and what the best was and when.
CLASSIFICATION_METRICS = ("top1", "top5", "top1_best", "best_epoch")
TASKS = {"retrieval": METRICS, "classification": CLASSIFICATION_METRICS, "pretraining": ()}
SCHEMA: dict[str, tuple[str, ...] | type] = {
    "model": str,
    "dataset": ("name", "split", "data_dir_counts"),
    "protocol": (),
    "metrics": (),
    "cost": ("parameters", "macs", "latency_ms"),
    "training": ("method", "recipe", "epochs", "seed"),
    "command": str,
    "versions": ("python", "torch", "transformers", "reid_hub"),
}
LIBRARIES = ("torch", "transformers")

# An absolute path ("/", "~/", "C:\", "file:///") at the start of an argument or behind a separator, as far as the next
# separator; "https://..." is none.
_ABSOLUTE_PATH = re.compile(
    r"""(?:(?<=^)|(?<=[=,;:@\s"'(\[{]))(?:file://)?(?:~[^/\\\s]*|[A-Za-z]:)?(?!(?<=:)//)[/\\][^,;:"')\]}]*"""
)


def build_results(
    *,
    model: str,
    dataset: Mapping[str, Any],
    results: RetrievalResults,
    cost: Mapping[str, Any],
    training: Mapping[str, Any],
    command: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Assemble the content of results.json.

    Args:
        model: name of the model, like "res50-s1.supervised".
        dataset: "name", "split" and "data_dir_counts" (what was really found in the data folder, per split).
        results: of `evaluate_model` or `evaluate_retrieval`; their protocol is kept whole.
        cost: of `measure_cost`.
        training: at least "method", "recipe", "epochs" and "seed"; None where it is not known (converted weights).
        command: the words of the command that was run; by default those of this process. Absolute paths are
            reduced to their last part, so that no machine's folders are published.

    Raises:
        ValueError: if a key is missing or a value is not what it must be.
    """
    counts = {name: getattr(results, name) for name in ("num_queries", "num_valid_queries", "num_gallery")}
    return _checked(
        {
            "model": model,
            "dataset": dict(dataset),
            "protocol": {**results.protocol, **counts},
            "metrics": {name: getattr(results, name) for name in METRICS},
            "cost": dict(cost),
            "training": dict(training),
        },
        command,
    )


def build_classification_results(
    *,
    model: str,
    dataset: Mapping[str, Any],
    metrics: Mapping[str, float],
    protocol: Mapping[str, Any],
    cost: Mapping[str, Any],
    training: Mapping[str, Any],
    command: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The same of a classifier: "task" is "classification", `metrics` are those of `CLASSIFICATION_METRICS`.

    Raises:
        ValueError: as `build_results`.
    """
    content = {"model": model, "task": "classification", "dataset": dict(dataset), "protocol": dict(protocol)}
    return _checked({**content, "metrics": dict(metrics), "cost": dict(cost), "training": dict(training)}, command)


def build_pretraining_results(
    *,
    model: str,
    dataset: Mapping[str, Any],
    cost: Mapping[str, Any],
    training: Mapping[str, Any],
    command: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The same of a trunk that nothing was measured with: "task" is "pretraining", without metrics and protocol.

    Raises:
        ValueError: as `build_results`.
    """
    content = {"model": model, "task": "pretraining", "dataset": dict(dataset), "protocol": {}, "metrics": {}}
    return _checked({**content, "cost": dict(cost), "training": dict(training)}, command)


def _checked(content: dict[str, Any], command: Sequence[str] | None) -> dict[str, Any]:
    content["command"] = public_command(sys.argv if command is None else command)
    content["versions"] = versions()
    check_results(content)
    return content


def write_results(path: str | Path, results: Mapping[str, Any]) -> Path:
    """Check results and write them as JSON, keys sorted, atomically; returns the path.

    Raises:
        ValueError: if they are not what `check_results` asks for, or hold what JSON cannot.
    """
    check_results(results)
    try:
        text = json.dumps(results, indent=2, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ReIDError(f"results must hold plain finite numbers, strings, lists and mappings: {error}") from error
    with atomic_file(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    return Path(path)


def read_results(path: str | Path) -> dict[str, Any]:
    """Read and check a results.json.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is not JSON or not what `check_results` asks for; the message names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingError(f"no results in {path}: write them with `reid-hub evaluate`")
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        check_results(results)
    except ValueError as error:
        raise ReIDError(f"{path}: {error}") from error
    return results


def check_results(results: Mapping[str, Any]) -> None:
    """Check against `SCHEMA`: every key present, metrics fractions in [0, 1], costs finite and not negative.

    Metrics are those of the "task", by default retrieval, which also says what a vector costs.

    Raises:
        ValueError: naming the key, what it must be and what it is.
    """
    if not isinstance(results, Mapping):
        raise ReIDError(f"results must be a mapping, got {type(results).__name__}; make them with build_results")
    metrics = lookup(TASKS, results.get("task", "retrieval"), "task")
    schema = {**SCHEMA, "metrics": metrics}
    if metrics is METRICS:
        schema["cost"] += ("bytes_per_vector",)
    for key, wanted in schema.items():
        if key not in results:
            raise ReIDError(f"results lack {key!r}: they need {', '.join(SCHEMA)}; make them with build_results")
        kind = wanted if isinstance(wanted, type) else Mapping
        if not isinstance(results[key], kind) or results[key] == "":
            raise ReIDError(f"{key!r} must be a non-empty {kind.__name__.lower()}, got {results[key]!r}")
        missing = [] if isinstance(wanted, type) else [name for name in wanted if name not in results[key]]
        if missing:
            raise ReIDError(f"{key!r} lacks {', '.join(missing)}: it needs {', '.join(wanted)}")
    for name in metrics:
        value = results["metrics"][name]
        # The only one that is none: it counts epochs.
        highest = math.inf if name == "best_epoch" else 1
        if not _is_number(value) or not 0 <= value <= highest:
            raise ReIDError(f"metric {name} must be a fraction between 0 and 1 (not percent), got {value!r}")
    for name in schema["cost"]:
        value = results["cost"][name]
        if not _is_number(value) or value < 0:
            raise ReIDError(f"cost {name} must be a finite number, at least 0, got {value!r}")


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that the numbers depend on."""
    from reid_hub import __version__

    return {
        "python": platform.python_version(),
        "reid_hub": __version__,
        **{name: version(name) for name in LIBRARIES},
    }


def public_command(words: Sequence[str]) -> str:
    """One shell line of a command's words, with every absolute path reduced to its last part.

    `["/home/me/bin/reid-hub", "evaluate", "--data-dir=/data/market"]` -> `reid-hub evaluate --data-dir=market`.
    """
    return shlex.join(_ABSOLUTE_PATH.sub(_last_part, word) for word in words)


def _last_part(match: re.Match) -> str:
    return re.split(r"[/\\]+", match.group().rstrip("/\\"))[-1]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
