"""Expand students from weight chains, train and evaluate them; each gets results and card.

Without arguments it takes the chain that `oskt_refine.py` makes on people that reid_hub draws:

    accelerate launch examples/oskt_expand.py
    accelerate launch examples/oskt_expand.py --chain runs/chain/width8 runs/chain/width16 --student res50-s1 \\
        res50-s2 res50-s3 --recipe bot --data market1501 --data-dir DIR --image-size 256 128 --args '{"bf16": true}'

Of several chains of one teacher each student takes the widest that is nowhere wider than itself.
"""

import json
from pathlib import Path

from reid_hub.cli.arguments import PEOPLE, example_parser, parse_example, recipe_fields, training_fields
from reid_hub.cli.errors import run
from reid_hub.runs.expand import choose_chain
from reid_hub.runs.models import open_chain
from reid_hub.runs.processes import is_main_process, wait_for_everyone
from reid_hub.runs.train import TrainSettings, train


def main() -> None:
    parser = example_parser(__doc__, output_dir="runs/oskt-demo", resume=True)
    parser.add_argument("--chain", nargs="+", default=["runs/oskt-demo/chain"], help="folders or repositories")
    parser.add_argument("--student", nargs="+", default=["8", "12"], help="variants or widths")
    parser.add_argument("--paper-faithful", action="store_true", help="carry no statistics of norms and no neck over")
    options = parse_example(parser, lambda given: {"recipe": "bot", "image_size": PEOPLE})
    chains, measured = [open_chain(chain) for chain in options.chain], {}
    for name in options.student:
        folder = Path(options.output_dir) / f"student-{name}"
        start = folder / "start"
        if is_main_process():
            chain = choose_chain(chains, name)
            chain.expand(name, statistics=not options.paper_faithful).save_pretrained(start)
        wait_for_everyone()
        fields = {**training_fields(options), **recipe_fields(options)}
        results = train(TrainSettings(folder, model=str(start), origin="oskt", **fields))
        measured[str(folder)] = results.metrics.to_dict() if results else None
    print(json.dumps(measured))


if __name__ == "__main__":
    run(main)
