"""Hub commands: convert, card, push, list."""

from dataclasses import dataclass
from typing import Literal

import typer

from reid_hub.cli.commands import command
from reid_hub.data import DATASETS
from reid_hub.hub.card import write_card
from reid_hub.hub.convert import convert_checkpoint
from reid_hub.hub.convert_chain import convert_chain
from reid_hub.hub.push import push_folder
from reid_hub.models import list_variants
from reid_hub.runs.options import Part, Settings, option
from reid_hub.runs.settings import IMAGE_SIZE
from reid_hub.training import RECIPES


@dataclass(frozen=True)
class ConvertArguments(Part):
    """The file to convert, and the resulting model."""

    checkpoint: str = option(None, "A .safetensors, .pth, .pt or .tar file.", argument=True)
    variant: str = option(None, "Variant of the model in the file (`reid-hub list variants`).", required=True)
    out: str = option(None, "Folder for the converted checkpoint.", required=True)
    image_size: list[int] | None = option(None, IMAGE_SIZE, nargs=2, metavar="PIXELS")
    tables: str | None = option(None, "JSON tables of a weight chain released by OSKT's authors.")


@dataclass(frozen=True)
class ConvertSettings(Settings):
    """The settings of `reid-hub convert`."""

    convert: ConvertArguments = ConvertArguments()


@command(ConvertSettings)
def convert(settings: ConvertSettings):
    """Convert a third-party checkpoint (torchreid, torchvision, timm, LUPerson, PASS, OSKT) to a Hub checkpoint.

    Example: reid-hub convert osnet_x0_25_msmt17.pth --variant osnet-x0.25 --out osnet
    """
    how = settings.convert
    size = {} if how.image_size is None else {"image_size": tuple(how.image_size)}
    if how.tables is not None:
        convert_chain(how.checkpoint, how.tables, how.variant, how.out, **size)
        typer.echo(f"{how.out}: a weight chain; the refined teacher lies in {how.out}/teacher")
        return
    _, conversion = convert_checkpoint(how.checkpoint, how.variant, how.out, **size)
    typer.echo(f"{how.out}: {conversion}")


@dataclass(frozen=True)
class FolderArguments(Part):
    """A local model."""

    folder: str = option(None, "A checkpoint folder.", argument=True)


@dataclass(frozen=True)
class CardSettings(Settings):
    """The settings of `reid-hub card`."""

    folder: FolderArguments = FolderArguments()


@command(CardSettings)
def card(settings: CardSettings):
    """Write the model card of a checkpoint folder from its config.json and results.json.

    Example: reid-hub card runs/train
    """
    typer.echo(write_card(settings.folder.folder))


@dataclass(frozen=True)
class PushArguments(Part):
    """Where to publish a model."""

    repo: str = option(None, "Hub repository.", argument=True, metavar="NAMESPACE/NAME")
    private: bool | None = option(None, "Make the repository private if it is created.")
    revision: str | None = option(None, "Branch to commit to.")


@dataclass(frozen=True)
class PushSettings(CardSettings):
    """The settings of `reid-hub push`."""

    target: PushArguments = PushArguments()


@command(PushSettings)
def push(settings: PushSettings):
    """Publish a checkpoint folder in one commit: weights, configuration, code, processor, card and results.

    Example: reid-hub push runs/train me/res50-s1-market --private
    """
    to = settings.target
    typer.echo(push_folder(settings.folder.folder, to.repo, private=to.private, revision=to.revision).commit_url)


@dataclass(frozen=True)
class ListArguments(Part):
    """What to list."""

    kind: Literal["datasets", "variants", "recipes"] = option(None, "What to list.", argument=True)


@dataclass(frozen=True)
class ListSettings(Settings):
    """The settings of `reid-hub list`."""

    listing: ListArguments = ListArguments()


@command(ListSettings)
def list_names(settings: ListSettings):
    """List the available data sets, model variants or recipes.

    Example: reid-hub list variants
    """
    rows = {
        "datasets": lambda: {name: spec.title for name, spec in DATASETS.items()},
        "recipes": lambda: {name: recipe.source for name, recipe in RECIPES.items()},
        "variants": lambda: dict.fromkeys(list_variants(), ""),
    }[settings.listing.kind]()
    width = max(map(len, rows))
    for name, text in rows.items():
        typer.echo(f"{name:<{width}}  {text}".rstrip())
