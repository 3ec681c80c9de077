"""Where features are taken from a network: the pooled last map, in front of the ReLU that ends it."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from reid_hub.models import ReIDModel

Calls = Sequence[tuple[nn.Module, int]]  # a module, and which of its calls in a forward pass


class Tap:
    """Features of a model with its final ReLU left out, (B, 3, H, W) -> (B, D); KDEP, arXiv:2203.05180.

    A map is averaged over its positions, tokens are pooled as the model pools them. The ReLU is left out while the tap
    runs and at no other time, so the model itself stays as it is: its parameters, and what it computes. Any backbone
    will do: the ReLU (or ReLU6) is found in what a forward pass calls, and where the map ends in none there is nothing
    to leave out.

    Args:
        behind_head: take the features behind the embedding block (FC and BN, without their ReLU) of a model that has
            one, where its classifier would stand.
        relu: keep the final ReLU.

    Attributes:
        dim: D.
        signed: whether features can be negative.
        is_map: whether there is a map to average, not tokens or a vector.
    """

    def __init__(self, model: ReIDModel, *, behind_head: bool = False, relu: bool = False):
        self.model, self.behind_head = model, behind_head and model.config.embedding["name"] == "linear"
        with torch.no_grad(), _evaluating(model):
            size = (2, 3, *model.config.image_size)
            generator = torch.Generator().manual_seed(0)
            pixels = torch.rand(size, generator=generator).to(model.device, model.dtype)
            self._left_out = [] if relu else trailing_relus(model, lambda: self._last(pixels))
            last = self.last(pixels)
            # Of a ResNet whose last norms start at 0, what is in front of the final ReLU is still what left one.
            self.is_map = last.ndim == 4
            self.dim, self.signed = self.pool(last).shape[1], bool(self._left_out) or bool((last < 0).any())

    def __call__(self, pixel_values: Tensor) -> Tensor:
        return self.pool(self.last(pixel_values))

    def last(self, pixel_values: Tensor) -> Tensor:
        """What is pooled: a map (B, D, h, w), tokens (B, N, D), or behind a head the vector (B, D)."""
        with left_out(self._left_out):
            return self._last(pixel_values)

    def pool(self, last: Tensor) -> Tensor:
        """What `last` gave -> (B, D)."""
        if last.ndim == 4:
            return last.mean((2, 3))
        if last.ndim == 2:
            return last
        return self.model.pooling.fuse(self.model.pooling(last))

    def _last(self, pixel_values: Tensor) -> Tensor:
        return self.model(pixel_values).features if self.behind_head else self.model.backbone(pixel_values)


def trailing_relus(model: nn.Module, run: Callable[[], Tensor]) -> list[tuple[nn.Module, int]]:
    """The calls of ReLUs that, side by side along the channels, are what `run` gives; empty where it ends in none.

    Several are found where branches are joined behind their ReLUs (SqueezeNet, Inception), whatever is called between
    them; one and the same module may be called many times (torchvision's blocks).
    """
    calls: list[tuple[nn.Module, int, Tensor]] = []
    counts: Counter[nn.Module] = Counter()

    def note(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        calls.append((module, counts[module], output))
        counts[module] += 1

    relus = [module for module in model.modules() if isinstance(module, (nn.ReLU, nn.ReLU6))]
    hooks = [module.register_forward_hook(note) for module in relus]
    try:
        result = run()
    finally:
        for hook in hooks:
            hook.remove()
    found, channel = [], 0
    while channel < result.shape[1]:
        rest = result[:, channel:]
        # The last call first: a ReLU of what ReLUs gave, joined, is the one that ends the network.
        for module, number, output in reversed(calls):
            if output.ndim == rest.ndim and torch.equal(output, rest[:, : output.shape[1]]):
                found.append((module, number))
                channel += output.shape[1]
                break
        else:
            return []
    # A ReLU called behind all of them is of a branch that is added, which changes nothing while its norm starts at 0.
    return found if calls and calls[-1][:2] in found else []


@contextmanager
def left_out(calls: Calls) -> Iterator[None]:
    """Let these calls of modules return their input, while the block runs."""
    counts: Counter[nn.Module] = Counter()

    def skip(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        number, counts[module] = counts[module], counts[module] + 1
        return inputs[0] if (module, number) in calls else output

    modules = dict.fromkeys(module for module, _ in calls)
    in_place = [module.inplace for module in modules]
    hooks = [module.register_forward_hook(skip) for module in modules]
    try:
        for module in modules:
            module.inplace = False  # else the input that is handed on would hold the output already
        yield
    finally:
        for module, before, hook in zip(modules, in_place, hooks, strict=True):
            module.inplace = before
            hook.remove()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
