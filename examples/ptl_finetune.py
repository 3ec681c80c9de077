"""Fine-tune with Progressive Transfer Learning, or train one of the ablation arms for its memory.

Without arguments it trains a small network with a memory on synthetic people:

    accelerate launch examples/ptl_finetune.py
    accelerate launch examples/ptl_finetune.py --cell v1 --no-memory     # forgets before every batch
    accelerate launch examples/ptl_finetune.py --cell none               # the backbone alone
    accelerate launch examples/ptl_finetune.py --cell plain              # as many weights, no gates, no memory
    accelerate launch examples/ptl_finetune.py --backbone res50 --init torchvision/resnet50 --data market1501 \\
        --data-dir DIR --arg bf16=true
    accelerate launch examples/ptl_finetune.py --backbone mgn --init torchvision/resnet50 --data market1501 ...

With other data, the default is the published recipe and image size of the backbone.
"""

import json
from typing import Any

from reid_hub.cli.errors import run
from reid_hub.cli.examples import PEOPLE, SMALL, parse
from reid_hub.runs.ptl import ArmSettings, with_arm
from reid_hub.runs.train import train


def published(given: ArmSettings) -> dict[str, Any]:
    """The recipe and the image size of a backbone."""
    if given.arm.backbone == "mgn":
        return {"recipe": "ptl-mgn", "image_size": [384, 128]}
    return {"backbone": "res50", "recipe": "ptl", "image_size": PEOPLE}


def main() -> None:
    settings = parse(ArmSettings, __doc__, published, image_size=SMALL)
    results = train(with_arm(settings))
    print(json.dumps({"model": settings.output.out, **(results.metrics.to_dict() if results else {})}))


if __name__ == "__main__":
    run(main)
