"""Train the teachers of Factorized Distillation, one for each view of a person: the whole picture and its bands.

Without arguments it trains four small ones on people that reid_hub draws, one after another:

    accelerate launch examples/fd_teachers.py
    accelerate launch examples/fd_teachers.py --backbone res101 --init torchvision/resnet101 \\
        --data market1501 --data-dir DIR --args '{"bf16": true}'

With data that are not drawn all seven views, in the published sizes and by the published recipe, are the default.
--recipe is the final student's, and decides those of all stages; --set and --epochs are the teachers'.
"""

import json

from reid_hub.cli.arguments import (
    example_parser,
    parse_example,
    published_views,
    recipe_fields,
    training_fields,
    view_fields,
    view_options,
)
from reid_hub.cli.errors import run
from reid_hub.runs.fd import FDSettings, train_teachers


def main() -> None:
    parser = example_parser(
        __doc__, output_dir="runs/fd-demo", recipe="fd-demo", view_size=(96, 96), views=["Hol+G1"], resume=True
    )
    view_options(parser)
    parser.add_argument("--backbone", default="res18-x0.25", help="variant of the teachers")
    parser.add_argument("--init", help="weights that they start from: a file, torchvision/NAME, timm/NAME")
    options = parse_example(parser, lambda given: {"backbone": "res101", **published_views(given)})
    fields, recipe = training_fields(options), recipe_fields(options)
    teachers = {"backbone": options.backbone, "teacher_init": options.init, "teacher_epochs": fields.pop("epochs")}
    teachers |= {"recipe": recipe["recipe"], "teacher_changes": recipe["changes"]}
    print(json.dumps(train_teachers(FDSettings(options.output_dir, **teachers, **view_fields(options), **fields))))


if __name__ == "__main__":
    run(main)
