"""Fine-tune on one data set after the other, with a new classifier for each: PTL's multi-step transfer.

Without arguments it goes over two populations that reid_hub draws; stop and repeat it to go on:

    accelerate launch examples/ptl_transfer.py
    accelerate launch examples/ptl_transfer.py --backbone res50 --init torchvision/resnet50 \\
        --order duke market msmt17 --data-dir FOLDER_OF_ALL --args '{"bf16": true}'

--order duke=DIR market=DIR says where each lies; market-duke is the union of two training sets. --model goes on with a
trained folder, such as a distilled student.
"""

import argparse
import json

from reid_hub.cli.arguments import PEOPLE, example_parser, is_drawn, recipe_fields, training_fields
from reid_hub.cli.errors import run
from reid_hub.runs.ptl import CELLS, TransferSettings, side_network, transfer, with_changes


def main() -> None:
    parser = example_parser(__doc__, output_dir="runs/transfer", recipe="ptl-demo", resume=True, data=None)
    parser.add_argument("--order", nargs="+", default=["synthetic", "synthetic"], metavar="NAME[=DIR]")
    parser.add_argument("--backbone", default="res18-x0.25", help="res50, densenet161, mgn, res18-x0.25")
    parser.add_argument("--cell", default="v1", choices=CELLS)
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--model", help="a variant or a folder to start from, in place of backbone and cell")
    parser.add_argument("--init", help="weights that the first step starts from")
    options = parser.parse_args()
    if not all(is_drawn(step.split("=", 1)[0]) for step in options.order):
        parser.set_defaults(backbone="densenet161", recipe="ptl", image_size=PEOPLE)
        options = parser.parse_args()
    fields = {**training_fields(options), **recipe_fields(options), "init": options.init}
    if fields.pop("data") or fields.pop("dataset_name"):
        parser.error("the data sets are those of --order, by their own names: leave --data and --dataset-name out")
    fields["model"] = options.model
    if options.model is None:
        fields |= with_changes(side_network(options.backbone, options.cell, options.memory), fields["changes"])
    places: dict[str, str] = {}
    for name, place in (step.split("=", 1) for step in options.order if "=" in step):
        if places.setdefault(name, place) != place:
            parser.error(f"{name} lies in {places[name]} and in {place}: give one folder for one name")
    order = [step.split("=", 1)[0] for step in options.order]
    made = transfer(TransferSettings(options.output_dir, order=order, data_dirs=places, **fields))
    print(json.dumps({str(folder): results.metrics.to_dict() if results else None for folder, results in made.items()}))


if __name__ == "__main__":
    run(main)
