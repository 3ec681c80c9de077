"""Run one of OSKT's published experiments end to end: teacher, chain, student.

    accelerate launch examples/oskt_scenario.py --scenario ms-m --student res50-s1 --init lupws_r50.pth \\
        --data-dirs msmt17=DIR market1501=DIR --arg bf16=true
    accelerate launch examples/oskt_scenario.py --scenario m --student vit-s-s1 --init pass_vit_small_full.pth \\
        --data-dirs market1501=DIR --keep-ids 0.1 --seed 3      # few-shot

Scenarios: m (Market-1501 alone), ms-m, ms-c, m-c (chain on one set, student on another), ms (MSMT17 alone).
To resume an interrupted run, repeat the command.
"""

import json

from reid_hub.cli.errors import run
from reid_hub.cli.examples import parse
from reid_hub.runs.oskt import ScenarioSettings, run_scenario


def main() -> None:
    given = parse(ScenarioSettings, __doc__).scenario
    results = run_scenario(
        given.scenario,
        given.student,
        given.data_dirs,
        init=given.init,
        out=given.out,
        share=given.keep_ids,
        common={"seed": given.seed, "epochs": given.epochs, "image_size": given.image_size, "arg": given.arg},
    )
    print(json.dumps(results.metrics.to_dict() if results else None))


if __name__ == "__main__":
    run(main)
