"""Refine a weight chain of a trained teacher: one run per width, or several chains in turn.

Without arguments it trains a small teacher on people that reid_hub draws, and refines its chain, in minutes:

    accelerate launch examples/oskt_refine.py
    accelerate launch examples/oskt_refine.py --teacher runs/res50 --width 8 16 32 --recipe oskt \\
        --data market1501 --data-dir DIR --image-size 256 128 --args '{"bf16": true}'
"""

import argparse
import json
from pathlib import Path

from reid_hub.jobs.refine import RefineSettings, refine_all
from reid_hub.jobs.train import TrainSettings, train
from reid_hub.training import parse_override


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output-dir", default="runs/oskt-demo/chain", help="the chain's folder; one below for several"
    )
    parser.add_argument("--teacher", help="folder of its training; by default one is trained on drawn people")
    parser.add_argument("--width", type=int, nargs="+", default=[8], help="of the narrowest student of each chain")
    parser.add_argument("--progressive", action="store_true", help="each chain's narrowest student teaches the next")
    parser.add_argument("--clustering", default="ward", choices=["ward", "random", "inverse"])
    parser.add_argument("--distance", choices=["euclidean", "cosine"], help="by default the architecture's")
    parser.add_argument("--data", default="synthetic", help="name of the data set, the teacher's")
    parser.add_argument("--data-dir", help="folder in which the data set was unpacked")
    parser.add_argument("--data-options", type=json.loads, default={}, help="options of the data set, as JSON")
    parser.add_argument("--image-size", type=int, nargs=2, default=(128, 64), help="height and width in pixels")
    parser.add_argument("--recipe", default="oskt-demo", help="oskt for CNNs, oskt-vit, or a short one")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="values that replace the recipe's")
    parser.add_argument("--epochs", type=float, help="in place of the recipe's")
    parser.add_argument("--validation", type=float, default=0.1, help="share of identities held out, as the teacher's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--args", type=json.loads, default={}, help="transformers.TrainingArguments, as JSON")
    options = parser.parse_args()
    common = {
        "data": options.data, "data_dir": options.data_dir, "data_options": options.data_options, "resume": True,
        "image_size": options.image_size, "validation": options.validation, "seed": options.seed,
        "epochs": options.epochs, "arguments": options.args,
    }  # fmt: skip
    teacher = options.teacher
    if teacher is None:
        teacher = Path(options.output_dir).parent / "teacher"
        train(TrainSettings(teacher, **common))
    settings = RefineSettings(
        output_dir=options.output_dir,
        model=str(teacher),
        recipe=options.recipe,
        changes=dict(parse_override(text) for text in options.set),
        clustering=options.clustering,
        distance=options.distance,
        **common,
    )
    made = refine_all(settings, options.width, progressive=options.progressive)
    print(json.dumps({str(folder): results["metrics"] if results else None for folder, results in made.items()}))


if __name__ == "__main__":
    main()
