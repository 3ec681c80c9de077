"""Compress a model's embedding: fewer dimensions, one byte each; every size is an evaluated checkpoint.

Without arguments it trains a small model on people that reid_hub draws, and compresses it, in minutes:

    accelerate launch examples/compress_head.py
    accelerate launch examples/compress_head.py --model transreid-vit-b --init timm/vit_base_patch16_224 --dim 64 32 \\
        --head low_rank --int8 --recipe compress --data market1501 --data-dir DIR --image-size 256 128
"""

import json
from pathlib import Path

from reid_hub.cli.arguments import PEOPLE, example_parser, parse_example, recipe_fields, training_fields
from reid_hub.cli.errors import run
from reid_hub.runs.compress import FITTED, TRAINED, CompressSettings, compress
from reid_hub.runs.train import TrainSettings, train


def main() -> None:
    parser = example_parser(__doc__, output_dir="runs/compress-demo", recipe="compress-demo", resume=True)
    parser.add_argument("--model", help="a trained checkpoint, or a variant to train from its start")
    parser.add_argument("--init", help="weights that the model starts from: a file, timm/NAME, torchvision/NAME")
    parser.add_argument("--head", default="low_rank", choices=[*TRAINED, *FITTED], help="what shortens the embedding")
    parser.add_argument("--dim", type=int, nargs="+", default=[], help="sizes; by default the paper's, in proportion")
    parser.add_argument("--int8", action="store_true", help="one byte per dimension, quantised in training")
    parser.add_argument(
        "--granularity", default="tensor", choices=["tensor", "dimension", "vector"], help="of the scale"
    )
    parser.add_argument("--start", default="pca", choices=["pca", "random", "slice"], help="of a low-rank map")
    options = parse_example(parser, lambda given: {"recipe": "compress", "image_size": PEOPLE})
    model, fields = options.model, training_fields(options)
    if model is None:
        model = Path(options.output_dir) / "base"
        train(TrainSettings(model, **fields))
    head = {"head": options.head, "dims": options.dim, "start": options.start}
    head |= {"int8": options.int8, "granularity": options.granularity}
    fields |= {**recipe_fields(options), "model": str(model), "init": options.init}
    made = compress(CompressSettings(options.output_dir, **head, **fields))
    print(json.dumps({str(folder): results.metrics.to_dict() if results else None for folder, results in made.items()}))


if __name__ == "__main__":
    run(main)
