"""Commands that use a model: evaluate, calibrate, index, search."""

import typer

from reid_hub.cli.commands import command, show
from reid_hub.runs import calibrate as calibrating
from reid_hub.runs import evaluate as evaluating
from reid_hub.runs import search as searching
from reid_hub.runs.models import open_model


@command(evaluating.EvaluateSettings)
def evaluate(settings: evaluating.EvaluateSettings):
    """Evaluate a model on the query and gallery of a data set.

    Example: reid-hub evaluate runs/train --data market1501 --data-dir ~/market --flip --plots plots
    """
    results = evaluating.evaluate_checkpoint(settings)
    show(results, {"results and card": settings.folder, "plots": settings.how.plots})


@command(searching.IndexBuildSettings)
def index_build(settings: searching.IndexBuildSettings):
    """Embed a folder of images into an index.

    Example: reid-hub index build gallery --model runs/demo/model --out gallery.index
    """
    _build(settings, codec=settings.storage.codec)


@command(searching.IndexAddSettings)
def index_add(settings: searching.IndexAddSettings):
    """Add the new images of a folder to an index. Only new images are embedded and written.

    Example: reid-hub index add gallery --model runs/demo/model --out gallery.index
    """
    _build(settings, add=True)


def _build(settings: searching.IndexAddSettings, codec: str | None = None, add: bool = False) -> None:
    how, model = settings.gallery, open_model(settings.gallery.model)
    index, added, skipped = searching.build_index(
        how.gallery,
        model,
        how.out,
        codec=codec,
        add=add,
        camera_pattern=how.camera_pattern,
        flip=settings.embedding.flip,
    )
    for reason in skipped[:5]:
        typer.echo(f"skipped: {reason}", err=True)
    typer.echo(
        f"{how.out}: {len(index):,} images, {added:,} of them new, {len(skipped):,} skipped because they cannot be read"
    )


@command(searching.SearchSettings)
def search(settings: searching.SearchSettings):
    """Find the gallery images nearest to query images.

    Example: reid-hub search gallery.index query.jpg --model runs/demo/model --gallery gallery --plot answers.png
    """
    how = settings.search
    answer = searching.search_index(
        how.index,
        open_model(how.model),
        how.query,
        top=how.top,
        exclude_camera=how.exclude_camera,
        flip=settings.embedding.flip,
        gallery_dir=how.gallery,
        plot=how.plot,
    )
    if answer.note:
        typer.echo(answer.note, err=True)
    for path, row, names, verdicts in zip(how.query, answer.distances, answer.ids, answer.verdicts, strict=True):
        typer.echo(path)
        for rank, (distance, name, verdict) in enumerate(zip(row, names, verdicts, strict=True), start=1):
            if name is not None:  # fewer results than requested
                typer.echo(f"  {rank:>3}  {distance:.4f}  {name}{'  ' if verdict else ''}{verdict}")


@command(calibrating.CalibrateSettings)
def calibrate(settings: calibrating.CalibrateSettings):
    """Find the distance threshold for two images of one person and store it with the model; `search` then uses it.

    Example: reid-hub calibrate runs/demo/model --false-match-rate 0.01
    """
    decision = calibrating.calibrate_checkpoint(settings)
    low, high = (100 * rate for rate in decision.false_match_interval)
    typer.echo(f"a match up to the {decision.metric} distance {decision.threshold:.4f} ({decision.precision})")
    typer.echo(
        f"false matches: {100 * decision.false_match_rate:.3g} % of {decision.impostor_pairs:,} pairs "
        f"(95 %: {low:.2g} to {high:.2g} %); true matches: {100 * decision.true_match_rate:.1f} % of "
        f"{decision.genuine_pairs:,}"
    )
    typer.echo(f"model: {settings.folder}")
