"""Methods whose model may remember earlier batches (`config.side`; Progressive Transfer Learning, arXiv:1908.02492)."""

from torch import Tensor

from reid_hub.methods.base import Method
from reid_hub.models.bconv import all_memory, set_memory


class RememberingMethod(Method):
    """A method whose model forgets at each epoch, and remembers across a checkpoint; not every model has a memory."""

    def start_epoch(self, epoch: int) -> None:
        """Let the model forget."""
        set_memory(self.model, [])

    def carried(self) -> dict[str, Tensor]:
        """The model's memory."""
        return {f"memory.{number}": tensor for number, tensor in enumerate(all_memory(self.model))}

    def restore_carried(self, state: dict[str, Tensor]) -> None:
        """Give the model the memory that `carried` returned."""
        set_memory(self.model, [state[f"memory.{number}"] for number in range(len(state))])
