"""Expand students from weight chains, train and evaluate them; each gets results and card.

Without arguments it takes the chain that `oskt_refine.py` makes on people that reid_hub draws:

    accelerate launch examples/oskt_expand.py
    accelerate launch examples/oskt_expand.py --chain runs/chain/width8 runs/chain/width16 --student res50-s1 \\
        res50-s2 res50-s3 --recipe bot --data market1501 --data-dir DIR --image-size 256 128 --args '{"bf16": true}'

Of several chains of one teacher each student takes the widest that is nowhere wider than itself.
"""

import argparse
import json
from pathlib import Path

from reid_hub.jobs.expand import choose_chain
from reid_hub.jobs.models import open_chain
from reid_hub.jobs.processes import is_main_process, wait_for_everyone
from reid_hub.jobs.train import TrainSettings, train
from reid_hub.training import parse_override


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chain", nargs="+", default=["runs/oskt-demo/chain"], help="folders or repositories")
    parser.add_argument("--student", nargs="+", default=["8", "12"], help="variants or widths")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/oskt-demo"), help="one folder per student in it")
    parser.add_argument("--paper-faithful", action="store_true", help="carry no statistics of norms and no neck over")
    parser.add_argument("--data", default="synthetic", help="name of the data set, any")
    parser.add_argument("--data-dir", help="folder in which the data set was unpacked")
    parser.add_argument("--data-options", type=json.loads, default={}, help="options of the data set, as JSON")
    parser.add_argument("--image-size", type=int, nargs=2, default=(128, 64), help="height and width in pixels")
    parser.add_argument("--recipe", default="demo", help="name of the recipe")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="values that replace the recipe's")
    parser.add_argument("--epochs", type=float, help="in place of the recipe's")
    parser.add_argument("--validation", type=float, default=0.1, help="share of the training identities held out")
    parser.add_argument("--keep-ids", type=float, default=1.0, help="share of the identities kept: few-shot")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--args", type=json.loads, default={}, help="transformers.TrainingArguments, as JSON")
    options = parser.parse_args()
    chains, measured = [open_chain(chain) for chain in options.chain], {}
    for name in options.student:
        folder = options.output_dir / f"student-{name}"
        start = folder / "start"
        if is_main_process():
            chain = choose_chain(chains, name)
            chain.expand(name, statistics=not options.paper_faithful).save_pretrained(start)
        wait_for_everyone()
        settings = TrainSettings(
            output_dir=folder,
            data=options.data,
            data_dir=options.data_dir,
            data_options=options.data_options,
            model=str(start),
            recipe=options.recipe,
            changes=dict(parse_override(text) for text in options.set),
            image_size=options.image_size,
            epochs=options.epochs,
            validation=options.validation,
            keep_ids=options.keep_ids,
            seed=options.seed,
            resume=True,
            origin="oskt",
            arguments=options.args,
        )
        results = train(settings)
        measured[str(folder)] = results["metrics"] if results else None
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
