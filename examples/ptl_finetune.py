"""Fine-tune by Progressive Transfer Learning, and the arms that tell what its memory does.

Without arguments it trains a small network with a memory on people that reid_hub draws:

    accelerate launch examples/ptl_finetune.py
    accelerate launch examples/ptl_finetune.py --cell v1 --no-memory     # forgets before every batch
    accelerate launch examples/ptl_finetune.py --cell none               # the backbone alone
    accelerate launch examples/ptl_finetune.py --cell plain              # as many weights, no gates, no memory
    accelerate launch examples/ptl_finetune.py --backbone res50 --init torchvision/resnet50 \\
        --data market1501 --data-dir DIR --args '{"bf16": true}'
    accelerate launch examples/ptl_finetune.py --backbone mgn --init torchvision/resnet50 --data market1501 ...

With data that are not drawn the published recipe and size of the backbone are the default.
"""

import argparse
import json
from typing import Any

from reid_hub.cli.arguments import PEOPLE, example_parser, parse_example, recipe_fields, training_fields
from reid_hub.cli.errors import run
from reid_hub.runs.ptl import CELLS, side_network, with_changes
from reid_hub.runs.train import TrainSettings, train


def published(given: argparse.Namespace) -> dict[str, Any]:
    """The recipe and the picture size of a backbone."""
    if given.backbone == "mgn":
        return {"recipe": "ptl-mgn", "image_size": (384, 128)}
    return {"backbone": "res50", "recipe": "ptl", "image_size": PEOPLE}


def main() -> None:
    parser = example_parser(__doc__, output_dir="runs/ptl", recipe="ptl-demo")
    parser.add_argument("--backbone", default="res18-x0.25", help="res50, densenet161, mgn, res18-x0.25")
    parser.add_argument("--cell", default="v1", choices=CELLS)
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--init", help="weights to start from: a file, torchvision/NAME, timm/NAME or a checkpoint")
    options = parse_example(parser, published)
    fields = {**training_fields(options), **recipe_fields(options), "init": options.init, "flip": True}
    arm = side_network(options.backbone, options.cell, options.memory)
    results = train(TrainSettings(options.output_dir, **{**fields, **with_changes(arm, fields["changes"])}))
    print(json.dumps({"model": options.output_dir, **(results.metrics.to_dict() if results else {})}))


if __name__ == "__main__":
    run(main)
