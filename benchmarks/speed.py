"""One runner for all benchmarks of speed and memory: one process per part, alternating timings."""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from render import Block, page
from words import command

from reid_hub.evaluation.results import public_command, versions
from reid_hub.files import atomic_file
from reid_hub.methods import Method
from reid_hub.training import Recipe
from reid_hub.training.optimizers import build_optimizer

HERE = Path(__file__).parent
IDS = 751  # of Market-1501's training set


@dataclass(frozen=True)
class Speed:
    """A benchmark of speed or memory.

    Attributes:
        name: name of its file and of the folder of its page.
        about: text of `--help`: what is measured, and how.
        parts: functions by name that each measure a part of the figures, in a process of their own.
        page: the page's blocks, the answer first, from the content of results.json.
        options: options of the command, as keyword arguments of `add_argument` by flag.
        settings: the options that results.json keeps.
        resumes: keep the parts that are measured already, unless --again is given.
    """

    name: str
    about: str
    parts: Callable[[argparse.Namespace], Mapping[str, Callable[[argparse.Namespace], Mapping[str, Any]]]]
    page: Callable[[Mapping[str, Any]], Iterable[Block]]
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    settings: Callable[[argparse.Namespace], Mapping[str, Any]] = lambda options: {}
    resumes: bool = False


def run_speed(benchmark: Speed, words: Sequence[str]) -> None:
    """Measure every part, write results.json, and render the page from it."""
    parser = argparse.ArgumentParser(
        prog=f"run.py {benchmark.name}",
        description=benchmark.about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for flag, fields in benchmark.options.items():
        parser.add_argument(*flag.split(), **fields)
    parser.add_argument("--out", type=Path, default=HERE / benchmark.name, help="folder of page and results")
    parser.add_argument("--one", metavar="PART", help="measure this part in this process and print its figures")
    parser.add_argument("--again", action="store_true", help="measure again what has results")
    parser.add_argument("--render", action="store_true", help="write the page, measure nothing")
    options = parser.parse_args(words)
    parts = benchmark.parts(options)
    if options.one:
        print(json.dumps(parts[options.one](options)))
        return
    results = read(options.out)
    if not benchmark.resumes and not options.render:
        results = {"figures": {}}
    for name in parts if not options.render else ():
        if name in results["figures"] and not options.again:
            continue
        print(f"measuring {name} ...", flush=True)
        call = [sys.executable, str(HERE / "run.py"), benchmark.name, *words, "--one", name]
        ran = subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True)
        results["figures"] |= json.loads(ran.stdout.splitlines()[-1])
        results |= {"setting": benchmark.settings(options), "machine": machine(), "versions": versions()}
        results["command"] = public_command([f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
        with atomic_file(options.out / "results.json") as temporary:
            temporary.write_text(json.dumps(results, indent=2) + "\n")
    text = page(benchmark.page(results))
    with atomic_file(options.out / "README.md") as temporary:
        temporary.write_text(text)
    print(text)


def read(folder: Path) -> dict[str, Any]:
    """The content of results.json, or empty figures; `index_search` used to call its figures "runs"."""
    path = folder / "results.json"
    results = json.loads(path.read_text()) if path.is_file() else {"figures": {}}
    return {"figures": results.pop("runs"), **results} if "runs" in results else results


def machine() -> dict[str, Any]:
    """The machine that figures depend on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "system": platform.system(),
        "architecture": platform.machine(),
    }


# Training steps.


def step_options(batch: int = 32, image_size: tuple[int, int] = (256, 128), rounds: int = 3) -> dict[str, dict]:
    """Options of a benchmark that times training steps."""
    return {
        "--batch": {"type": int, "default": batch},
        "--image-size": {"type": int, "nargs": 2, "default": image_size},
        "--rounds": {"type": int, "default": rounds},
    }


def step_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The step options that results.json keeps."""
    return {"batch": options.batch, "image_size": list(options.image_size), "rounds": options.rounds}


def how_timed(results: Mapping[str, Any]) -> str:
    """Batch, image size, precision and machine, as text."""
    about, machine = results["setting"], results["machine"]
    size = "x".join(map(str, about["image_size"]))
    return f"batch {about['batch']} at {size}, float32, {machine['threads']} threads of {machine['architecture']}"


def written_by(results: Mapping[str, Any]) -> str:
    """The last sentence of a page."""
    return f"Rendered from [results.json](results.json), which was written by `{command(results)}`."


def training_step(method: Method, recipe: Recipe, *inputs: torch.Tensor | None) -> Callable[[], None]:
    """Forward, backward and the recipe's optimiser on one batch, images first, channels last."""
    method = method.train().to(memory_format=torch.channels_last)
    given = zip(("pixel_values", "pids", "camids", "indices", "erased_boxes"), inputs, strict=False)
    batch = {name: tensor for name, tensor in given if tensor is not None}
    batch["pixel_values"] = batch["pixel_values"].to(memory_format=torch.channels_last)
    optimiser = build_optimizer(
        method, recipe.optimizer, lr=1e-4, weight_decay=recipe.weight_decay, options=recipe.optimizer_options
    )

    def run() -> None:
        optimiser.zero_grad()
        method(batch)["loss"].backward()
        optimiser.step()

    return run


def take_turns(
    runs: Mapping[str, Callable[[], Any]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each function in each round; all take turns, and a first round, which fills caches, is left out."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            start = clock()
            run()
            seconds[name].append(clock() - start)
        last = {name: round(values[-1], 3) for name, values in seconds.items()}
        print(f"round {number} of {rounds}: {last}", file=sys.stderr, flush=True)
    return {name: values[1:] for name, values in seconds.items()}


def least_seconds(runs: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """The least seconds of each function over several rounds; see `take_turns`."""
    return {name: min(values) for name, values in take_turns(runs, rounds).items()}


def one_image(count: int, size: tuple[int, int], **columns: Any):
    """A data set that repeats one small image under many names."""
    import datasets
    from PIL import Image

    encoded = BytesIO()
    Image.new("RGB", size, (90, 120, 60)).save(encoded, "PNG")
    rows = [{"image": {"bytes": encoded.getvalue()}, **columns, "path": f"{row}.png"} for row in range(count)]
    return datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())


def tiny_resnet(width: int) -> dict[str, Any]:
    """The configuration of a backbone too small to be of use."""
    return {"model_type": "resnet", "embedding_size": 4, "hidden_sizes": [width], "depths": [1], "layer_type": "basic"}


def memory(name: str) -> int:
    """Memory of this process in bytes: VmRSS now, VmHWM at its peak; getrusage may report the parent's higher peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{name}:")))
