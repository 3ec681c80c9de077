"""Cost of OSKT against plain training: a refinement step, its peak memory, clustering a ResNet-50, expanding students.

    python benchmarks/oskt_speed.py

A step is forward, backward and Adam on one batch of random pictures: of the teacher alone, and of the refinement of its
width-8 chain, in turns in one process, the least of several rounds. Peak memory is that of a process of its own each.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from timing import least_seconds, setting, step_parser, training_step, write

from reid_hub import ReIDConfig, ReIDModel, WeightChain
from reid_hub.methods import RefineMethod, SupervisedMethod
from reid_hub.methods.oskt.cluster import cluster
from reid_hub.training import RECIPES

FOLDER = Path(__file__).parent / "oskt_speed"
STUDENTS = {"res50-s1": 8, "res50-s2": 8, "res50-s3": 16, "res50-s4": 16, "res50-s5": 32, "res50-s6": 32}
IDS = 751


def main() -> None:
    parser = step_parser(__doc__, FOLDER)
    parser.add_argument("--memory", choices=["teacher", "refinement"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        step(options.memory, options)()
        print(peak_kilobytes())
        return
    write(options, {**steps(options), **memory(options), **widths()}, render)


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
    return training_step(method, torch.randn(options.batch, 3, *options.image_size), torch.arange(options.batch) // 4)


def peak_kilobytes() -> int:
    """Peak memory of this process; getrusage would say its parent's, which had more."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def steps(options: argparse.Namespace) -> dict[str, float]:
    least = least_seconds({kind: step(kind, options) for kind in ("teacher", "refinement")}, options.rounds)
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
    f = results["figures"]
    rows = [
        f"| {what} | {f[f'teacher_{key}']:.2f} {unit} | {f[f'refinement_{key}']:.2f} {unit} | {f[ratio]:.2f} | {most} |"
        for what, key, unit, ratio, most in (
            ("one training step", "step_s", "s", "step_ratio", "at most 1.15"),
            ("peak memory of the process", "peak_gib", "GiB", "memory_ratio", "at most 1.2"),
        )
    ]
    return f"""# Cost of OSKT

Rendered from results.json by `{results["command"]}`: ResNet-50 teacher, chain of width 8,
{setting(results)}.

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
