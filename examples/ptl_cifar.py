"""Classify general images with and without the memory of Progressive Transfer Learning.

Without arguments it trains a small network with a memory on synthetic shapes:

    accelerate launch examples/ptl_cifar.py
    accelerate launch examples/ptl_cifar.py --data cifar100 --data-dir DIR --cell v2 --augment --arg bf16=true

--cell none is the baseline. With other data, the default is a DenseNet-BC-100 with the recipe cifar; without
--augment (flip and crop) it uses a dropout of 0.2.
"""

import json

from reid_hub.cli.errors import run
from reid_hub.cli.examples import parse
from reid_hub.runs.classify import classify
from reid_hub.runs.ptl import ClassifierArmSettings, with_arm


def main() -> None:
    published = {"backbone": "densenet-bc-100", "recipe": "cifar"}
    settings = parse(ClassifierArmSettings, __doc__, lambda given: published)
    print(json.dumps({"model": settings.output.out, **classify(with_arm(settings)).metrics.to_dict()}))


if __name__ == "__main__":
    run(main)
