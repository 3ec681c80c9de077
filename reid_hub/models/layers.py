"""Layers with custom initialisation; `ReIDModel._init_weights` calls their `initialise`."""

import torch
from torch import nn
from transformers import initialization as init

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class NormalLinear(nn.Linear):
    """Linear layer with weights initialised from N(0, std^2) and bias 0."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *, std: float):
        super().__init__(in_features, out_features, bias=bias)
        self.std = std

    def initialise(self) -> None:
        """Draw the weight."""
        init.normal_(self.weight, std=self.std)
        _zero(self.bias)


class FanInLinear(nn.Linear):
    """Linear layer with Kaiming initialisation by fan-in, as in the published code of MGN, instead of fan-out."""

    def initialise(self) -> None:
        """Draw the weight."""
        init.kaiming_normal_(self.weight, mode="fan_in", nonlinearity="relu")
        _zero(self.bias)


class FanInConv2d(nn.Conv2d):
    """Convolution with Kaiming initialisation by fan-in, as in the published code of PTL, instead of fan-out."""

    def initialise(self) -> None:
        """Draw the weight."""
        init.kaiming_normal_(self.weight, mode="fan_in", nonlinearity="relu")
        _zero(self.bias)


class SpreadNorm(nn.BatchNorm1d):
    """Batch norm with gains initialised from N(1, 0.02^2), as in the published code of MGN."""

    def initialise(self) -> None:
        """Reset the statistics and draw the gains."""
        reset_statistics(self)
        init.normal_(self.weight, mean=1.0, std=0.02)
        _zero(self.bias)


def reset_statistics(norm: nn.Module) -> None:
    """Reset the running statistics of a batch norm or `BNNeck`: mean 0, variance 1, no batches."""
    init.zeros_(norm.running_mean)
    init.ones_(norm.running_var)
    init.zeros_(norm.num_batches_tracked)


def _zero(bias: torch.Tensor | None) -> None:
    if bias is not None:
        init.zeros_(bias)
