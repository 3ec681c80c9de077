"""Train and evaluate a model with a recipe, on one or more processes.

Without arguments it trains on synthetic people, in minutes on two CPU cores:

    accelerate launch examples/train_supervised.py
    accelerate launch examples/train_supervised.py --data market1501 --data-dir DIR --model res50 --recipe bot \\
        --init torchvision/resnet50 --image-size 256 128 --arg bf16=true

Several processes on CPUs need `--multi_gpu`, which accelerate reads as "several processes":

    accelerate launch --multi_gpu --num_processes 2 examples/train_supervised.py --arg use_cpu=true
"""

import json

from reid_hub.cli.errors import run
from reid_hub.cli.examples import PEOPLE, SMALL, parse
from reid_hub.runs.settings import TrainSettings
from reid_hub.runs.train import train


def main() -> None:
    published = {"model": "res50", "recipe": "bot", "image_size": PEOPLE}
    settings = parse(TrainSettings, __doc__, lambda given: published, out="runs/supervised", image_size=SMALL)
    results = train(settings)
    print(json.dumps({"model": settings.output.out, **(results.metrics.to_dict() if results else {})}))


if __name__ == "__main__":
    run(main)
