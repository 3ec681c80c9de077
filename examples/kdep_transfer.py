"""Fine-tune a pre-trained backbone, KDEP's last step: for re-identification with few labels, or for classification.

Without --model it first pre-trains a backbone; without arguments it then fine-tunes it on a tenth of the synthetic
people:

    accelerate launch examples/kdep_transfer.py
    accelerate launch examples/kdep_transfer.py --model runs/res18 --keep-ids 0.1 --data market1501 --data-dir DIR \\
        --out runs/res18-market
    accelerate launch examples/kdep_transfer.py --model runs/res18 --task classification --data classes \\
        --data-dir DIR --out runs/res18-classes

Compare with training from random weights (--model VARIANT), and with a backbone trained on the labels for the same
number of epochs (recipe kdep-people-supervised, or kdep-supervised for classes; then --model VARIANT --init FOLDER).
"""

import json
from typing import Any

from reid_hub.cli.errors import run
from reid_hub.cli.examples import PEOPLE, SMALL, parse
from reid_hub.runs.classify import ClassifySettings, classify
from reid_hub.runs.kdep import PretrainSettings, TuneSettings, pretrain
from reid_hub.runs.train import train


def published(given: TuneSettings) -> dict[str, Any]:
    """The transfer protocols: KDEP's for classes, Bag of Tricks for people."""
    if given.task.task == "classification":
        return {"recipe": "transfer", "image_size": [224, 224], "evaluate_every": 5}
    return {"recipe": "bot", "image_size": PEOPLE}


def drawn(given: TuneSettings) -> dict[str, Any]:
    """A few of the synthetic people, or synthetic shapes."""
    if given.task.task == "classification":
        return {"data": "shapes", "recipe": "classify-demo"}
    return {"keep_ids": 0.1}


def main() -> None:
    settings = parse(TuneSettings, __doc__, published, drawn, model=None, image_size=SMALL, validation=0.0)
    classes, model = settings.task.task == "classification", settings.model
    if model.model is None:
        shown = {"out": f"{settings.output.out}/backbone", "image_size": model.image_size, "resume": True}
        shown |= {"seed": settings.recipe.seed, "arg": settings.recipe.arg, "set": settings.recipe.of_machine}
        # For classification, the backbone is pre-trained on synthetic people.
        shown |= {} if classes else {name: getattr(settings.data, name) for name in ("data", "data_dir", "data_option")}
        pretrain(PretrainSettings.of(**shown))
        settings = settings.but(model=shown["out"])
    results = classify(ClassifySettings.like(settings)) if classes else train(settings)
    print(json.dumps({"model": settings.output.out, **(results.metrics.to_dict() if results else {})}))


if __name__ == "__main__":
    run(main)
