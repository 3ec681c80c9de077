"""One of OSKT's published experiments from beginning to end: teacher, chain, student; stop and repeat it to go on.

    accelerate launch examples/oskt_scenario.py --scenario ms-m --student res50-s1 --init lupws_r50.pth \\
        --data-dir msmt17=DIR market1501=DIR --args '{"bf16": true}'
    accelerate launch examples/oskt_scenario.py --scenario m --student vit-s-s1 --init pass_vit_small_full.pth \\
        --data-dir market1501=DIR --share 0.1 --seed 3      # few-shot

Scenarios: m (Market-1501 alone), ms-m, ms-c, m-c (chain on one set, student on another), ms (MSMT17 alone).
"""

import argparse
import json

from reid_hub.cli.errors import run
from reid_hub.runs.oskt import SCENARIOS, run_scenario


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", choices=SCENARIOS, default="m")
    parser.add_argument("--student", default="res50-s1", help="a published student")
    parser.add_argument("--data-dir", nargs="+", required=True, metavar="NAME=DIR", help="folder of each data set")
    parser.add_argument("--init", help="weights that the teacher starts from")
    parser.add_argument("--output-dir", default="runs/oskt", help="holds teacher, chain and student")
    parser.add_argument("--share", type=float, default=1.0, help="of the student's identities: few-shot")
    parser.add_argument("--epochs", type=float, help="of each training, in place of the recipes'")
    parser.add_argument("--image-size", type=int, nargs=2, help="in place of the variant's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--args", type=json.loads, default={}, help="transformers.TrainingArguments, as JSON")
    options = parser.parse_args()
    common = {"seed": options.seed, "epochs": options.epochs, "arguments": options.args}
    results = run_scenario(
        options.scenario,
        options.student,
        dict(text.split("=", 1) for text in options.data_dir),
        init=options.init,
        out=options.output_dir,
        share=options.share,
        common={**common, "image_size": options.image_size},
    )
    print(json.dumps(results.metrics.to_dict() if results else None))


if __name__ == "__main__":
    run(main)
