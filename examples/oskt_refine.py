"""Refine a weight chain of a trained teacher: one run per width, or several chains in turn.

Without arguments it trains a small teacher on people that reid_hub draws, and refines its chain, in minutes:

    accelerate launch examples/oskt_refine.py
    accelerate launch examples/oskt_refine.py --teacher runs/res50 --width 8 16 32 --recipe oskt \\
        --data market1501 --data-dir DIR --image-size 256 128 --args '{"bf16": true}'
"""

import json
from pathlib import Path

from reid_hub.cli.arguments import PEOPLE, example_parser, parse_example, recipe_fields, training_fields
from reid_hub.cli.errors import run
from reid_hub.runs.refine import RefineSettings, refine_all
from reid_hub.runs.train import TrainSettings, train


def main() -> None:
    parser = example_parser(__doc__, output_dir="runs/oskt-demo/chain", recipe="oskt-demo", resume=True)
    parser.add_argument("--teacher", help="folder of its training; by default one is trained on drawn people")
    parser.add_argument("--width", type=int, nargs="+", default=[8], help="of the narrowest student of each chain")
    parser.add_argument("--progressive", action="store_true", help="each chain's narrowest student teaches the next")
    parser.add_argument("--clustering", default="ward", choices=["ward", "random", "inverse"])
    parser.add_argument("--distance", choices=["euclidean", "cosine"], help="by default the architecture's")
    options = parse_example(parser, lambda given: {"recipe": "oskt", "image_size": PEOPLE})
    teacher, fields = options.teacher, training_fields(options)
    if teacher is None:
        teacher = Path(options.output_dir).parent / "teacher"
        train(TrainSettings(teacher, **fields))
    rows = {"clustering": options.clustering, "distance": options.distance}
    settings = RefineSettings(options.output_dir, model=str(teacher), **rows, **fields, **recipe_fields(options))
    made = refine_all(settings, options.width, progressive=options.progressive)
    print(json.dumps({str(folder): results.metrics.to_dict() if results else None for folder, results in made.items()}))


if __name__ == "__main__":
    run(main)
