"""Make the basis of a teacher's features, KDEP's first step; any number of processes share the work.

Without arguments it is that of a small teacher, trained for it, on people that reid_hub draws:

    accelerate launch examples/kdep_basis.py
    accelerate launch examples/kdep_basis.py --teacher timm/resnet50 --data pictures --data-dir DIR \\
        --share 0.1 --basis runs/resnet50.safetensors

A killed run goes on with the same command. The basis is for any student of this picture size and recipe; the students
themselves are made with examples/kdep_pretrain.py --basis.
"""

import json

from reid_hub.cli.arguments import (
    example_parser,
    parse_example,
    pretraining_fields,
    pretraining_options,
    published_pretraining,
    recipe_fields,
    training_fields,
)
from reid_hub.cli.errors import run
from reid_hub.runs.kdep import KDEPSettings, make_basis


def main() -> None:
    parser = example_parser(__doc__, output_dir="runs/kdep-demo", recipe="kdep-demo", validation=0.0)
    pretraining_options(parser)
    options = parse_example(parser, published_pretraining)
    fields = {**training_fields(options), **recipe_fields(options), **pretraining_fields(options)}
    print(json.dumps({"basis": str(make_basis(KDEPSettings(options.output_dir, **fields)))}))


if __name__ == "__main__":
    run(main)
