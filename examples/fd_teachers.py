"""Train the teachers of Factorized Distillation, one per view of a person: the whole image and its bands.

Without arguments it trains four small teachers on synthetic people, one after another:

    accelerate launch examples/fd_teachers.py
    accelerate launch examples/fd_teachers.py --backbone res101 --teacher-init torchvision/resnet101 \\
        --data market1501 --data-dir DIR --arg bf16=true

With other data, the default is all seven views in the published sizes with the published recipe. --recipe is the final
student's recipe and determines the recipes of all stages. Configure the teachers with --backbone, --teacher-init,
--teacher-epochs and --set-teacher. --model, --init, --epochs and --set apply to the students and are ignored here.
To resume an interrupted run, repeat the command.
"""

import json

from reid_hub.cli.errors import run
from reid_hub.cli.examples import FD_DEMO, parse, published_fd
from reid_hub.runs.fd import FDSettings, train_teachers


def main() -> None:
    print(json.dumps(train_teachers(parse(FDSettings, __doc__, published_fd, **FD_DEMO))))


if __name__ == "__main__":
    run(main)
