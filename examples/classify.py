"""Train and evaluate a classifier of general pictures by a recipe, on one process or several.

Without arguments it trains on shapes that reid_hub draws, in a minute on two CPU cores:

    accelerate launch examples/classify.py
    accelerate launch examples/classify.py --data cifar10 --data-dir DIR --model densenet-bc-100 --recipe cifar
    accelerate launch examples/classify.py --data dtd --data-dir DIR --model res18 --init CKPT --recipe transfer \\
        --evaluate-every 5 --args '{"bf16": true}'
"""

import argparse
import json
from typing import Any

from reid_hub.cli.arguments import example_parser, parse_example, recipe_fields, training_fields
from reid_hub.cli.errors import run
from reid_hub.runs.classify import ClassifySettings, classify


def published(given: argparse.Namespace) -> dict[str, Any]:
    """CIFAR by its own recipe, other pictures as a pre-trained trunk is transferred to them."""
    if given.data.startswith("cifar"):
        return {"model": "densenet-bc-100", "recipe": "cifar"}
    return {"model": "res18", "recipe": "transfer"}


def main() -> None:
    defaults = {"output_dir": "runs/classify", "data": "shapes", "recipe": "classify-demo"}
    parser = example_parser(__doc__, image_size=None, validation=0.0, **defaults)
    parser.add_argument("--model", default="res18-x0.25", help="a variant, or a checkpoint to go on with")
    parser.add_argument("--init", help="weights of the trunk: a file, torchvision/NAME, timm/NAME or a checkpoint")
    parser.add_argument("--keep", type=float, default=1.0, help="share of each class's training pictures: few-shot")
    parser.add_argument("--per-class", type=int, help="so many pictures of each class in place of a share")
    parser.add_argument("--evaluate-every", type=int, default=1, help="epochs between two evaluations on the test set")
    options = parse_example(parser, published)
    settings = ClassifySettings(
        options.output_dir,
        model=options.model,
        init=options.init,
        keep=options.keep,
        per_class=options.per_class,
        evaluate_every=options.evaluate_every,
        **training_fields(options),
        **recipe_fields(options),
    )
    print(json.dumps({"model": options.output_dir, **classify(settings).metrics.to_dict()}))


if __name__ == "__main__":
    run(main)
