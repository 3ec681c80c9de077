"""Distill a network with a memory into a plain one at the cost of its backbone alone: PTL's STD.

Without --teacher it first trains a small one; without arguments it then trains two students on synthetic people:

    accelerate launch examples/ptl_distill.py
    accelerate launch examples/ptl_distill.py --teacher runs/ptl --model res50-conv --lam 0 0.3 0.5 0.8 1 \\
        --data market1501 --data-dir DIR --arg bf16=true

--model may also be the folder of a trained student, to continue its training. --lam 0 is the baseline. To resume an
interrupted run, repeat the command.
"""

import json

from reid_hub.cli.errors import run
from reid_hub.cli.examples import PEOPLE, SMALL, parse, small_model
from reid_hub.runs.ptl import STDSettings, distill, side_network


def main() -> None:
    demo = {"out": "runs/ptl-demo", "image_size": SMALL, "lam": [0.0, 0.8], "resume": True}
    published = {"recipe": "std", "image_size": PEOPLE, "model": "densenet161", "lam": [0.8]}
    settings = parse(STDSettings, __doc__, lambda given: published, **demo)
    if settings.std.teacher is None:
        arm = side_network("res18-x0.25")
        settings = settings.but(
            teacher=small_model(settings, f"{settings.output.out}/teacher", recipe="ptl-demo", **arm)
        )
    made = distill(settings)
    print(json.dumps({str(folder): results.metrics.to_dict() if results else None for folder, results in made.items()}))


if __name__ == "__main__":
    run(main)
