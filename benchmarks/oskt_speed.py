"""Cost of OSKT against plain training: a refinement step, its peak memory, clustering a ResNet-50, expanding students.

    python benchmarks/oskt_speed.py

A step is forward, backward and Adam on one batch of random pictures: of the teacher alone, and of the refinement of its
width-8 chain, in turns in one process, the least of several rounds. Peak memory is that of a process of its own each.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from reid_hub import ReIDConfig, ReIDModel, WeightChain
from reid_hub.evaluation.results import public_command, versions
from reid_hub.files import atomic_file
from reid_hub.methods import RefineMethod, SupervisedMethod
from reid_hub.methods.oskt.cluster import cluster
from reid_hub.training import RECIPES

FOLDER = Path(__file__).parent / "oskt_speed"
STUDENTS = {"res50-s1": 8, "res50-s2": 8, "res50-s3": 16, "res50-s4": 16, "res50-s5": 32, "res50-s6": 32}
IDS = 751


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--image-size", type=int, nargs=2, default=(256, 128))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--memory", choices=["teacher", "refinement"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        step(options.memory, options)()
        print(peak_kilobytes())
        return
    figures = {**steps(options), **memory(options), **widths()}
    results = {
        "figures": figures,
        "setting": {"batch": options.batch, "image_size": list(options.image_size), "rounds": options.rounds},
        "machine": {"cores": os.cpu_count(), "threads": torch.get_num_threads(), "architecture": platform.machine()},
        "command": public_command(sys.argv),
        "versions": versions(),
    }
    for name, text in (("results.json", json.dumps(results, indent=2) + "\n"), ("README.md", render(results))):
        with atomic_file(options.out / name) as temporary:
            temporary.write_text(text)
    print(render(results))


def step(kind: str, options: argparse.Namespace) -> Callable[[], None]:
    """One training step of the teacher, or of the refinement of its chain; the losses are the published recipe's."""
    torch.manual_seed(0)
    teacher = ReIDModel(ReIDConfig.from_variant("res50", image_size=tuple(options.image_size)))
    losses = RECIPES["bot"].options
    if kind == "teacher":
        method = SupervisedMethod(teacher, IDS, **losses)
    else:
        chain = WeightChain.from_teacher(teacher, 8, clustering="random")  # the step does not see which rows are alike
        method = RefineMethod(teacher, IDS, chain=chain, **losses)
    method = method.train().to(memory_format=torch.channels_last)
    pixels = torch.randn(options.batch, 3, *options.image_size).to(memory_format=torch.channels_last)
    pids = torch.arange(options.batch) // 4
    optimiser = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], lr=1e-4, weight_decay=5e-4)

    def run() -> None:
        optimiser.zero_grad()
        method(pixels, pids)["loss"].backward()
        optimiser.step()

    return run


def peak_kilobytes() -> int:
    """Peak memory of this process; getrusage would say its parent's, which had more."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def steps(options: argparse.Namespace) -> dict[str, float]:
    runs = {kind: step(kind, options) for kind in ("teacher", "refinement")}
    seconds = {kind: [] for kind in runs}
    for number in range(options.rounds + 1):
        for kind, run in runs.items():
            start = time.perf_counter()
            run()
            if number:  # the first fills caches
                seconds[kind].append(time.perf_counter() - start)
        print(
            f"round {number}: { ({kind: round(values[-1], 2) for kind, values in seconds.items() if values}) }",
            flush=True,
        )
    least = {kind: min(values) for kind, values in seconds.items()}
    return {
        "teacher_step_s": least["teacher"],
        "refinement_step_s": least["refinement"],
        "step_ratio": least["refinement"] / least["teacher"],
    }


def memory(options: argparse.Namespace) -> dict[str, float]:
    found = {}
    for kind in ("teacher", "refinement"):
        words = [f"--memory={kind}", f"--batch={options.batch}", "--image-size", *map(str, options.image_size)]
        ran = subprocess.run([sys.executable, __file__, *words], check=True, stdout=subprocess.PIPE, text=True)
        found[kind] = int(ran.stdout.split()[-1]) / 2**20  # kilobytes to GiB
        print(f"memory of {kind}: {found[kind]:.2f} GiB", flush=True)
    return {
        "teacher_peak_gib": found["teacher"],
        "refinement_peak_gib": found["refinement"],
        "memory_ratio": found["refinement"] / found["teacher"],
    }


def widths() -> dict[str, float]:
    """Seconds to cluster a ResNet-50 for a chain of width 8, and to expand all six students from their chains."""
    torch.manual_seed(0)
    teacher = ReIDModel(ReIDConfig.from_variant("res50"))
    chain = WeightChain.from_teacher(teacher, 8, clustering="random")
    start = time.perf_counter()
    cluster(teacher, chain.rows)
    clustering = time.perf_counter() - start
    chains = {8: chain, **{w: WeightChain.from_teacher(teacher, w, clustering="random") for w in (16, 32)}}
    start = time.perf_counter()
    for student, width in STUDENTS.items():
        chains[width].expand(student)
    return {"cluster_s": clustering, "expand_six_s": time.perf_counter() - start}


def render(results: dict) -> str:
    f, setting, machine = results["figures"], results["setting"], results["machine"]
    height, width = setting["image_size"]
    rows = [
        f"| {what} | {f[f'teacher_{key}']:.2f} {unit} | {f[f'refinement_{key}']:.2f} {unit} | {f[ratio]:.2f} | {most} |"
        for what, key, unit, ratio, most in (
            ("one training step", "step_s", "s", "step_ratio", "at most 1.15"),
            ("peak memory of the process", "peak_gib", "GiB", "memory_ratio", "at most 1.2"),
        )
    ]
    return f"""# Cost of OSKT

Rendered from results.json by `{results["command"]}`: ResNet-50 teacher, chain of width 8, batch {setting["batch"]} at
{height}x{width}, float32, {machine["threads"]} threads of {machine["architecture"]}.

| | plain teacher | refinement | ratio | target |
|---|---:|---:|---:|---:|
{rows[0]}
{rows[1]}

| | | target |
|---|---:|---:|
| clustering the teacher (Ward, all 37 groups) | {f["cluster_s"]:.1f} s | under 60 s |
| expanding S1 to S6 from their chains | {f["expand_six_s"]:.2f} s | under 5 s together |
"""


if __name__ == "__main__":
    main()
