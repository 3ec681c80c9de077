"""Commands about the Hub: convert, card, push, list."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Listing(StrEnum):
    """What `reid-hub list` can list."""

    datasets = "datasets"
    variants = "variants"
    recipes = "recipes"


def convert(
    checkpoint: Annotated[Path, typer.Argument(help="A .safetensors, .pth, .pt or .tar file.")],
    variant: Annotated[str, typer.Option(help="What the file was trained as (`reid-hub list variants`).")],
    out: Annotated[Path, typer.Option(help="Folder for the converted checkpoint.")],
    image_size: Annotated[tuple[int, int] | None, typer.Option(help="Height and width in pixels.")] = None,
    tables: Annotated[
        Path | None, typer.Option(help="JSON tables of a weight chain that OSKT's authors released.")
    ] = None,
):
    """Turn a foreign checkpoint (torchreid, torchvision, timm, LUPerson, PASS, OSKT) into a Hub checkpoint.

    Example: reid-hub convert osnet_x0_25_msmt17.pth --variant osnet-x0.25 --out osnet
    """
    from reid_hub.hub.convert import convert_checkpoint
    from reid_hub.hub.convert_chain import convert_chain

    size = {} if image_size is None else {"image_size": image_size}
    if tables is not None:
        convert_chain(checkpoint, tables, variant, out, **size)
        typer.echo(f"{out}: a weight chain; the refined teacher lies in {out / 'teacher'}")
        return
    _, conversion = convert_checkpoint(checkpoint, variant, out, **size)
    typer.echo(f"{out}: {conversion}")


def card(folder: Annotated[Path, typer.Argument(help="A checkpoint folder.")]):
    """Write the model card of a checkpoint folder from its config.json and results.json.

    Example: reid-hub card runs/train
    """
    from reid_hub.hub.card import write_card

    typer.echo(write_card(folder))


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
