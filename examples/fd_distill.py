"""Distill teachers of image parts into one whole-image student: Factorized Distillation.

Without arguments it runs all three steps, with four small teachers, on synthetic people. With the representations
stored by examples/fd_cache.py, it runs only the last step:

    accelerate launch examples/fd_distill.py
    accelerate launch examples/fd_distill.py --initial runs/initial --cache DIR --data market1501 --data-dir DIR \\
        --out runs/fd

Ablations: --view Hol, --view Hol+G1, --set options.alpha=0 or options.beta=0. With both 0, the initial
student is trained for the same number of epochs without teachers: the control. To resume an interrupted run, repeat
the command.
"""

import json

from reid_hub.cli.errors import run
from reid_hub.cli.examples import FD_DEMO, parse, published_fd
from reid_hub.runs.fd import FDSettings, distill, train_initial, train_student


def main() -> None:
    settings = parse(FDSettings, __doc__, published_fd, **FD_DEMO)
    if settings.representations.cache is None:
        results = distill(settings)
    else:
        print(f"teachers: {', '.join(view.name for view in settings.chosen)}")  # refuses a wrong view before training
        initial = settings.teachers.initial or str(train_initial(settings))
        results = train_student(settings.but(initial=initial))
    print(json.dumps({"model": f"{settings.output.out}/student", **(results.metrics.to_dict() if results else {})}))


if __name__ == "__main__":
    run(main)
