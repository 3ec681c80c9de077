"""Expand students from weight chains, then train and evaluate them; each gets its own results and card.

Without arguments it uses the chain that examples/oskt_refine.py refines on synthetic people:

    accelerate launch examples/oskt_expand.py
    accelerate launch examples/oskt_expand.py --chain runs/chain/width8 runs/chain/width16 --student res50-s1 \\
        res50-s2 res50-s3 --data market1501 --data-dir DIR --arg bf16=true --out runs/students

Given several chains of one teacher, each student uses the widest chain that is no wider than the student in any layer.
To resume an interrupted run, repeat the command.
"""

import json

from reid_hub.cli.errors import run
from reid_hub.cli.examples import PEOPLE, SMALL, parse
from reid_hub.runs.expand import StudentSettings, choose_chain
from reid_hub.runs.models import open_chain
from reid_hub.runs.processes import is_main_process, wait_for_everyone
from reid_hub.runs.settings import TrainSettings
from reid_hub.runs.train import train


def main() -> None:
    published = {"recipe": "bot", "image_size": PEOPLE}
    settings = parse(StudentSettings, __doc__, lambda given: published, image_size=SMALL, resume=True)
    how, measured = settings.students, {}
    chains = [open_chain(chain) for chain in how.chain]
    for student in how.student:
        folder = f"{settings.output.out}/student-{student}"
        if is_main_process():
            start = choose_chain(chains, student).expand(student, statistics=not how.paper_faithful)
            start.save_pretrained(f"{folder}/start")
        wait_for_everyone()
        results = train(TrainSettings.like(settings, out=folder, model=f"{folder}/start", origin="oskt"))
        measured[folder] = results.metrics.to_dict() if results else None
    print(json.dumps(measured))


if __name__ == "__main__":
    run(main)
