"""Store what the teachers of Factorized Distillation say of the training pictures; any number of processes share it.

    accelerate launch examples/fd_cache.py --teachers runs/fd-demo/teachers
    accelerate launch examples/fd_cache.py --teachers DIR/teachers --data market1501 --data-dir DIR

Shards that are there are kept, so a killed run goes on. A holistic teacher may be any model of the Hub:
--teacher Hol=NAMESPACE/NAME.
"""

import json
from pathlib import Path

from reid_hub.cli.arguments import (
    example_parser,
    parse_example,
    published_views,
    training_fields,
    view_fields,
    view_options,
)
from reid_hub.cli.errors import run
from reid_hub.runs.fd import FDSettings, make_cache
from reid_hub.training import parse_override


def main() -> None:
    parser = example_parser(__doc__, output_dir="runs/fd-demo/cache", view_size=(96, 96), views=["Hol+G1"])
    view_options(parser)
    parser.add_argument("--teachers", default="runs/fd-demo/teachers", help="folder with a teacher for each view")
    parser.add_argument("--teacher", nargs="*", default=[], metavar="VIEW=MODEL", help="others in their place")
    parser.add_argument("--shard-size", type=int, default=2048, help="pictures to a shard")
    options = parse_example(parser, published_views)
    settings = FDSettings(cache=options.output_dir, **view_fields(options), **training_fields(options))
    teachers = {view.name: str(Path(options.teachers) / view.name) for view in settings.chosen}
    teachers |= {name: str(model) for name, model in map(parse_override, options.teacher)}
    settings.teachers = teachers
    folder = make_cache(settings, shard_size=options.shard_size)
    print(json.dumps({view.name: str(folder / view.name) for view in settings.chosen}))


if __name__ == "__main__":
    run(main)
