"""Fine-tune a pre-trained trunk, KDEP's last step: for re-identification with few labels, or for classification.

Without arguments it pre-trains one first, and then trains it with a tenth of the people that reid_hub draws:

    accelerate launch examples/kdep_transfer.py
    accelerate launch examples/kdep_transfer.py --backbone runs/res18 --keep-ids 0.1 \\
        --data market1501 --data-dir DIR --output-dir runs/res18-market
    accelerate launch examples/kdep_transfer.py --backbone runs/res18 --task classification \\
        --data class_folder --data-dir DIR --output-dir runs/res18-caltech

What it is compared with: the same with --backbone VARIANT, from random weights, and with a trunk that was trained on
the labels for as long (recipe kdep-people-supervised, or kdep-supervised of classes: --backbone VARIANT --init FOLDER).
"""

import argparse
import json
from typing import Any

from reid_hub.cli.arguments import PEOPLE, example_parser, is_drawn, parse_example, recipe_fields, training_fields
from reid_hub.cli.errors import run
from reid_hub.runs.classify import ClassifySettings, classify
from reid_hub.runs.kdep import KDEPSettings, pretrain
from reid_hub.runs.train import TrainSettings, train


def published(given: argparse.Namespace) -> dict[str, Any]:
    """The protocols of transfer: of classes KDEP's, of people Bag of Tricks."""
    if given.task == "classification":
        return {"recipe": "transfer", "image_size": (224, 224), "evaluate_every": 5}
    return {"recipe": "bot", "image_size": PEOPLE}


def main() -> None:
    parser = example_parser(__doc__, output_dir="runs/kdep-transfer", validation=0.0, keep_ids=None)
    parser.add_argument("--backbone", help="folder or repository of a pre-trained model, or a variant")
    parser.add_argument(
        "--init", help="weights to start the backbone from, also those of a classifier of other classes"
    )
    parser.add_argument("--task", choices=["reid", "classification"], default="reid")
    parser.add_argument("--keep", type=float, help="share of each class' pictures kept, in classification")
    parser.add_argument(
        "--evaluate-every", type=int, help="epochs between two looks at the test set, in classification"
    )
    options = parse_example(parser, published)
    drawn, classes = is_drawn(options.data), options.task == "classification"
    for name in ("keep_ids",) if classes else ("keep", "evaluate_every"):
        if getattr(options, name) is not None:
            parser.error(f"--{name.replace('_', '-')} does not belong to --task {options.task}")
    if classes and drawn:
        parser.set_defaults(data="shapes", recipe="classify-demo")
        options = parser.parse_args()
    if options.keep_ids is None:
        options.keep_ids = 0.1 if drawn and not classes else 1.0
    fields = {**training_fields(options), **recipe_fields(options), "init": options.init}
    if options.backbone is None:
        options.backbone = f"{options.output_dir}/trunk"
        names = ["image_size", "seed", "arguments"]
        names += [] if classes else ["data", "data_dir", "data_options"]  # else drawn people are shown
        pretrain(KDEPSettings(options.backbone, resume=True, **{name: fields[name] for name in names}))
    if classes:
        given = {name: getattr(options, name) for name in ("keep", "evaluate_every")}
        fields |= {name: value for name, value in given.items() if value is not None}
        results = classify(ClassifySettings(options.output_dir, model=options.backbone, **fields))
    else:
        results = train(TrainSettings(options.output_dir, model=options.backbone, **fields))
    print(json.dumps({"model": options.output_dir, **(results.metrics.to_dict() if results else {})}))


if __name__ == "__main__":
    run(main)
