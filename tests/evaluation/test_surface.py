"""Loss surfaces against a quadratic worked by hand, and what makes their directions comparable."""

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from reid_hub.evaluation import filter_normalised_direction, loss_surface, plot_loss_surfaces


class Bowl(nn.Module):
    """A loss that is half the squared distance of its weights to a target: (2, 3) and (3,)."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(2, 3, generator=generator, dtype=torch.float64))
        self.bias = nn.Parameter(torch.randn(3, generator=generator, dtype=torch.float64))
        self.target = torch.randn(2, 3, generator=generator, dtype=torch.float64)

    def loss(self):
        return (self.weight - self.target).square().sum() / 2 + self.bias.square().sum()


def test_the_surface_of_a_bowl_is_the_quadratic_form():
    bowl, generator = Bowl(), torch.Generator().manual_seed(3)
    directions = [filter_normalised_direction(bowl, generator)["weight"].double() for _ in range(2)]
    grid = loss_surface(bowl, bowl.loss, span=0.5, points=5, seed=3, progress=False)
    steps, gap = [-0.5, -0.25, 0.0, 0.25, 0.5], bowl.weight.detach() - bowl.target
    a, b = directions
    for i, s in enumerate(steps):
        for j, t in enumerate(steps):
            by_hand = gap.pow(2).sum() / 2 + s * (gap * a).sum() + t * (gap * b).sum()
            by_hand += s * s * a.pow(2).sum() / 2 + s * t * (a * b).sum() + t * t * b.pow(2).sum() / 2
            by_hand += bowl.bias.detach().pow(2).sum()
            assert grid[i, j] == pytest.approx(by_hand.item(), rel=1e-9)
    assert grid[2, 2] == pytest.approx(bowl.loss().item(), rel=1e-12)


def network(scale: float = 1.0) -> nn.Sequential:
    """conv, BN in evaluation, ReLU, FC; `scale` moves between the layers' weights without changing the function."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5))
    model.eval()
    with torch.no_grad():
        model[0].weight.mul_(scale)
        model[0].bias.mul_(scale)
        model[1].running_mean.mul_(scale)
        model[1].running_var.fill_(1 - 1e-5)
        model[1].bias.mul_(scale)
        model[4].weight.div_(scale)
    return model


def test_every_filter_of_a_direction_is_as_long_as_the_networks_and_vectors_stay():
    model = network()
    with torch.no_grad():
        model[0].weight[2] = 0
    direction = filter_normalised_direction(model, torch.Generator().manual_seed(0))
    assert direction.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        drawn = direction[name]
        if parameter.ndim == 1:
            assert not drawn.any(), name
            continue
        for filter_drawn, filter_own in zip(drawn, parameter, strict=True):
            assert filter_drawn.pow(2).sum().sqrt().item() == pytest.approx(filter_own.pow(2).sum().sqrt().item())
    assert not direction["0.weight"][2].any()
    cosine = torch.cosine_similarity(direction["4.weight"].flatten(), model[4].weight.flatten(), dim=0)
    assert abs(cosine.item()) < 0.5  # drawn, not the weights themselves


def cross_entropy(model, pixels):
    return nn.functional.cross_entropy(model(pixels), torch.arange(len(pixels)) % 5)


def test_moving_a_scale_from_layer_to_layer_does_not_change_the_surface():
    """What the normalisation is for: without it a network of larger weights looks flatter."""
    pixels, grids = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(5)), []
    for model in (network(), network(scale=8.0)):
        loss = partial(cross_entropy, model, pixels)
        grids.append(loss_surface(model, loss, points=5, progress=False))
    np.testing.assert_allclose(grids[0], grids[1], rtol=1e-4)
    assert np.ptp(grids[0]) > 0.1


def test_the_model_is_left_as_it_was_also_when_the_loss_fails():
    model = network().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = []

    def loss():
        modes.append(model.training)
        model(torch.randn(2, 3, 4, 4))
        if len(modes) == 7:
            raise RuntimeError("no more")
        return 1.0

    loss_surface(model, loss, points=2, progress=False)
    with pytest.raises(RuntimeError, match="no more"):
        loss_surface(model, loss, points=3, progress=False)
    assert model.training
    assert not any(modes)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("options", [{"points": 0}, {"span": 0.0}])
def test_a_surface_of_nothing_is_refused(options):
    with pytest.raises(ValueError, match="points must be at least 1 and span above 0"):
        loss_surface(Bowl(), lambda: 0.0, **options)


def test_a_drawing_shows_a_bowl_darkest_in_its_middle(tmp_path):
    t = np.linspace(-1, 1, 21)
    bowl = 0.1 + t[:, None] ** 2 + t[None] ** 2
    steep = np.where(bowl > 1.9, np.inf, 5 * bowl)
    with Image.open(plot_loss_surfaces(tmp_path / "surface.png", {"flat": bowl, "steep": steep})) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    below = pixels[pixels.shape[0] // 2 :]
    purple = (abs(below - [68, 1, 84]) < 12).all(2)  # viridis' darkest
    half = purple.shape[1] // 2
    assert purple[:, :half].sum() > 20  # only the flat one comes that low: they share their colours
    assert purple[:, half : int(1.6 * half)].sum() == 0
    with pytest.raises(ValueError, match="no surface with a finite loss"):
        plot_loss_surfaces(tmp_path / "none.png", {"a": np.full((3, 3), np.nan)})
    with pytest.raises(ValueError, match="at least 2 points along each side"):
        plot_loss_surfaces(tmp_path / "one.png", {"one": np.ones((1, 1))})
