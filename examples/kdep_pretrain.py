"""Pre-train a compact trunk from a teacher's features, without labels: KDEP.

Without arguments it makes a small teacher, a basis and a narrow ResNet-18, on people that reid_hub draws:

    accelerate launch examples/kdep_pretrain.py
    accelerate launch examples/kdep_pretrain.py --teacher timm/resnet50 --student res18 --weight sp-res50/res18 \\
        --data pictures --data-dir DIR --output-dir runs/res18
    accelerate launch examples/kdep_pretrain.py --teacher facebook/dinov2-base --student mobilenetv2 \\
        --data NAMESPACE/NAME --streaming --limit 100000

With pictures that are not drawn the recipe kdep at 224x224 is the default; --recipe kdep-people is for people, 256x128.
--crops R shows each picture as R crops that are drawn once, and asks the teacher only for those. The folder is a model
like any other: examples/kdep_transfer.py fine-tunes it.
"""

import json

from reid_hub.cli.arguments import (
    example_parser,
    parse_example,
    pretraining_fields,
    pretraining_options,
    published_pretraining,
    recipe_fields,
    training_fields,
)
from reid_hub.cli.errors import run
from reid_hub.runs.kdep import KDEPSettings, pretrain


def main() -> None:
    parser = example_parser(__doc__, output_dir="runs/kdep-demo", recipe="kdep-demo", validation=0.0, resume=True)
    pretraining_options(parser)
    parser.add_argument("--init", help="first weights of the student: a file, torchvision/NAME, timm/NAME")
    parser.add_argument("--align", help="svd+pts, svd, sn, sm, cs.var, cs.rand, interp, pre-relu, post-relu, overhaul")
    parser.add_argument("--weight", help="of the loss: a number, or a pair of the paper; by default that of a new pair")
    parser.add_argument("--crops", type=int, default=0, help="crops of each picture that the teacher is asked about")
    parser.add_argument("--cache", help="folder of what it said; by default in the output folder")
    options = parse_example(parser, published_pretraining)
    fields = {**training_fields(options), **recipe_fields(options), **pretraining_fields(options)}
    fields |= {name: getattr(options, name) for name in ("init", "align", "weight", "crops", "cache")}
    results = pretrain(KDEPSettings(options.output_dir, **fields))
    about = {"model": options.output_dir, "weight": results.training.extra["weight"]}
    print(json.dumps({**about, **results.metrics.to_dict()}))


if __name__ == "__main__":
    run(main)
