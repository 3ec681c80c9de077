"""Refine the weight chain of a trained teacher: one run per width, or several chains in sequence.

Without --model (the teacher) it first trains a small teacher, here on synthetic people, in minutes:

    accelerate launch examples/oskt_refine.py
    accelerate launch examples/oskt_refine.py --model runs/res50 --width 8 16 32 --data market1501 --data-dir DIR \\
        --arg bf16=true --out runs/chain

With --progressive, each chain's narrowest student is the teacher of the next chain. To resume an interrupted run,
repeat the command. To expand and train students, use examples/oskt_expand.py.
"""

import json
from pathlib import Path

from reid_hub.cli.errors import run
from reid_hub.cli.examples import PEOPLE, SMALL, parse, small_model
from reid_hub.runs.refine import RefineAllSettings, refine_all


def main() -> None:
    demo = {"model": None, "out": "runs/oskt-demo/chain", "image_size": SMALL, "resume": True}
    settings = parse(RefineAllSettings, __doc__, lambda given: {"recipe": "oskt", "image_size": PEOPLE}, **demo)
    if settings.model.model is None:
        settings = settings.but(model=small_model(settings, Path(settings.output.out).parent / "teacher"))
    made = refine_all(settings)
    print(json.dumps({str(folder): results.metrics.to_dict() if results else None for folder, results in made.items()}))


if __name__ == "__main__":
    run(main)
