"""Compute the basis of a teacher's features, KDEP's first step. Any number of processes share the work.

Without --teacher it first trains a small one, here on synthetic people:

    accelerate launch examples/kdep_basis.py
    accelerate launch examples/kdep_basis.py --teacher timm/resnet50 --data pictures --data-dir DIR --share 0.1 \\
        --basis runs/resnet50.safetensors

The basis fits any student of this image size and recipe: pass it to examples/kdep_pretrain.py as --basis. To resume
an interrupted run, repeat the command.
"""

import json

from reid_hub.cli.errors import run
from reid_hub.cli.examples import SMALL, parse, published_kdep
from reid_hub.runs.kdep import BasisSettings, make_basis


def main() -> None:
    settings = parse(BasisSettings, __doc__, published_kdep, out="runs/kdep-demo", image_size=SMALL)
    print(json.dumps({"basis": str(make_basis(settings))}))


if __name__ == "__main__":
    run(main)
