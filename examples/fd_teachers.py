"""Train the teachers of Factorized Distillation, one for each view of a person: the whole image and its bands.

Without arguments it trains four small ones on drawn people, one after another:

    accelerate launch examples/fd_teachers.py
    accelerate launch examples/fd_teachers.py --backbone res101 --teacher-init torchvision/resnet101 \\
        --data market1501 --data-dir DIR --arg bf16=true

With other data, the default is all seven views in the published sizes by the published recipe. --recipe is the final
student's and decides those of all stages; the teachers have --backbone, --teacher-init, --teacher-epochs and
--set-teacher. --model, --init, --epochs and --set are the students' and count for nothing here.
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
