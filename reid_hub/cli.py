"""The command line: each command parses, calls one job, and prints what was made."""

import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Compact person re-identification: train, evaluate, convert, publish and search.",
)
index_app = typer.Typer(no_args_is_help=True, help="Build galleries to search in.")
app.add_typer(index_app, name="index")


class Listing(StrEnum):
    """What `reid-hub list` can list."""

    datasets = "datasets"
    variants = "variants"
    recipes = "recipes"


Model = Annotated[str, typer.Argument(help="A checkpoint folder or a repository of the Hub.")]
Data = Annotated[str, typer.Option(help="A data set (`reid-hub list datasets`) or NAMESPACE/NAME on the Hub.")]
DataDir = Annotated[Path | None, typer.Option(help="The folder in which the data set was unpacked.")]
DataOption = Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="An option of the data set.")]
DatasetName = Annotated[str | None, typer.Option(help="What the results call the data set.")]
Flip = Annotated[bool, typer.Option(help="Average the vectors of a picture and of its mirror image.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a repository.")]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that is made.")] = Path("runs/demo"),
    epochs: Annotated[float | None, typer.Option(help="In place of the recipe's.")] = None,
):
    """Train, evaluate, save, load back, index and search on drawn people, in minutes on two cores.

    Example: reid-hub demo
    """
    from reid_hub.jobs.demo import run_demo

    run_demo(out, epochs=epochs)


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="The model's folder; a run is resumed from it.")] = Path("runs/train"),
    data: Data = "synthetic",
    data_dir: DataDir = None,
    data_option: DataOption = None,
    dataset_name: DatasetName = None,
    model: Annotated[str, typer.Option(help="A variant (`reid-hub list variants`), or a checkpoint.")] = "res18-x0.25",
    recipe: Annotated[str, typer.Option(help="A recipe (`reid-hub list recipes`).")] = "demo",
    set_value: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Replace a value of the recipe.")
    ] = None,
    image_size: Annotated[tuple[int, int] | None, typer.Option(help="Height and width in pixels.")] = None,
    init: Annotated[
        str | None, typer.Option(help="Weights to start from: a file, torchvision/NAME, timm/NAME, a checkpoint.")
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="In place of the recipe's.")] = None,
    seed: int = 0,
    validation: Annotated[float, typer.Option(help="Share of the training identities held out; 0 for none.")] = 0.1,
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint in --out.")] = False,
    flip: Flip = False,
    channels_last: Annotated[bool, typer.Option(help="Memory format; faster for CNNs in bfloat16.")] = False,
    push: Annotated[str | None, typer.Option(metavar="NAMESPACE/NAME", help="Publish the result.")] = None,
    private: Annotated[bool | None, typer.Option(help="Whether a new repository is private.")] = None,
    arg: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Any of transformers' TrainingArguments.")
    ] = None,
):
    """Train a model by a recipe, evaluate it once on the test set, save it with its results and card.

    Example: reid-hub train --data market1501 --data-dir ~/market --model res50 --recipe bot --arg bf16=true
    """
    from reid_hub.jobs.train import TrainSettings
    from reid_hub.jobs.train import train as run

    settings = TrainSettings(
        output_dir=out,
        data=data,
        data_dir=None if data_dir is None else str(data_dir),
        data_options=_pairs(data_option),
        dataset_name=dataset_name,
        model=model,
        recipe=recipe,
        changes=_pairs(set_value),
        image_size=image_size,
        init=init,
        epochs=epochs,
        seed=seed,
        validation=validation,
        resume=resume,
        flip=flip,
        channels_last=channels_last,
        push_to=push,
        private=private,
        arguments=_pairs(arg),
    )
    _show(run(settings), {"model": out, "best of the validation": out / "best"})


@app.command()
def evaluate(
    model: Model,
    data: Data = "synthetic",
    data_dir: DataDir = None,
    data_option: DataOption = None,
    dataset_name: DatasetName = None,
    revision: Revision = None,
    flip: Flip = False,
    rerank: Annotated[bool, typer.Option(help="k-reciprocal re-ranking (k1 20, k2 6, lambda 0.3).")] = False,
    batch_size: int = 64,
    name: Annotated[str | None, typer.Option(help="What the results call the model.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Checkpoint folder that gets results.json and card; by default MODEL, if local.")
    ] = None,
    pictures: Annotated[Path | None, typer.Option(help="Folder for rank lists, CMC curve and embedding map.")] = None,
):
    """Evaluate a model on the query and gallery of a data set.

    Example: reid-hub evaluate runs/train --data market1501 --data-dir ~/market --flip --pictures pictures
    """
    from reid_hub.data import load_reid_dataset
    from reid_hub.jobs.evaluate import evaluate as run
    from reid_hub.jobs.evaluate import recorded_training
    from reid_hub.jobs.models import open_model

    folder = out or (Path(model) if Path(model).is_dir() else None)
    results = run(
        open_model(model, revision),
        load_reid_dataset(data, data_dir, **_pairs(data_option)),
        dataset_name=dataset_name or data,
        name=name,
        flip=flip,
        rerank=rerank,
        batch_size=batch_size,
        training=recorded_training(model),
        folder=folder,
        pictures=pictures,
    )
    _show(results, {"results and card": folder, "pictures": pictures})


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="A .safetensors, .pth, .pt or .tar file.")],
    variant: Annotated[str, typer.Option(help="What the file was trained as (`reid-hub list variants`).")],
    out: Annotated[Path, typer.Option(help="Folder for the converted checkpoint.")],
    image_size: Annotated[tuple[int, int] | None, typer.Option(help="Height and width in pixels.")] = None,
):
    """Turn a foreign checkpoint (torchreid, torchvision, timm, LUPerson) into a Hub checkpoint.

    Example: reid-hub convert osnet_x0_25_msmt17.pth --variant osnet-x0.25 --out osnet
    """
    from reid_hub.hub.convert import convert_checkpoint

    size = {} if image_size is None else {"image_size": image_size}
    _, conversion = convert_checkpoint(checkpoint, variant, out, **size)
    typer.echo(f"{out}: {conversion}")


