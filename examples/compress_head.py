"""Compress a model's embedding to fewer dimensions of one byte each. Each size is saved as an evaluated checkpoint.

Without --model it first trains a small model, here on synthetic people, in minutes:

    accelerate launch examples/compress_head.py
    accelerate launch examples/compress_head.py --model transreid-vit-b --init timm/vit_base_patch16_224 \\
        --head low_rank --dim 64 32 --int8 --data market1501 --data-dir DIR

To resume an interrupted run, repeat the command.
"""

import json

from reid_hub.cli.errors import run
from reid_hub.cli.examples import PEOPLE, SMALL, parse, small_model
from reid_hub.runs.compress import CompressSettings, compress


def main() -> None:
    demo = {"model": None, "out": "runs/compress-demo", "image_size": SMALL, "resume": True}
    published = {"recipe": "compress", "image_size": PEOPLE}
    settings = parse(CompressSettings, __doc__, lambda given: published, **demo)
    if settings.model.model is None:
        settings = settings.but(model=small_model(settings, f"{settings.output.out}/base"))
    made = compress(settings)
    print(json.dumps({str(folder): results.metrics.to_dict() if results else None for folder, results in made.items()}))


if __name__ == "__main__":
    run(main)
