"""Train and evaluate a model by a recipe, on one process or several.

Without arguments it trains on people that reid_hub draws, in minutes on two CPU cores:

    accelerate launch examples/train_supervised.py
    accelerate launch examples/train_supervised.py --data market1501 --data-dir DIR --model res50 --recipe bot \\
        --init torchvision/resnet50 --image-size 256 128 --args '{"bf16": true}'

Several processes on CPUs need `--multi_gpu`, which accelerate reads as "several processes":

    accelerate launch --multi_gpu --num_processes 2 examples/train_supervised.py --args '{"use_cpu": true}'
"""

import argparse
import json

from reid_hub.jobs.train import TrainSettings, train
from reid_hub.training import parse_override


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", default="runs/supervised", help="the model's folder")
    parser.add_argument("--data", default="synthetic", help="name of the data set")
    parser.add_argument("--data-dir", help="folder in which the data set was unpacked")
    parser.add_argument("--data-options", type=json.loads, default={}, help="options of the data set, as JSON")
    parser.add_argument("--model", default="res18-x0.25", help="a variant, or a checkpoint to go on with")
    parser.add_argument("--init", help="weights to start from: a file, torchvision/NAME, timm/NAME or a checkpoint")
    parser.add_argument("--image-size", type=int, nargs=2, default=(128, 64), help="height and width in pixels")
    parser.add_argument("--recipe", default="demo", help="name of the recipe")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="values that replace the recipe's")
    parser.add_argument("--epochs", type=float, help="in place of the recipe's")
    parser.add_argument("--validation", type=float, default=0.1, help="share of the training identities held out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--args", type=json.loads, default={}, help="transformers.TrainingArguments, as JSON")
    options = parser.parse_args()
    settings = TrainSettings(
        output_dir=options.output_dir,
        data=options.data,
        data_dir=options.data_dir,
        data_options=options.data_options,
        model=options.model,
        init=options.init,
        image_size=options.image_size,
        recipe=options.recipe,
        changes=dict(parse_override(text) for text in options.set),
        epochs=options.epochs,
        validation=options.validation,
        seed=options.seed,
        resume=options.resume,
        arguments=options.args,
    )
    results = train(settings)
    print(json.dumps({"model": options.output_dir, **(results["metrics"] if results else {})}))


if __name__ == "__main__":
    main()
