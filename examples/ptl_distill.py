"""Distill a network with a memory into a plain one, which costs what the backbone costs: PTL's STD.

Without arguments it trains a small teacher and two students on people that reid_hub draws; stop and repeat it to go on:

    accelerate launch examples/ptl_distill.py
    accelerate launch examples/ptl_distill.py --teacher runs/ptl --student res50-conv --lam 0 0.3 0.5 0.8 1 \\
        --data market1501 --data-dir DIR --args '{"bf16": true}'

--student may also be the folder of a trained model to go on with. lam 0 is the baseline.
"""

import json
from pathlib import Path

from reid_hub.cli.arguments import PEOPLE, example_parser, parse_example, recipe_fields, training_fields
from reid_hub.cli.errors import run
from reid_hub.runs.provenance import is_done
from reid_hub.runs.ptl import STDSettings, distill, side_network
from reid_hub.runs.train import TrainSettings, train


def main() -> None:
    parser = example_parser(__doc__, output_dir="runs/ptl-demo", recipe="std-demo", resume=True)
    parser.add_argument("--teacher", help="folder or repository of a model; by default one is trained on drawn people")
    parser.add_argument("--student", default="res18-x0.25-conv", help="a variant or a folder")
    parser.add_argument("--init", help="weights that the student starts from")
    parser.add_argument("--lam", type=float, nargs="+", default=[0.0, 0.8], help="weights of the distillation")
    options = parse_example(
        parser, lambda given: {"recipe": "std", "image_size": PEOPLE, "student": "densenet161", "lam": [0.8]}
    )
    teacher, fields = options.teacher, training_fields(options)
    if teacher is None:
        teacher = str(Path(options.output_dir) / "teacher")
        stage = TrainSettings(teacher, recipe="ptl-demo", flip=True, **side_network("res18-x0.25"), **fields)
        if not (stage.resume and is_done(stage)):
            train(stage)
    student = {"teacher": teacher, "model": options.student, "init": options.init, "lams": options.lam}
    made = distill(STDSettings(options.output_dir, **student, **fields, **recipe_fields(options)))
    print(json.dumps({str(folder): results.metrics.to_dict() if results else None for folder, results in made.items()}))


if __name__ == "__main__":
    run(main)
