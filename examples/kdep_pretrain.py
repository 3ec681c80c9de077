"""Pre-train a compact backbone from a teacher's features, without labels: KDEP.

Without arguments it trains a small teacher, computes a basis and pre-trains a narrow ResNet-18, on synthetic people:

    accelerate launch examples/kdep_pretrain.py
    accelerate launch examples/kdep_pretrain.py --teacher timm/resnet50 --model res18 --weight sp-res50/res18 \\
        --data pictures --data-dir DIR --out runs/res18
    accelerate launch examples/kdep_pretrain.py --teacher facebook/dinov2-base --model mobilenetv2 \\
        --data NAMESPACE/NAME --streaming --limit 100000 --out runs/mobilenetv2

With other data, the default is the recipe kdep at 224x224; --recipe kdep-people is for people, at 256x128. --crops R
samples R fixed crops per image and runs the teacher only once on each. The result is an ordinary model: fine-tune it
with examples/kdep_transfer.py. To resume an interrupted run, repeat the command.
"""

import json

from reid_hub.cli.errors import run
from reid_hub.cli.examples import SMALL, parse, published_kdep
from reid_hub.runs.kdep import PretrainSettings, pretrain


def main() -> None:
    demo = {"out": "runs/kdep-demo", "image_size": SMALL, "resume": True}
    settings = parse(PretrainSettings, __doc__, published_kdep, **demo)
    results = pretrain(settings)
    print(
        json.dumps(
            {"model": settings.output.out, "weight": results.training.extra["weight"], **results.metrics.to_dict()}
        )
    )


if __name__ == "__main__":
    run(main)
