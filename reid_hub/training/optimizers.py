"""Optimisers by name, their parameter groups and their rates."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from reid_hub.errors import ReIDError
from reid_hub.registry import lookup
from reid_hub.training.schedules import Schedule

# Both add weight_decay * weight to the gradient (coupled L2), as the recipes' sources do.
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}


def build_optimizer(
    model: nn.Module,
    name: str,
    *,
    lr: float,
    weight_decay: float,
    bias_lr_factor: float = 1.0,
    options: Mapping[str, Any] | None = None,
) -> torch.optim.Optimizer:
    """An optimiser over all trainable parameters; the biases are a group with `bias_lr_factor` times the rate.

    As in the sources, a bias is what has "bias" in its name, and weight decay falls on everything.

    Raises:
        ValueError: for an unknown optimiser, or if nothing is trainable.
    """
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    weights = [parameter for name, parameter in trainable if "bias" not in name]
    biases = [parameter for name, parameter in trainable if "bias" in name]
    groups = [{"params": weights, "lr": lr}, {"params": biases, "lr": lr * bias_lr_factor}]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ReIDError("nothing to train: no parameter of the model requires a gradient")
    return lookup(OPTIMIZERS, name, "optimizer")(groups, lr=lr, weight_decay=weight_decay, **(options or {}))


def build_scheduler(optimizer: torch.optim.Optimizer, schedule: Schedule, total_steps: int, lr: float) -> LambdaLR:
    """A scheduler to be stepped after every optimiser step, over the rates that `build_optimizer` gave the groups.

    Args:
        total_steps: optimiser steps of the whole run.
        lr: the recipe's learning rate, on which warm-up and end of a cosine depend for all groups.
    """

    def factor(group: float) -> Callable[[int], float]:
        return lambda step: schedule.rate_at(step, total_steps, lr, group) / group

    rates = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]
    return LambdaLR(optimizer, [factor(rate) for rate in rates])
