"""DepGraph (arXiv:2301.12900, CVPR 2023): structural pruning to exact widths, by the authors' torch-pruning library."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from reid_hub.errors import MissingLibraryError, ReIDError, RunError
from reid_hub.models import ReIDConfig, ReIDModel
from reid_hub.models.neck import BNNeck
from reid_hub.registry import lookup

IMPORTANCES = {"magnitude": "GroupMagnitudeImportance", "taylor": "GroupTaylorImportance"}


def prune_to(
    model: ReIDModel,
    config: ReIDConfig,
    *,
    importance: str = "magnitude",
    classifier: Tensor | None = None,
    loss: Callable[[ReIDModel, nn.Linear | None], Tensor] | None = None,
    example_inputs: Tensor | None = None,
) -> ReIDModel:
    """The network with its least important channels removed until it is as wide as `config` says.

    Every group of channels that depend on each other is ranked and cut on its own (local pruning, in one step). What
    comes back holds the kept weights and running statistics; it is checked to compute what the pruned network does.
    The library cannot follow channels into a vector of several parts (MSINet, the part-token ViT): there it prunes the
    backbone alone, and what stands behind starts fresh.

    Args:
        model: trained, best with `SparsityLearning`; left as it is.
        importance: "magnitude" (squared weights) or "taylor" (|weight * gradient|, for ViT).
        classifier: weight (K, D) of the classifier behind the neck; its columns count for the channels they read,
            unless the vector has several parts.
        loss: for "taylor", called with a copy of the model in training mode and the classifier, gives a scalar.
        example_inputs: images (B >= 2, 3, H, W) to trace the network with; by default of the model's image size.

    Raises:
        MissingLibraryError: without the torch-pruning library.
        ReIDError: if the two differ in more than width, or the student is wider anywhere.
        RuntimeError: if the library cannot reach the widths, or leaves a network that computes something else.
    """
    pruning = _library()
    score = getattr(pruning.importance, lookup(IMPORTANCES, importance, "importance"))()
    if (importance == "taylor") != (loss is not None):
        raise ReIDError(f"a loss belongs to importance='taylor', got importance={importance!r} and loss={loss!r}")
    with torch.random.fork_rng(devices=[]):  # most of what is drawn here is overwritten
        student = ReIDModel(copy.deepcopy(config)).to(model.device, model.dtype)
        traced = _Traced(model, classifier)
    ratios = _ratios(traced.model, student)
    if example_inputs is None:
        example_inputs = torch.zeros(2, 3, *model.config.image_size)
    example_inputs = example_inputs.to(model.device, model.dtype)
    with torch.enable_grad(), warnings.catch_warnings():
        # Of tokens and positions the library cuts the last axis, which is right, and all widths are checked below.
        warnings.filterwarnings("ignore", message="Unwrapped parameters detected")
        pruner = pruning.pruner.BasePruner(
            traced,
            example_inputs,
            importance=score,
            pruning_ratio=0.0,
            pruning_ratio_dict=ratios,
            ignored_layers=[layer for layer in [traced.classifier] if layer is not None],
            # Fresh dictionaries: the library writes into these, and into its defaults.
            num_heads=_heads(traced.model),
            in_channel_groups={},
            out_channel_groups={},
        )
        if loss is not None:
            traced.backward(loss)
    pruner.step()
    due, pruned = student.state_dict(), traced.model.state_dict()
    names = [name for name in due if traced.whole or name.startswith("backbone.")]
    wrong = [name for name in names if name not in pruned or pruned[name].shape != due[name].shape]
    if wrong:
        raise RuntimeError(f"torch-pruning did not reach the width of {wrong[0]} and {len(wrong) - 1} more tensors")
    student.load_state_dict(due | {name: pruned[name] for name in names})
    _check_equal(traced.eval(), student.eval(), example_inputs)
    return student.train(model.training)


class _Traced(nn.Module):
    """A copy of the model as the library can trace it: from images to logits, with the norms that torch has."""

    def __init__(self, model: ReIDModel, classifier: Tensor | None):
        super().__init__()
        # A pooling that declares channels rearranges them, which the library gets wrong.
        self.whole = not hasattr(model.pooling, "width_groups")
        self.model = copy.deepcopy(model).requires_grad_(True)
        for path, module in list(self.model.named_modules()):
            if isinstance(module, BNNeck):
                self.model.set_submodule(path, _plain_norm(module))
        self.classifier = None
        if classifier is not None:
            num_ids, dim = classifier.shape
            self.classifier = nn.Linear(dim, num_ids, bias=False).to(model.device, model.dtype)
            self.classifier.load_state_dict({"weight": classifier})

    def forward(self, pixel_values: Tensor) -> Tensor:
        if not self.whole:
            return self.model.backbone(pixel_values)
        embeddings = self.model(pixel_values, retrieve="neck").embeddings
        return embeddings if self.classifier is None else self.classifier(embeddings)

    def backward(self, loss: Callable[[ReIDModel, nn.Linear | None], Tensor]) -> None:
        """Gradients of the loss in training mode; the running statistics stay as they are."""
        buffers = {name: buffer.clone() for name, buffer in self.named_buffers()}
        self.train().zero_grad()
        loss(self.model, self.classifier).backward()
        part = self if self.whole else self.model.backbone
        without = [name for name, parameter in part.named_parameters() if parameter.grad is None]
        if without:
            raise ReIDError(f"the loss does not depend on {without[0]}, which 'taylor' needs a gradient of")
        for name, buffer in self.named_buffers():
            buffer.copy_(buffers[name])


def _library() -> Any:
    try:
        import torch_pruning
    except ImportError as error:
        raise MissingLibraryError("pruning needs the torch-pruning library: pip install 'reid-hub[pruning]'") from error
    return torch_pruning


def _plain_norm(neck: BNNeck) -> nn.BatchNorm1d:
    """The library knows torch's norms only, and needs their bias; it is zero and counts for nothing."""
    norm = nn.BatchNorm1d(len(neck.weight), neck.eps, neck.momentum).to(neck.weight)
    norm.load_state_dict({"bias": torch.zeros_like(neck.weight), **neck.state_dict()})
    return norm


