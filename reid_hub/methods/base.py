"""What every training method is: a `ReIDModel` together with the parts that only training needs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from reid_hub.data.batch import Batch
from reid_hub.errors import ReIDError
from reid_hub.logging import get_logger
from reid_hub.models import ReIDModel

logger = get_logger(__name__)


class TrainingSubset(Protocol):
    """The images of a run, as far as a method has to know them.

    Attributes:
        pids: int64 (N,), from 0 to C - 1.
        identities: int64 (C,), the data set's own number of each pid.
    """

    pids: np.ndarray
    identities: np.ndarray


def _cannot_embed(model: ReIDModel, retrieve: str | None = None) -> Tensor:
    raise ReIDError("the method embeds the training images before it trains: give RunContext `embed`")


@dataclass(frozen=True)
class RunContext:
    """What a run knows when it builds its method; see `Method.from_run`.

    Attributes:
        model: the model to train, with its initial weights.
        subset: what it is trained on.
        options: the recipe's options of the method.
        source: folder or repository of the model, if the classifier that its training left there is to go on; None
            starts a new one.
        seed: of the run.
        embed: embeds the training images with any model, (model, retrieve=None) -> (N, D) in the order of `subset`;
            `retrieve` as in `ReIDModel.forward`.
        parts: what else the method needs and the run has made before, by name; each `from_run` documents its own.
        log: called with what the user should know.
    """

    model: ReIDModel
    subset: TrainingSubset
    options: Mapping[str, Any] = field(default_factory=dict)
    source: str | Path | None = None
    seed: int = 0
    embed: Callable[..., Tensor] = _cannot_embed
    parts: Mapping[str, Any] = field(default_factory=dict)
    log: Callable[[str], None] = logger.warning

    @property
    def num_ids(self) -> int:
        """Identities to train on."""
        return len(self.subset.identities)

    def part(self, name: str, makes_it: str) -> Any:
        """A part that the method cannot do without.

        Args:
            makes_it: the command that makes it, for the message.

        Raises:
            ReIDError: if the run has no such part.
        """
        if self.parts.get(name) is None:
            raise ReIDError(f"this method needs `{name}`, and the run has none: use {makes_it}")
        return self.parts[name]


class Method(nn.Module):
    """A model being trained. Calling it gives a loss; `export` gives the model alone. Hooks do nothing by default.

    Works as the model of `transformers.Trainer` and in a plain Accelerate loop. It deliberately has no `config`
    attribute: the Trainer would write its own settings into it, and the exported model would carry them.

    Attributes:
        model: the model being trained.
        citation: BibTeX of the method, for the model card.
        crops: 0 augments every visit to an image anew; with R, epoch e shows it as its crop number e mod R, which is a
            function of the seed and the image alone.
    """

    citation: str = ""
    crops: int = 0

    def __init__(self, model: ReIDModel):
        super().__init__()
        self.model = model

    @classmethod
    def from_run(cls, run: RunContext) -> Self:
        """Build the method for a run. A method that needs more than model and data documents its `run.parts` here.

        Raises:
            ReIDError: if a part is missing, naming it and the command that makes it, or something does not fit.
        """
        return cls(run.model, run.num_ids, **run.options)  # type: ignore[call-arg]  # a subclass takes more

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """A batch of normalised images -> "loss" to minimise and its unweighted parts, all scalars."""
        raise NotImplementedError

    def export(self) -> ReIDModel:
        """The trained model without anything that only training needed."""
        return self.model

    def training_state(self) -> dict[str, Tensor]:
        """What `export` leaves out and a later method may start from, such as the classifier; by name, not copied."""
        return {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("model.")}

    def set_progress(self, step: int, total_steps: int, epoch: float) -> None:
        """Called before each training batch with the number of steps done, of steps in all, and of epochs done."""

    def start_epoch(self, epoch: int) -> None:
        """Called before the first batch of every epoch, counted from 0, and before the first one of a resumed run."""

    def carried(self) -> dict[str, Tensor]:
        """What one batch leaves to the next in this process, besides weights; for checkpoints, not for the model."""
        return {}

    def restore_carried(self, state: dict[str, Tensor]) -> None:
        """Go on in the middle of an epoch from what `carried` gave there, after `start_epoch`."""

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        """What the Trainer calls for `activation_checkpointing=True`; only transformer backbones have it."""
        self.model.activation_checkpointing_enable(**kwargs)

    def gradient_checkpointing_enable(self, **kwargs: Any) -> None:
        """The same under the name that transformers 5.17 calls."""
        self.model.gradient_checkpointing_enable(**kwargs)


@torch.no_grad()
def gather_batch(tensor: Tensor) -> Tensor:
    """The rows of all processes, one after another, (B, ...) -> (B * processes, ...), without gradient."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return tensor
    rows = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, tensor.contiguous())
    return torch.cat(rows)
