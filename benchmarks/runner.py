"""One runner for all benchmarks of trainings: each row is a process that resumes; several run at a time."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from fnmatch import fnmatchcase
from pathlib import Path

from experiment import Experiment, Options, Row
from render import draw, page
from words import read_runs

HERE = Path(__file__).parent


def run_experiment(experiment: Experiment, words: Sequence[str]) -> None:
    """Run the rows without results, then render the page.

    Raises:
        SystemExit: if rows failed, with their names.
    """
    parser = _parser(experiment)
    given = parser.parse_args(words)
    options = _options(experiment, given)
    missing = [name for name in experiment.required if not getattr(given, name)]
    if missing and not given.render:
        parser.error(f"--{missing[0].replace('_', '-')} is needed")
    if given.one:
        return execute(_find(experiment, options, given.one), options)
    if not given.render:
        run_all(plan(experiment.rows(options), options, given.only), options, [experiment.name, *words], given.workers)
    render(experiment, options.out, options.scale)


def _parser(experiment: Experiment) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"run.py {experiment.name}",
        description=experiment.about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data-dir", help="data set in Market-1501's layout")
    parser.add_argument("--dataset-name", default="market1501_tr751", help="name of the data set on the page")
    parser.add_argument("--scale", choices=list(experiment.scales), default="small")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=experiment.seeds, help="seeds; all rows of the first run first"
    )
    parser.add_argument(
        "--only", nargs="+", metavar="PATTERN", default=["*"], help="run only these rows, such as '*.oskt'"
    )
    parser.add_argument(
        "--work", type=Path, help="folder of the checkpoints (default: runs/NAME, with the name of --out)"
    )
    parser.add_argument("--out", type=Path, help="folder of page and results (default: the benchmark's folder)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="number of rows to run at a time")
    parser.add_argument("--one", metavar="ROW", help="run this row in this process, as workers do")
    parser.add_argument("--render", action="store_true", help="write page and plot, run nothing")
    for flag, fields in experiment.options.items():
        parser.add_argument(flag, **fields)
    return parser


def _options(experiment: Experiment, given: argparse.Namespace) -> Options:
    # One folder per scale: rows of the same name are different measurements.
    out = given.out or HERE / (experiment.name + (f"-{given.scale}" if given.scale != "small" else ""))
    names = [flag.strip("-").replace("-", "_") for flag in experiment.options]
    return Options(
        work=given.work or Path("runs") / out.name,
        out=out,
        data_dir=given.data_dir,
        dataset_name=given.dataset_name,
        scale=given.scale,
        seeds=given.seeds,
        own={name: getattr(given, name) for name in names},
    )


def _find(experiment: Experiment, options: Options, name: str) -> Row:
    rows = {row.name: row for row in experiment.rows(options)}
    if name not in rows:
        raise SystemExit(f"{experiment.name} has no row {name!r}, only {', '.join(rows)}")
    return rows[name]


def plan(rows: Iterable[Row], options: Options, only: Sequence[str] = ("*",)) -> dict[str, list[str]]:
    """The rows left to run, with the planned rows that each needs; most wanted first, each after those that it needs.

    A needed row must be in the work folder, even if its results are kept from an earlier session.
    """
    rows = {row.name: row for row in rows}
    ordered: dict[str, list[str]] = {}

    def put(name: str) -> None:
        needs = [need for need in rows[name].needs if need in ordered or not _is_there(rows[need])]
        for need in needs:
            if need not in ordered:
                put(need)
        ordered.setdefault(name, needs)

    for row in rows.values():
        asked = row.wanted and any(fnmatchcase(row.name, pattern) for pattern in only)
        if asked and not is_measured(row, options):
            put(row.name)
    return ordered


def _is_there(row: Row) -> bool:
    return (row.folder / "results.json").is_file()


def is_measured(row: Row, options: Options) -> bool:
    """Whether all results of a row are kept beside the page."""
    return all((options.out / name / "results.json").is_file() for name in row.results)


def execute(row: Row, options: Options) -> None:
    """Run the stages of a row, resuming where they were interrupted, and copy its results beside the page."""
    for stage in row.stages:
        stage()
    for name, folder in row.results.items():
        kept = options.out / name / "results.json"
        kept.parent.mkdir(parents=True, exist_ok=True)
        begun = kept.with_suffix(".tmp")  # not reid_hub.files: the runner does not import torch
        begun.write_bytes((folder / "results.json").read_bytes())
        begun.replace(kept)


def run_all(left: Mapping[str, Sequence[str]], options: Options, words: Sequence[str], workers: int) -> None:
    """Run all rows of a plan on a number of workers, each row as soon as the rows that it needs are done.

    Raises:
        SystemExit: if rows failed, with their names and those of the rows that need them.
    """
    left, running, done, failed = dict(left), {}, set(), []
    wanted = set(left)
    with ThreadPoolExecutor(workers) as pool:
        while left or running:
            ready = [name for name, needs in left.items() if done.issuperset(needs)]
            for name in ready[: workers - len(running)]:
                del left[name]
                running[pool.submit(_spawn, name, options, words, workers)] = name
            if not running:
                break  # the rest needs rows that failed
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name = running.pop(future)
                (done.add if future.result() else failed.append)(name)
    if failed:
        waiting = f"; not started without them: {', '.join(left)}" if left else ""
        raise SystemExit(
            f"failed: {', '.join(failed)}{waiting}; {len(done)} of {len(wanted)} done. See the .log files in "
            f"{options.work}, then repeat the command"
        )


def _spawn(name: str, options: Options, words: Sequence[str], workers: int) -> bool:
    """Run one row in a process with its share of the threads (or OMP_NUM_THREADS); its output goes to a log."""
    options.work.mkdir(parents=True, exist_ok=True)
    print(f"{name}: started", flush=True)
    command = [sys.executable, os.path.relpath(HERE / "run.py"), *words, "--one", name]
    environment = {"OMP_NUM_THREADS": str(max(1, os.cpu_count() // workers)), **os.environ}
    with (options.work / f"{name}.log").open("w") as log:
        code = subprocess.run(command, stdout=log, stderr=log, env=environment).returncode
    kept = options.out / name / "results.json"
    metrics = json.loads(kept.read_text())["metrics"] if code == 0 and kept.is_file() else {}
    print(f"{name}: {'FAILED' if code else metrics or 'done'}", flush=True)
    return code == 0


def render(experiment: Experiment, results: Path, scale: str = "small", out: Path | None = None) -> None:
    """Write README.md and accuracy.png from the results in a folder, into `out` (default: the same folder).

    Raises:
        SystemExit: if there are no results.
    """
    runs, out = read_runs(results), out or results
    if not runs:
        raise SystemExit(f"nothing measured in {results} yet")
    draw(experiment.plot(runs, experiment.scales[scale]), out / "accuracy.png")
    (out / "README.md").write_text(page(experiment.blocks(runs, scale)), encoding="utf-8")
    print(f"{out / 'README.md'}, {out / 'accuracy.png'}")