def _ratios(model: ReIDModel, student: ReIDModel) -> dict[nn.Module, float]:
    """Which share of its channels each layer and norm is to lose."""
    wide, narrow = (
        {name: module for name, module in network.named_modules() if _has_weight(module)}
        for network in (model, student)
    )
    if wide.keys() != narrow.keys():
        name = min(wide.keys() ^ narrow.keys())
        raise ReIDError(
            f"a network is pruned in width alone, but only the {'model' if name in wide else 'student'} has {name}: "
            "choose a student of the model's family, depth and head"
        )
    ratios = {}
    for name, module in wide.items():
        size, kept = len(module.weight), len(narrow[name].weight)
        if kept > size:
            raise ReIDError(f"{name} has {size} channels and cannot be pruned to {kept}: a student is nowhere wider")
        # The library keeps int(size * (1 - ratio)); the twentieth keeps rounding errors from costing a channel.
        ratios[module] = 1 - (kept + 0.05) / size
    return ratios


def _has_weight(module: nn.Module) -> bool:
    return isinstance(getattr(module, "weight", None), Tensor)


def _heads(model: ReIDModel) -> dict[nn.Module, int]:
    """The number of heads of each layer that puts out queries, keys and values."""
    if not hasattr(model.backbone, "width_groups"):
        return {}
    groups = model.width_groups()
    return {
        model.get_submodule(name.rpartition(".")[0]): groups.groups[group].blocks
        for name, group in groups.queries.items()
    }


@torch.no_grad()
def _check_equal(traced: _Traced, student: ReIDModel, example_inputs: Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(example_inputs.shape, generator=generator).to(example_inputs)
    if traced.whole:
        expected, got = traced.model(pixels).features, student(pixels).features
    else:
        expected, got = traced.model.backbone(pixels), student.backbone(pixels)
    error, scale = (got - expected).abs().max(), expected.abs().max()
    if not error <= 1e-3 * scale:
        raise RunError(
            f"the pruned network and the one of this configuration differ by {error:.2g} in features of up to "
            f"{scale:.2g}: give a configuration that differs from the model's in width alone"
        )
