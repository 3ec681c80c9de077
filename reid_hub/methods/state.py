"""What a training leaves beside its exported model for a later one to start from: classifier, centers and the like.

They lie in a folder of their own so that they are never published: a row of a classifier is a template of a training
identity.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from reid_hub.errors import MissingError, ReIDError
from reid_hub.files import atomic_file
from reid_hub.logging import get_logger

STATE_FILE = Path("training", "heads.safetensors")
_AGAIN = "export the model again by resuming its training"

logger = get_logger(__name__)


def write_state(folder: str | Path, state: dict[str, Tensor], identities: Sequence[int] = ()) -> None:
    """Write the training-only tensors of a method (`Method.training_state`) beside its exported model.

    Args:
        identities: the data set's pid of each row of the classifier, so that nobody takes it for other people's.
    """
    if state:
        tensors = {name: tensor.detach().contiguous() for name, tensor in state.items()}
        metadata = {"format": "pt", "identities": json.dumps([int(pid) for pid in identities])}
        with atomic_file(Path(folder) / STATE_FILE) as temporary:
            save_file(tensors, temporary, metadata=metadata)


def known_identities(folder: str | Path) -> list[int] | None:
    """The data set's pids that the classifier beside an exported model knows, in order; None where nothing says so.

    Raises:
        ReIDError: if the file is damaged.
    """
    path = Path(folder) / STATE_FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="np") as file:
            return json.loads((file.metadata() or {}).get("identities", "[]")) or None
    except SafetensorError as error:
        raise ReIDError(f"{path} is damaged ({error}): {_AGAIN}") from error


def read_state(folder: str | Path, identities: Sequence[int] | None = None) -> dict[str, Tensor]:
    """The training-only tensors beside an exported model, under their names in the method.

    Args:
        identities: the data set's pids that the classifier must know, in order; None accepts any.

    Raises:
        MissingError: if there are none.
        ReIDError: if the file is damaged, or of other identities.
    """
    path = Path(folder) / STATE_FILE
    if not path.is_file():
        raise MissingError(
            f"{folder} has no {STATE_FILE}: give the folder of a training run, not one that was pulled from the Hub"
        )
    known = known_identities(folder)
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise ReIDError(f"{path} is damaged ({error}): {_AGAIN}") from error
    if identities is not None:
        rows = {len(tensor) for name, tensor in state.items() if name.startswith("classifier") and tensor.ndim == 2}
        if (known and known != [int(pid) for pid in identities]) or rows - {len(identities)}:
            others = "other" if known and len(known) == len(identities) else f"{max(rows)}"
            raise ReIDError(
                f"{folder} was trained on {others} identities, here are {len(identities)}: give the same data, "
                f"--validation, --keep-ids and --seed as there, or remove its {STATE_FILE} to start the classifier anew"
            )
    return state


def start_state(
    method: nn.Module,
    folder: str | Path,
    identities: Sequence[int],
    log: Callable[[str], None] = logger.warning,
) -> None:
    """Start a method's classifier and centers from those that a training left in a folder; what does not fit is logged.

    Raises:
        ReIDError: if they are of other identities.
    """
    try:
        found = read_state(folder, identities)
    except MissingError:
        log(f"{folder} has no classifier beside it: it starts from random weights")
        return
    state = method.state_dict()
    used = {name: tensor for name, tensor in found.items() if name in state and tensor.shape == state[name].shape}
    method.load_state_dict({**state, **used})
    if left := sorted(set(found) - set(used)):
        log(f"this recipe has another classifier than {folder}: {', '.join(left)} of it are not used")