@index_app.command("build")
def index_build(
    gallery: Annotated[Path, typer.Argument(help="A folder of pictures; the ids are the paths below it.")],
    model: Annotated[str, typer.Option(help="A checkpoint folder or a repository of the Hub.")],
    out: Annotated[Path, typer.Option(help="Folder for the index.")],
    flip: Flip = True,
):
    """Embed a folder of pictures into an index.

    Example: reid-hub index build gallery --model runs/demo/model --out gallery.index
    """
    from reid_hub.jobs.models import open_model
    from reid_hub.jobs.search import build_index

    index, skipped = build_index(gallery, open_model(model), out, flip=flip)
    for reason in skipped[:5]:
        typer.echo(f"skipped: {reason}", err=True)
    typer.echo(f"{out}: {len(index):,} pictures, {len(skipped):,} skipped because they cannot be read")


@app.command()
def search(
    index: Annotated[Path, typer.Argument(help="What `reid-hub index build` wrote.")],
    query: Annotated[list[Path], typer.Argument(help="Pictures to search for.")],
    model: Annotated[str, typer.Option(help="The model that the index was built with.")],
    top: Annotated[int, typer.Option(min=1, help="How many answers.")] = 10,
    gallery: Annotated[Path | None, typer.Option(help="The folder that was indexed, for --picture.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw the answers into this file.")] = None,
    flip: Flip = True,
):
    """Find the gallery's pictures that are nearest to query pictures.

    Example: reid-hub search gallery.index query.jpg --model runs/demo/model --gallery gallery --picture out.png
    """
    from reid_hub.jobs.models import open_model
    from reid_hub.jobs.search import search_index

    options = {"top": top, "flip": flip, "gallery_dir": gallery, "picture": picture}
    distances, ids = search_index(index, open_model(model), query, **options)
    for path, row, names in zip(query, distances, ids, strict=True):
        typer.echo(str(path))
        for rank, (distance, name) in enumerate(zip(row, names, strict=True), start=1):
            typer.echo(f"  {rank:>3}  {distance:.4f}  {name}")


@app.command()
def card(folder: Annotated[Path, typer.Argument(help="A checkpoint folder.")]):
    """Write the model card of a checkpoint folder from its config.json and results.json.

    Example: reid-hub card runs/train
    """
    from reid_hub.hub.card import write_card

    typer.echo(write_card(folder))


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="A checkpoint folder.")],
    repo: Annotated[str, typer.Argument(metavar="NAMESPACE/NAME")],
    private: Annotated[bool | None, typer.Option(help="Whether a new repository is private.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch to commit to.")] = None,
):
    """Publish a checkpoint folder in one commit: weights, configuration, code, processor, card and results.

    Example: reid-hub push runs/train me/res50-s1-market --private
    """
    from reid_hub.hub.push import push_folder

    typer.echo(push_folder(folder, repo, private=private, revision=revision).commit_url)


@app.command("list")
def list_names(kind: Listing):
    """List what can be named: data sets, model variants, recipes.

    Example: reid-hub list variants
    """
    if kind is Listing.datasets:
        from reid_hub.data import DATASETS

        rows = {name: spec.title for name, spec in DATASETS.items()}
    elif kind is Listing.recipes:
        from reid_hub.training import RECIPES

        rows = {name: recipe.source for name, recipe in RECIPES.items()}
    else:
        from reid_hub.models import list_variants

        rows = dict.fromkeys(list_variants(), "")
    for name, text in rows.items():
        typer.echo(f"{name:<16}{text}".rstrip())


def _pairs(texts: list[str] | None) -> dict[str, Any]:
    """`["a=1", "b=x"]` -> `{"a": 1, "b": "x"}`; a value is JSON where it can be."""
    from reid_hub.training import parse_override

    return dict(parse_override(text) for text in texts or [])


def _show(results: Mapping[str, Any] | None, made: Mapping[str, Path | None]) -> None:
    """Say what was measured, in percent, and where everything lies."""
    if results is not None:
        metrics = ", ".join(f"{name} {100 * value:.1f}" for name, value in results["metrics"].items())
        typer.echo(f"{results['model']} on {results['dataset']['name']}: {metrics} (percent)")
    for name, path in made.items():
        if path is not None and Path(path).exists():
            typer.echo(f"{name}: {path}")


def main() -> None:
    """Run the command line; what is wrong with the input is said in one line, without a traceback."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        app()
    except (ValueError, OSError, ImportError, RuntimeError, StrictDataclassError) as error:
        typer.secho(f"Error: {error}", fg="red", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.secho("Stopped; --resume goes on from the last checkpoint.", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
