"""Proof of Embedding Compression on real people: mAP against bytes per vector, every head with and without int8.

    python benchmarks/compression.py --model MODEL --data-dir DIR      # what is not measured yet; stop it any time
    python benchmarks/compression.py --render                          # table and plot from what is measured

MODEL is a trained checkpoint folder, with the classifier that its training left beside it; DIR a data set in
Market-1501's layout. Every head goes on from MODEL for the same number of epochs under one recipe, so does the
embedding at full length ("slice" of all dimensions), which is what the others are compared with. Pruning retrains for
0.2 of them from size to size, as published. The controls train nothing. The test identities are met once a run.
"""

import argparse
from pathlib import Path

from reid_hub.evaluation import Results

HERE = Path(__file__).parent
RECIPE, EPOCHS = "compress-bot", 3
CODES = ("float16", "int8", "binary", "binary+int8", "binary+float16", "binary+float32")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="the trained model's folder")
    parser.add_argument("--data-dir", help="the data set, in Market-1501's layout")
    parser.add_argument("--dataset-name", default="market1501_tr751", help="what the tables call it")
    parser.add_argument("--epochs", type=float, default=EPOCHS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--heads", nargs="+", help="only these")
    parser.add_argument("--work", type=Path, default=Path("runs/compression"), help="checkpoints")
    parser.add_argument("--render", action="store_true", help="only write table and plot")
    options = parser.parse_args()
    if not options.render:
        if not options.model or not options.data_dir:
            parser.error("--model and --data-dir are needed")
        for seed in options.seeds:
            for head, int8, dims in plan(options):
                if not options.heads or head in options.heads:
                    measure(options, head, int8, dims, seed)
        for codec in CODES:
            measure_codec(options, codec)
    from compression_table import render

    render(HERE / "compression")


def plan(options: argparse.Namespace) -> list[tuple[str, bool, list[int]]]:
    """What is compressed how, most wanted first."""
    from reid_hub.runs.models import open_model

    full = open_model(options.model).embedding_dim
    sizes = [round(full * size / 768) for size in (576, 384, 192, 64, 32)]
    pairs = [(head, int8) for head in ("none", "pca", "random") for int8 in (False, True)]
    plan = [(head, int8, [] if head == "none" else sizes) for head, int8 in pairs]
    plan += [("slice", False, [full])]
    trained = [(head, int8) for int8 in (True, False) for head in ("low_rank", "slice")]
    plan += [(head, int8, [sizes[-1]]) for head, int8 in trained]
    plan += [(head, int8, sizes) for int8 in (False, True) for head in ("prune", "matryoshka")]
    plan += [("slice", True, [full])]
    return plan + [(head, int8, [size]) for size in (sizes[2], sizes[3], *sizes[:2]) for head, int8 in trained]


def measure(options: argparse.Namespace, head: str, int8: bool, dims: list[int], seed: int) -> None:
    """One call of the job; the results of each size are copied beside this file."""
    from reid_hub.runs.compress import CompressSettings, compress
    from reid_hub.runs.models import open_model

    work = options.work / (f"seed{seed}" if seed else "seed0")
    settings = CompressSettings(
        output_dir=work, model=options.model, head=head, dims=dims, int8=int8, recipe=RECIPE, epochs=options.epochs,
        data="market_layout", data_dir=options.data_dir, dataset_name=options.dataset_name, seed=seed, validation=0,
        channels_last=True, resume=True,
    )  # fmt: skip
    model = open_model(options.model)
    names = [f"{model.config.variant}.{settings.at(dim).origin}" for dim in dims or [model.embedding_dim]]
    names = [name + (f"-seed{seed}" if seed else "") for name in names]
    if all((HERE / "compression" / name / "results.json").is_file() for name in names):
        return
    for results in compress(settings).values():
        record(results, results.model + (f"-seed{seed}" if seed else ""))


def measure_codec(options: argparse.Namespace, codec: str) -> None:
    """The model itself with its gallery stored by a codec, if that is not measured yet."""
    from reid_hub import load_reid_dataset
    from reid_hub.runs.evaluate import evaluate, recorded_training
    from reid_hub.runs.models import open_model

    model = open_model(options.model)
    name = f"{model.config.variant}.{codec}"
    if not (HERE / "compression" / name / "results.json").is_file():
        splits = load_reid_dataset("market_layout", options.data_dir)
        training = recorded_training(options.model)
        record(
            evaluate(model, splits, dataset_name=options.dataset_name, name=name, codec=codec, training=training), name
        )


def record(results: Results, name: str) -> None:
    """Keep the results of one run beside this file."""
    results.write(HERE / "compression" / name / "results.json")
    print(name, {name: round(100 * value, 1) for name, value in results.metrics.to_dict().items()}, flush=True)


if __name__ == "__main__":
    main()
