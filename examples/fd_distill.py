"""Distill what teachers of parts say into one student of the whole picture: Factorized Distillation.

Without arguments it does all three steps, with four small teachers, on people that reid_hub draws; with a cache only
the last:

    accelerate launch examples/fd_distill.py
    accelerate launch examples/fd_distill.py --init runs/initial --cache DIR --data market1501 \\
        --data-dir DIR --output-dir runs/fd

Ablations: --views Hol, --views Hol+G1, --set options.alpha=0 or options.beta=0; both 0 is the control, which goes on
with the initial student for as long without teachers.
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
from reid_hub.runs.fd import FDSettings, distill, train_initial, train_student


def main() -> None:
    parser = example_parser(
        __doc__, output_dir="runs/fd-demo", recipe="fd-demo", view_size=(96, 96), views=["Hol+G1"], resume=True
    )
    view_options(parser)
    parser.add_argument("--student", default="res18-x0.25", help="variant of the initial student, where none is given")
    parser.add_argument("--init", help="folder of the initial student's training; by default one is trained")
    parser.add_argument("--cache", help="representations of the teachers; by default teachers are trained for them")
    parser.add_argument("--backbone", default="res18-x0.25", help="variant of these teachers")
    options = parse_example(parser, lambda given: {"backbone": "res101", "student": "res18a", **published_views(given)})
    model = {"model": options.student, "backbone": options.backbone, "initial": options.init, "cache": options.cache}
    fields = {**training_fields(options), **recipe_fields(options), **view_fields(options)}
    settings = FDSettings(options.output_dir, **model, **fields)
    if options.cache is None:
        results = distill(settings)
    else:
        print(f"teachers: {', '.join(view.name for view in settings.chosen)}")  # a wrong view is said before training
        settings.initial = settings.initial or str(train_initial(settings))
        results = train_student(settings)
    print(json.dumps({"model": f"{options.output_dir}/student", **(results.metrics.to_dict() if results else {})}))


if __name__ == "__main__":
    run(main)
