"""Proof of KDEP: students pre-trained without labels, then fine-tuned with few, on people and on CIFAR-10.

    python benchmarks/kdep.py --data-dir DIR --cifar-dir DIR   # everything that is not measured yet; stop it any time
    python benchmarks/kdep.py --data-dir DIR --scale full      # a ResNet-50 as teacher and full budgets, for a GPU
    python benchmarks/kdep.py --render                         # tables and plot from what is measured

The first folder holds a data set in Market-1501's layout; the second CIFAR-10, and may be left out. Every run is a
process of its own and resumes from its checkpoints; a run whose results.json lies in benchmarks/kdep is not repeated.
The test identities are met once, at the end of a run.

The teacher is trained on the labels of all training pictures (or given by --people-teacher, --cifar10-teacher).
Students see the same pictures without labels, then the labels of some of the identities, or of some pictures of each
class, the fewer the more epochs. They are compared with random initial weights, and with a trunk that was trained on
all labels for the same epochs. Where labels are fewest the alignments are compared, and fine-tuning at a tenth of the
rate ("-slow").
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

from kdep_table import parts, render
from proofs import is_measured, keep, missing, parse, proof_parser, run_all

ALIGNMENTS = ("svd+pts", "svd", "sn", "sm", "cs.var", "cs.rand", "interp", "pre-relu", "post-relu", "overhaul")
STARTS = ("scratch", "svd+pts", "supervised")  # those that meet every share of the labels
SHARES = {"people": (10, 30, 100), "cifar10": (1, 10, 100)}  # percent of the identities, or of each class' pictures
# Pictures that are not cut at the edges, and a classifier that reads the average itself.
WHOLE = {"config.neck": "none", "config.resize_shortest": None}


@dataclass(frozen=True)
class Scale:
    """What is trained and for how long, of people and of CIFAR-10; `crops` of each picture, see `KDEPSettings`.

    `tuning_epochs` are of each share of the labels: with few of them as many epochs as with all would end before even
    random weights have learnt what there is to learn. `networks` are what all runs have in common, whatever recipe each
    is of: else random weights would be those of another network, on other parts of the pictures.
    """

    teacher: str
    student: str
    sizes: dict[str, tuple[int, int]]
    teacher_epochs: dict[str, float]
    epochs: dict[str, float]
    tuning_epochs: dict[str, tuple[float, ...]]
    crops: int
    pretraining: dict
    networks: dict[str, dict]
    arguments: dict


SCALES = {
    "small": Scale(
        "res50-s5", "res18-x0.25", {"people": (128, 64), "cifar10": (64, 64)}, {"people": 20, "cifar10": 4},
        {"people": 12, "cifar10": 4}, {"people": (60, 30, 15), "cifar10": (100, 20, 6)}, 4,
        {"batch_size": 64, "learning_rate": 0.1}, {"people": {}, "cifar10": {**WHOLE, "config.last_stride": 1}}, {},
    ),
    "full": Scale(
        "res50", "res18", {"people": (256, 128), "cifar10": (224, 224)}, {"people": 120, "cifar10": 30},
        {"people": 90, "cifar10": 90}, {"people": (240, 120, 60), "cifar10": (600, 300, 150)}, 0, {},
        {"people": {}, "cifar10": {**WHOLE, "config.last_stride": None}}, {"bf16": True},
    ),
}  # fmt: skip


def main() -> None:
    parser = proof_parser("kdep", __doc__, SCALES, seeds=(0, 1))
    parser.add_argument("--cifar-dir", help="CIFAR-10 as it is distributed, or one folder of pictures for each class")
    for kind in SHARES:
        parser.add_argument(f"--{kind}-teacher", help="folder of a trained one, in place of training it")
    options = parse(parser, "--cifar-dir", "--people-teacher", "--cifar10-teacher")
    if options.one:
        return execute(options.one, options)
    if not options.render:
        run_all(plan(options), options)
    render(options.results)


def plan(options: argparse.Namespace) -> dict[str, list[str]]:
    """The runs that are left, most wanted first, each behind those that it starts from."""
    wanted = {}
    for seed in options.seeds:
        for kind in ("people", "cifar10") if options.cifar_dir else ("people",):
            shares = SHARES[kind]
            pairs = [(start, share) for start in STARTS for share in shares]
            pairs += [(align, shares[0]) for align in ALIGNMENTS if align not in STARTS]
            pairs += [(f"{start}-slow", shares[0]) for start in STARTS if start != "scratch"]
            for start, share in pairs:
                name = f"{kind}.{start}-{share}" + (f"-seed{seed}" if seed else "")
                wanted[name] = [] if start == "scratch" else [f"{kind}.pre-{start.removesuffix('-slow')}"]
    left = {name: needs for name, needs in wanted.items() if not is_measured(name, options)}
    # What they start from must lie in the work folder, also where its figures are known from an earlier session.
    trunks = missing((need for needs in left.values() for need in needs), options)
    taught = {}
    for trunk in trunks:
        kind, _, start = trunk.partition(".pre-")
        given = start == "supervised" or getattr(options, f"{kind}_teacher")
        taught[trunk] = [] if given else [f"{kind}.teacher"]
    teachers = missing((need for needs in taught.values() for need in needs), options)
    needs = {**left, **taught, **{name: [] for name in teachers}}
    ordered = {}

    def put(name: str) -> None:
        ready = [need for need in needs[name] if need in needs]
        for need in ready:
            put(need)
        ordered.setdefault(name, ready)

    for name in left:
        put(name)
    return ordered


def execute(name: str, options: argparse.Namespace) -> None:
    """One run, resumed where it was; its results.json is copied to benchmarks/kdep."""
    kind, start, share, seed = parts(name)
    scale = SCALES[options.scale]
    data = {"data": "market_layout", "data_dir": options.data_dir, "dataset_name": options.dataset_name}
    if kind == "cifar10":
        data = {"data": "cifar10", "data_dir": options.cifar_dir, "dataset_name": "CIFAR-10"}
    common = {
        **data, "output_dir": options.work / name, "image_size": scale.sizes[kind], "validation": 0,
        "seed": seed, "channels_last": True, "resume": True, "arguments": scale.arguments,
        "changes": scale.networks[kind],
    }  # fmt: skip
    if start == "teacher":
        supervise(kind, {**common, "model": scale.teacher, "epochs": scale.teacher_epochs[kind]})
    elif share is None and start == "pre-supervised":
        recipe = {"recipe": "kdep-people-supervised" if kind == "people" else "kdep-supervised"}
        budget = {"model": scale.student, "epochs": scale.epochs[kind]}
        budget["changes"] = {**common["changes"], **scale.pretraining}
        supervise(kind, {**common, **budget, **recipe})
        if kind == "cifar10":
            save_trunk(options.work / name, trunk_of(kind, "supervised", options))
    elif share is None:
        pretrain_from_teacher(kind, start.removeprefix("pre-"), common, options)
    else:
        trunk = start.removesuffix("-slow")
        model = scale.student if trunk == "scratch" else str(trunk_of(kind, trunk, options))
        few = {"keep_ids" if kind == "people" else "keep": share / 100, "origin": start}
        few["epochs"] = scale.tuning_epochs[kind][SHARES[kind].index(share)]
        supervise(kind, {**common, **few, "model": model}, slowly=trunk != start)
    keep(name, options.work / name / "results.json", options)


def trunk_of(kind: str, start: str, options: argparse.Namespace) -> Path:
    """What a last step starts from."""
    folder = options.work / f"{kind}.pre-{start}"
    return folder / "trunk" if (kind, start) == ("cifar10", "supervised") else folder


def save_trunk(classifier: Path, folder: Path) -> None:
    """A classifier of general pictures without its classes: every last step begins some of its own."""
    from reid_hub import ReIDModel

    ReIDModel.from_pretrained(classifier).save_pretrained(folder)


def supervise(kind: str, fields: dict, slowly: bool = False) -> None:
    """Train with labels: a teacher, a baseline, or a student's last step; by a demo's recipe unless they name one."""
    from reid_hub.runs.classify import ClassifySettings, classify
    from reid_hub.runs.train import TrainSettings, train
    from reid_hub.training import RECIPES

    fields = {"recipe": "demo" if kind == "people" else "classify-demo", **fields}
    if slowly:
        fields["changes"] = {**fields["changes"], "learning_rate": RECIPES[fields["recipe"]].learning_rate / 10}
    if kind == "people":
        train(TrainSettings(**fields))
    else:
        classify(ClassifySettings(**fields, evaluate_every=max(1, round(fields["epochs"]))))


def pretrain_from_teacher(kind: str, align: str, common: dict, options: argparse.Namespace) -> None:
    """KDEP's pre-training; basis and stored features are shared by the alignments."""
    from reid_hub.runs.kdep import KDEPSettings, pretrain

    scale, shared = SCALES[options.scale], options.work / f"{kind}.shared"
    fields = {**common, "changes": {**common["changes"], **scale.pretraining}}
    pretrain(
        KDEPSettings(
            **fields, model=scale.student, recipe="kdep-people" if kind == "people" else "kdep", align=align,
            epochs=scale.epochs[kind], crops=scale.crops,
            teacher=str(getattr(options, f"{kind}_teacher") or options.work / f"{kind}.teacher"),
            basis=str(shared / "basis.safetensors"),
            cache=str(shared / "features"),
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
