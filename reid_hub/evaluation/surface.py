"""Loss surfaces around a trained network, along two random directions (arXiv:1712.09913)."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from reid_hub.errors import ReIDError
from reid_hub.evaluation.plots import saved_figure


def filter_normalised_direction(model: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    """A random direction in weight space, by parameter name and in the parameters' shapes.

    Normal random numbers; every filter (row of a weight) is scaled to the norm of the network's own filter, so that
    directions of networks that differ only in the scale of layers are comparable (arXiv:1712.09913, section 4).
    One-dimensional parameters (biases and weights of norms) get zeros, as in the authors' code.

    Args:
        generator: a CPU generator.
    """
    direction = {}
    for name, parameter in model.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator).to(parameter)
        if parameter.ndim < 2:
            direction[name] = torch.zeros_like(drawn)
            continue
        axes = tuple(range(1, parameter.ndim))
        norms = [torch.linalg.vector_norm(t, dim=axes, keepdim=True) for t in (parameter.detach(), drawn)]
        direction[name] = drawn * (norms[0] / norms[1].clamp(min=1e-12))
    return direction


@torch.no_grad()
def loss_surface(
    model: nn.Module,
    loss: Callable[[], Tensor | float],
    *,
    span: float = 1.0,
    points: int = 21,
    seed: int = 0,
    progress: bool = True,
) -> np.ndarray:
    """Losses on a grid of weights around a model: (points, points), with [i, j] at w + t_i d_1 + t_j d_2.

    t runs evenly from -span to span; d_1 and d_2 are from `filter_normalised_direction`. The model is in evaluation
    mode, with its current running statistics of batch norm. Weights and mode are restored afterwards, even on errors.

    Args:
        loss: computes the loss of the model with its current weights.
        points: an odd number puts the model itself in the middle.

    Raises:
        ValueError: if `points` or `span` is not positive.
    """
    if points < 1 or not span > 0:
        raise ReIDError(f"points must be at least 1 and span above 0, got {points} and {span}")
    generator = torch.Generator().manual_seed(seed)
    first, second = (filter_normalised_direction(model, generator) for _ in range(2))
    parameters, was_training = dict(model.named_parameters()), model.training
    weights = {name: parameter.clone() for name, parameter in parameters.items()}
    steps = np.linspace(-span, span, points) if points > 1 else np.zeros(1)
    losses = np.empty((points, points))
    model.eval()
    try:
        for i, j in tqdm(list(np.ndindex(losses.shape)), desc="loss surface", disable=not progress):
            for name, parameter in parameters.items():
                parameter.copy_(weights[name] + steps[i] * first[name] + steps[j] * second[name])
            losses[i, j] = float(loss())
    finally:
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
        model.train(was_training)
    return losses


def plot_loss_surfaces(path: str | Path, surfaces: Mapping[str, np.ndarray], *, span: float = 1.0) -> Path:
    """Draw loss surfaces side by side, in 3D above and as contours below, with common levels and colours.

    Args:
        surfaces: by title, (N, N) positive losses of `loss_surface`, N at least 2; non-finite losses stay white.

    Raises:
        ValueError: if there is no surface, or one has no finite loss or a single point.
    """
    finite = [grid[np.isfinite(grid)] for grid in surfaces.values()]
    if not finite or any(not len(values) for values in finite):
        raise ReIDError("there is no surface with a finite loss to draw: use a smaller span")
    if min(min(grid.shape) for grid in surfaces.values()) < 2:
        raise ReIDError("a surface must have at least 2 points along each side, got 1: increase points")
    from matplotlib.colors import LogNorm

    together = np.concatenate(finite).clip(min=1e-6)
    low, high = together.min(), max(together.max(), together.min() * 1.01)
    levels, colours = np.geomspace(low, high, 25), LogNorm(low, high)
    with saved_figure(path, (3.6 * len(surfaces) + 0.6, 6.8)) as figure:
        flat = []
        for number, (title, grid) in enumerate(surfaces.items(), start=1):
            grid = np.ma.masked_invalid(grid).clip(min=low)
            x, y = np.meshgrid(*[np.linspace(-span, span, side) for side in grid.shape], indexing="ij")
            hill = figure.add_subplot(2, len(surfaces), number, projection="3d")
            hill.plot_surface(x, y, np.log10(grid), cmap="viridis", vmin=np.log10(low), vmax=np.log10(high))
            hill.set(title=title, zlim=(np.log10(low), np.log10(high)), zlabel="log10 of the loss")
            flat.append(figure.add_subplot(2, len(surfaces), len(surfaces) + number))
            drawn = flat[-1].contourf(x, y, grid, levels=levels, norm=colours, cmap="viridis")
            flat[-1].contour(x, y, grid, levels=levels[::3], colors="white", linewidths=0.4)
            flat[-1].set(aspect="equal", xlabel="first direction", ylabel="" if flat[1:] else "second direction")
            flat[-1].tick_params(labelleft=not flat[1:])
        bar = figure.colorbar(drawn, ax=flat, label="loss", ticks=levels[::6])
        bar.ax.set_yticklabels([f"{level:.3g}" for level in levels[::6]])
        bar.ax.minorticks_off()
    return Path(path)
