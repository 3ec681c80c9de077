"""Train and evaluate a model by a recipe, on one process or several.

Without arguments it trains on people that reid_hub draws, in minutes on two CPU cores:

    accelerate launch examples/train_supervised.py
    accelerate launch examples/train_supervised.py --data market1501 --data-dir DIR --model res50 --recipe bot \\
        --init torchvision/resnet50 --image-size 256 128 --args '{"bf16": true}'

Several processes on CPUs need `--multi_gpu`, which accelerate reads as "several processes":

    accelerate launch --multi_gpu --num_processes 2 examples/train_supervised.py --args '{"use_cpu": true}'
"""

import json

from reid_hub.cli.arguments import PEOPLE, example_parser, parse_example, recipe_fields, training_fields
from reid_hub.cli.errors import run
from reid_hub.runs.train import TrainSettings, train


def main() -> None:
    parser = example_parser(__doc__, output_dir="runs/supervised")
    parser.add_argument("--model", default="res18-x0.25", help="a variant, or a checkpoint to go on with")
    parser.add_argument("--init", help="weights to start from: a file, torchvision/NAME, timm/NAME or a checkpoint")
    options = parse_example(parser, lambda given: {"model": "res50", "recipe": "bot", "image_size": PEOPLE})
    fields = {**training_fields(options), **recipe_fields(options)}
    results = train(TrainSettings(options.output_dir, model=options.model, init=options.init, **fields))
    print(json.dumps({"model": options.output_dir, **(results.metrics.to_dict() if results else {})}))


if __name__ == "__main__":
    run(main)
