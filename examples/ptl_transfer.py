"""Fine-tune on several data sets in sequence, with a new classifier for each: PTL's multi-step transfer.

Without arguments it uses two populations of synthetic people:

    accelerate launch examples/ptl_transfer.py
    accelerate launch examples/ptl_transfer.py --backbone res50 --init torchvision/resnet50 \\
        --order duke market msmt17 --data-dir FOLDER_OF_ALL --arg bf16=true

--data-dirs duke=DIR market=DIR sets the folders of individual data sets. market-duke is the union of two training sets.
--model starts from a trained folder, such as a distilled student. To resume an interrupted run, repeat the command.
"""

import json
from typing import Any

from reid_hub.cli.errors import run
from reid_hub.cli.examples import PEOPLE, SMALL, is_drawn, parse
from reid_hub.errors import ReIDError
from reid_hub.runs.ptl import ArmTransferSettings, transfer, with_arm


def published(given: ArmTransferSettings) -> dict[str, Any]:
    """DenseNet-161 with the published recipe, unless all data sets are synthetic."""
    if all(map(is_drawn, given.order)):
        return {}
    return {"backbone": "densenet161", "recipe": "ptl", "image_size": PEOPLE}


def main() -> None:
    settings = parse(ArmTransferSettings, __doc__, published, data=None, image_size=SMALL, resume=True)
    if settings.data.data or settings.data.dataset_name or settings.data.data_option:
        raise ReIDError(
            "the data sets are those of --order, by their own names: leave out --data and --dataset-name, and give "
            "--data-options NAME=JSON in place of --data-option"
        )
    made = transfer(with_arm(settings))
    print(json.dumps({str(folder): results.metrics.to_dict() if results else None for folder, results in made.items()}))


if __name__ == "__main__":
    run(main)
