"""What the proofs share: runs by name, each a resumable process, as many at a time as there are workers."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

HERE = Path(__file__).parent


def proof_parser(script: str, description: str, scales: Iterable[str], seeds: Iterable[int]) -> argparse.ArgumentParser:
    """The options of every proof; `script` is the name of its file and of its results' folder."""
    parser = argparse.ArgumentParser(
        prog=script, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", help="the data set, in Market-1501's layout")
    parser.add_argument("--dataset-name", default="market1501_tr751", help="what the tables call it")
    parser.add_argument("--scale", choices=list(scales), default="small")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(seeds), help="the first for all runs, first")
    parser.add_argument("--work", type=Path, help="checkpoints; by default runs/ and the name of the results' folder")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="runs at a time")
    parser.add_argument("--one", help="run this one in this process (what the workers do)")
    parser.add_argument("--render", action="store_true", help="only write table and plot")
    return parser


def parse(parser: argparse.ArgumentParser, *carried: str) -> argparse.Namespace:
    """The options, with `results`, a folder per scale: runs of the same name are not the same measurement.

    Args:
        carried: flags of the script's own that its workers need too.
    """
    options = parser.parse_args()
    options.carried = {flag: getattr(options, flag.strip("-").replace("-", "_")) for flag in carried}
    options.results = HERE / (parser.prog if options.scale == "small" else f"{parser.prog}-{options.scale}")
    options.work = options.work or Path("runs") / options.results.name
    if not options.render and not options.data_dir:
        parser.error("--data-dir is needed: a folder in Market-1501's layout")
    options.script = parser.prog
    return options


def is_measured(name: str, options: argparse.Namespace) -> bool:
    """Whether the figures of a run are kept."""
    return (options.results / name / "results.json").is_file()


def missing(names: Iterable[str], options: argparse.Namespace) -> list[str]:
    """Those of these runs of which nothing is in the work folder, each once: there others cannot start from them."""
    return [name for name in dict.fromkeys(names) if not (options.work / name / "results.json").is_file()]


def run_all(left: Mapping[str, list[str]], options: argparse.Namespace) -> None:
    """Run everything, as many at a time as there are workers, each as soon as what it needs is there."""
    left, running, done, failed = dict(left), {}, set(), []
    with ThreadPoolExecutor(options.workers) as pool:
        while left or running:
            ready = [name for name, needs in left.items() if done.issuperset(needs)]
            for name in ready[: options.workers - len(running)]:
                del left[name]
                running[pool.submit(spawn, name, options)] = name
            if not running:
                break  # what is left needs something that failed
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name = running.pop(future)
                (done.add if future.result() else failed.append)(name)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}; see the .log files in {options.work}, then run the same again")


def spawn(name: str, options: argparse.Namespace) -> bool:
    """Run one in a process with its share of the threads (or OMP_NUM_THREADS), its output in a log."""
    words = ["--data-dir", options.data_dir, "--dataset-name", options.dataset_name, "--scale", options.scale]
    words += [word for flag, value in options.carried.items() if value for word in (flag, value)]
    threads = str(max(1, os.cpu_count() // options.workers))
    options.work.mkdir(parents=True, exist_ok=True)
    print(f"{name}: started", flush=True)
    with (options.work / f"{name}.log").open("w") as log:
        script = os.path.relpath(HERE / f"{options.script}.py")
        command = [sys.executable, script, *words, "--work", str(options.work), "--one", name]
        environment = {"OMP_NUM_THREADS": threads, **os.environ}
        code = subprocess.run(command, stdout=log, stderr=log, env=environment).returncode
    measured = code == 0 and is_measured(name, options)
    metrics = json.loads((options.results / name / "results.json").read_text())["metrics"] if measured else {}
    print(f"{name}: {'FAILED' if code else metrics or 'done'}", flush=True)
    return code == 0


def keep(name: str, results: Path, options: argparse.Namespace) -> None:
    """Copy the results.json of a run beside this file."""
    folder = options.results / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(results.read_text())
