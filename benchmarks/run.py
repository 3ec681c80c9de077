"""Run or render a benchmark.

    python benchmarks/run.py NAME --help
    python benchmarks/run.py oskt --data-dir DIR   # run all rows without results; interrupt and repeat at any time
    python benchmarks/run.py oskt --render         # write page and plot, run nothing

Accuracy, from trainings: {experiments}.
Speed and memory: {speeds}.

NAME.py declares what is run and how the page is written. Each training is a process and resumes from its checkpoints;
rows with a results.json in the benchmark's folder are not run again.
"""

import importlib
import sys
from collections.abc import Sequence

EXPERIMENTS = ("oskt", "fd", "ptl", "kdep", "compression")
SPEEDS = ("input_pipeline", "evaluation", "oskt_speed", "fd_speed", "ptl_speed", "kdep_speed", "index_search")


def main(words: Sequence[str]) -> None:
    """Run a benchmark: `words` are its name and its options."""
    about = __doc__.format(experiments=", ".join(EXPERIMENTS), speeds=", ".join(SPEEDS))
    if not words or words[0] in ("-h", "--help"):
        print(about)
        return
    name, *rest = words
    benchmark = load(name)
    if hasattr(benchmark, "rows"):
        from runner import run_experiment

        run_experiment(benchmark, rest)
    else:
        from speed import run_speed

        run_speed(benchmark, rest)


def load(name: str):
    """The `Experiment` or `Speed` of NAME.py, in this folder or on PYTHONPATH.

    Raises:
        SystemExit: if there is no benchmark of that name.
    """
    try:
        return importlib.import_module(name).BENCHMARK
    except (ModuleNotFoundError, AttributeError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name != name:
            raise
        raise SystemExit(f"no benchmark {name!r}, only {', '.join((*EXPERIMENTS, *SPEEDS))}") from None


if __name__ == "__main__":
    main(sys.argv[1:])
