"""What training leaves beside an exported model: classifier and centers, which a later method may start from."""

import json
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from reid_hub.files import atomic_file

# In a folder of its own, so that it is never published: a row of a classifier is a template of a training identity.
HEADS_FILE = Path("training", "heads.safetensors")
_AGAIN = "export the model again by resuming its training"


def write_heads(folder: str | Path, heads: dict[str, Tensor], identities: Sequence[int] = ()) -> None:
    """Write the training-only tensors of a method beside its exported model.

    Args:
        identities: the data set's pid of each row of the classifier, so that nobody takes it for other people's.
    """
    if heads:
        tensors = {name: tensor.detach().contiguous() for name, tensor in heads.items()}
        metadata = {"format": "pt", "identities": json.dumps([int(pid) for pid in identities])}
        with atomic_file(Path(folder) / HEADS_FILE) as temporary:
            save_file(tensors, temporary, metadata=metadata)


def known_identities(folder: str | Path) -> list[int] | None:
    """The data set's pids that the classifier beside an exported model knows, in order; None where nothing says so."""
    path = Path(folder) / HEADS_FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="np") as file:
            return json.loads((file.metadata() or {}).get("identities", "[]")) or None
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): {_AGAIN}") from error


def read_heads(folder: str | Path, identities: Sequence[int] | None = None) -> dict[str, Tensor]:
    """The training-only tensors that lie beside an exported model, under their names in the method.

    Args:
        identities: the data set's pids that the classifier must know, in order; None takes any.

    Raises:
        FileNotFoundError: if there are none.
        ValueError: if the file is damaged, or of other identities.
    """
    path = Path(folder) / HEADS_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no {HEADS_FILE}: give the folder of a training run, not one that was pulled from the Hub"
        )
    known = known_identities(folder)
    try:
        heads = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): {_AGAIN}") from error
    if identities is not None:
        rows = {len(tensor) for name, tensor in heads.items() if name.startswith("classifier") and tensor.ndim == 2}
        if (known and known != [int(pid) for pid in identities]) or rows - {len(identities)}:
            others = "other" if len(known) == len(identities) else f"{max(rows)}"
            raise ValueError(
                f"{folder} was trained on {others} identities, here are {len(identities)}: give the same data, "
                f"--validation, --keep-ids and --seed as there, or remove its {HEADS_FILE} to start the classifier anew"
            )
    return heads
