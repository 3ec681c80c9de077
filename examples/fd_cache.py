"""Store the teachers' representations of the training images for Factorized Distillation.

Any number of processes share the work:

    accelerate launch examples/fd_cache.py --out runs/fd-demo
    accelerate launch examples/fd_cache.py --teachers DIR --cache DIR --data market1501 --data-dir DIR

The teachers are those that examples/fd_teachers.py saved below --out; --teacher Hol=NAMESPACE/NAME selects another
model for a view. To resume an interrupted run, repeat the command: existing files are kept.
"""

import json

from reid_hub.cli.errors import run
from reid_hub.cli.examples import FD_DEMO, parse, published_fd
from reid_hub.runs.fd import CacheSettings, make_cache


def main() -> None:
    settings = parse(CacheSettings, __doc__, published_fd, **FD_DEMO)
    folder = make_cache(settings.with_teachers(), shard_size=settings.shards.shard_size)
    print(json.dumps({view.name: str(folder / view.name) for view in settings.chosen}))


if __name__ == "__main__":
    run(main)
