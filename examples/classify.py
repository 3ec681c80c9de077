"""Train and evaluate a general image classifier with a recipe, on one or more processes.

Without arguments it trains on synthetic shapes, in about a minute on two CPU cores:

    accelerate launch examples/classify.py
    accelerate launch examples/classify.py --data cifar10 --data-dir DIR --model densenet-bc-100 --recipe cifar
    accelerate launch examples/classify.py --data dtd --data-dir DIR --model res18 --init CHECKPOINT \\
        --recipe transfer --evaluate-every 5 --arg bf16=true
"""

import json
from typing import Any

from reid_hub.cli.errors import run
from reid_hub.cli.examples import parse
from reid_hub.runs.classify import ClassifySettings, classify


def published(given: ClassifySettings) -> dict[str, Any]:
    """CIFAR with its own recipe; for other images, transfer of a pre-trained backbone."""
    if given.data.data.startswith("cifar"):
        return {"model": "densenet-bc-100", "recipe": "cifar"}
    return {"model": "res18", "recipe": "transfer"}


def main() -> None:
    settings = parse(ClassifySettings, __doc__, published)
    print(json.dumps({"model": settings.output.out, **classify(settings).metrics.to_dict()}))


if __name__ == "__main__":
    run(main)
