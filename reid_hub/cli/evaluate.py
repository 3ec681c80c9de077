"""Commands about a model that is there: evaluate, index, search, calibrate."""

from pathlib import Path
from typing import Annotated

import typer

from reid_hub.cli.options import Data, DataDir, DataOption, DatasetName, Flip, Model, Revision, pairs, show
from reid_hub.errors import ReIDError

CameraPattern = Annotated[
    str | None, typer.Option(help="Regular expression whose first group is the camera's number in a path.")
]


def evaluate(
    model: Model,
    data: Data = "synthetic",
    data_dir: DataDir = None,
    data_option: DataOption = None,
    dataset_name: DatasetName = None,
    revision: Revision = None,
    flip: Flip = False,
    rerank: Annotated[bool, typer.Option(help="k-reciprocal re-ranking (k1 20, k2 6, lambda 0.3).")] = False,
    codec: Annotated[
        str | None, typer.Option(help="Rank stored codes: float16, int8, binary, binary+float16, binary+int8, ...")
    ] = None,
    shortlist: Annotated[
        int, typer.Option(min=1, help="How many the rest of a codec like binary+int8 ranks again.")
    ] = 100,
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
    from reid_hub.runs.evaluate import evaluate as run
    from reid_hub.runs.evaluate import recorded_training
    from reid_hub.runs.models import open_model

    folder = out or (Path(model) if Path(model).is_dir() else None)
    results = run(
        open_model(model, revision),
        load_reid_dataset(data, data_dir, **pairs(data_option)),
        dataset_name=dataset_name or data,
        name=name,
        flip=flip,
        rerank=rerank,
        codec=codec,
        shortlist=shortlist,
        batch_size=batch_size,
        training=recorded_training(model),
        folder=folder,
        pictures=pictures,
    )
    show(results, {"results and card": folder, "pictures": pictures})


def index_build(
    gallery: Annotated[Path, typer.Argument(help="A folder of pictures; the ids are the paths below it.")],
    model: Annotated[str, typer.Option(help="A checkpoint folder or a repository of the Hub.")],
    out: Annotated[Path, typer.Option(help="Folder for the index.")],
    codec: Annotated[
        str | None,
        typer.Option(help="float32, float16, int8, binary, binary+float16, ...; by default what the model is for."),
    ] = None,
    camera_pattern: CameraPattern = None,
    flip: Flip = True,
):
    """Embed a folder of pictures into an index.

    Example: reid-hub index build gallery --model runs/demo/model --out gallery.index
    """
    _build(gallery, model, out, codec=codec, camera_pattern=camera_pattern, flip=flip)


def index_add(
    gallery: Annotated[Path, typer.Argument(help="A folder of pictures; what the index has already is left as it is.")],
    model: Annotated[str, typer.Option(help="The model that the index was built with.")],
    out: Annotated[Path, typer.Option(help="The index's folder.")],
    camera_pattern: CameraPattern = None,
    flip: Flip = True,
):
    """Add the new pictures of a folder to an index; only they are embedded and written.

    Example: reid-hub index add gallery --model runs/demo/model --out gallery.index
    """
    _build(gallery, model, out, add=True, camera_pattern=camera_pattern, flip=flip)


def _build(gallery: Path, model: str, out: Path, **options):
    from reid_hub.runs.models import open_model
    from reid_hub.runs.search import build_index

    index, added, skipped = build_index(gallery, open_model(model), out, **options)
    for reason in skipped[:5]:
        typer.echo(f"skipped: {reason}", err=True)
    typer.echo(
        f"{out}: {len(index):,} pictures, {added:,} of them new, {len(skipped):,} skipped because they cannot be read"
    )


def search(
    index: Annotated[Path, typer.Argument(help="What `reid-hub index build` wrote.")],
    query: Annotated[list[Path], typer.Argument(help="Pictures to search for.")],
    model: Annotated[str, typer.Option(help="The model that the index was built with.")],
    top: Annotated[int, typer.Option(min=1, help="How many answers.")] = 10,
    exclude_camera: Annotated[int | None, typer.Option(help="Leave out what this camera took.")] = None,
    gallery: Annotated[Path | None, typer.Option(help="The folder that was indexed, for --picture.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw the answers into this file.")] = None,
    flip: Flip = True,
):
    """Find the gallery's pictures that are nearest to query pictures.

    Example: reid-hub search gallery.index query.jpg --model runs/demo/model --gallery gallery --picture out.png
    """
    from reid_hub.runs.models import open_model
    from reid_hub.runs.search import search_index

    options = {"top": top, "exclude_camera": exclude_camera, "flip": flip, "gallery_dir": gallery, "picture": picture}
    answer = search_index(index, open_model(model), query, **options)
    if answer.note:
        typer.echo(answer.note, err=True)
    for path, row, names, verdicts in zip(query, answer.distances, answer.ids, answer.verdicts, strict=True):
        typer.echo(str(path))
        for rank, (distance, name, verdict) in enumerate(zip(row, names, verdicts, strict=True), start=1):
            if name is not None:  # fewer answers than asked for
                typer.echo(f"  {rank:>3}  {distance:.4f}  {name}{'  ' if verdict else ''}{verdict}")


def calibrate(
    model: Model,
    data: Data = "synthetic",
    data_dir: DataDir = None,
    data_option: DataOption = None,
    dataset_name: DatasetName = None,
    false_match_rate: Annotated[
        float, typer.Option(min=0, max=1, help="Wanted share of pairs of different people that match.")
    ] = 1e-3,
    flip: Flip = True,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the calibrated model; by default MODEL, if local.")
    ] = None,
):
    """Find the distance up to which two pictures show one person, and keep it with the model; `search` then says so.

    Example: reid-hub calibrate runs/demo/model --false-match-rate 0.01
    """
    from reid_hub.data import load_reid_dataset
    from reid_hub.runs.calibrate import calibrate_model
    from reid_hub.runs.models import open_model

    folder = out or (Path(model) if Path(model).is_dir() else None)
    if folder is None:
        raise ReIDError(f"{model} is a repository of the Hub: give --out, a folder for the calibrated model")
    decision = calibrate_model(
        open_model(model),
        load_reid_dataset(data, data_dir, **pairs(data_option)),
        dataset_name=dataset_name or data,
        false_match_rate=false_match_rate,
        flip=flip,
        folder=folder,
    )
    low, high = (100 * rate for rate in decision.false_match_interval)
    typer.echo(f"a match up to the {decision.metric} distance {decision.threshold:.4f} ({decision.precision})")
    typer.echo(
        f"false matches: {100 * decision.false_match_rate:.3g} % of {decision.impostor_pairs:,} pairs "
        f"(95 %: {low:.2g} to {high:.2g} %); true matches: {100 * decision.true_match_rate:.1f} % of "
        f"{decision.genuine_pairs:,}"
    )
    typer.echo(f"model: {folder}")
