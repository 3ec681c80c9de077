"""Classify general pictures with and without the memory of Progressive Transfer Learning.

Without arguments it trains a small network with a memory on shapes that reid_hub draws:

    accelerate launch examples/ptl_cifar.py
    accelerate launch examples/ptl_cifar.py --data cifar100 --data-dir DIR --cell v2 --augment --args '{"bf16": true}'

--cell none is the baseline; of CIFAR the default is a DenseNet-BC-100 by its own recipe. Without --augment (flip and
crop) a DenseNet has a dropout of 0.2.
"""

import argparse
import json

from reid_hub.cli.arguments import example_parser, parse_example, recipe_fields, training_fields
from reid_hub.cli.errors import run
from reid_hub.runs.classify import ClassifySettings, classify
from reid_hub.runs.ptl import CELLS, classification_arm, with_changes


def main() -> None:
    defaults = {"output_dir": "runs/ptl-cifar", "data": "shapes", "recipe": "classify-demo"}
    parser = example_parser(__doc__, image_size=None, validation=0.0, **defaults)
    parser.add_argument("--backbone", default="res18-x0.25", help="densenet-bc-100, res18-x0.25, res50")
    parser.add_argument("--cell", default="v1", choices=CELLS)
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--augment", action="store_true", help="flip and crop")
    parser.add_argument("--evaluate-every", type=int, default=1, help="epochs between two evaluations on the test set")
    options = parse_example(parser, lambda given: {"backbone": "densenet-bc-100", "recipe": "cifar"})
    fields = {**training_fields(options), **recipe_fields(options), "evaluate_every": options.evaluate_every}
    arm = classification_arm(options.backbone, options.cell, options.memory, options.augment)
    results = classify(ClassifySettings(options.output_dir, **{**fields, **with_changes(arm, fields["changes"])}))
    print(json.dumps({"model": options.output_dir, **results.metrics.to_dict()}))


if __name__ == "__main__":
    run(main)
