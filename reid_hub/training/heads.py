"""What training leaves beside an exported model: classifier and centers, which a later method may start from."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from reid_hub.files import atomic_file

# In a folder of its own, so that it is never published: a row of a classifier is a template of a training identity.
HEADS_FILE = Path("training", "heads.safetensors")


def write_heads(folder: str | Path, heads: dict[str, Tensor]) -> None:
    """Write the training-only tensors of a method beside its exported model."""
    if heads:
        with atomic_file(Path(folder) / HEADS_FILE) as temporary:
            save_file({name: tensor.detach().contiguous() for name, tensor in heads.items()}, temporary)


def read_heads(folder: str | Path) -> dict[str, Tensor]:
    """The training-only tensors that lie beside an exported model, under their names in the method.

    Raises:
        FileNotFoundError: if there are none.
        ValueError: if the file is damaged.
    """
    path = Path(folder) / HEADS_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no {HEADS_FILE}: give the folder of a training run, not one that was pulled from the Hub"
        )
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): export the model again by resuming its training") from error
