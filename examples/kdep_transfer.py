"""Fine-tune a pre-trained trunk, KDEP's last step: for re-identification with few labels, or for classification.

Without arguments it pre-trains one first, and then trains it with a tenth of the people that reid_hub draws:

    accelerate launch examples/kdep_transfer.py
    accelerate launch examples/kdep_transfer.py --backbone runs/res18 --keep-ids 0.1 \\
        --data market1501 --data-dir DIR --output-dir runs/res18-market
    accelerate launch examples/kdep_transfer.py --backbone runs/res18 --task classification \\
        --data class_folder --data-dir DIR --output-dir runs/res18-caltech

What it is compared with: the same with --backbone VARIANT, from random weights, and with a trunk that was trained on
the labels for as long (recipe kdep-people-supervised, or kdep-supervised for classes).
"""

import argparse
import json
from typing import Any

from reid_hub.cli.arguments import (
    PEOPLE,
    example_parser,
    is_drawn,
    parse_example,
    recipe_fields,
    training_fields,
)
from reid_hub.jobs.classify import ClassifySettings, classify
from reid_hub.jobs.kdep import KDEPSettings, pretrain
from reid_hub.jobs.train import TrainSettings, train


def published(given: argparse.Namespace) -> dict[str, Any]:
    """The protocols of transfer: of classes KDEP's, of people Bag of Tricks."""
    if given.task == "classification":
        return {"recipe": "transfer", "image_size": (224, 224)}
    return {"recipe": "bot", "image_size": PEOPLE, "keep_ids": 1.0}


def main() -> None:
    parser = example_parser(__doc__, output_dir="runs/kdep-transfer", validation=0.0, keep_ids=0.1)
    parser.add_argument("--backbone", help="folder or repository of a pre-trained model, or a variant")
    parser.add_argument("--task", choices=["reid", "classification"], default="reid")
    parser.add_argument("--keep", type=float, default=1.0, help="share of each class' pictures kept, in classification")
    options = parse_example(parser, published)
    if options.task == "classification" and is_drawn(options.data):
        parser.set_defaults(data="shapes", recipe="classify-demo")
        options = parser.parse_args()
    fields = {**training_fields(options), **recipe_fields(options)}
    if options.backbone is None:
        options.backbone = "runs/kdep-demo"
        names = ["image_size", "seed", "arguments"]
        names += ["data", "data_dir", "data_options"] if options.task == "reid" else []  # else drawn people are shown
        pretrain(KDEPSettings(options.backbone, resume=True, **{name: fields[name] for name in names}))
    if options.task == "classification":
        fields |= {"keep": options.keep, "keep_ids": 1.0}
        results = classify(ClassifySettings(options.output_dir, model=options.backbone, **fields))
    else:
        results = train(TrainSettings(options.output_dir, model=options.backbone, **fields))
    print(json.dumps({"model": options.output_dir, **(results["metrics"] if results else {})}))


if __name__ == "__main__":
    main()
