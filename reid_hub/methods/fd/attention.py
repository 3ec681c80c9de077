"""What the branches of a distilled student look at, and the student itself."""

from collections.abc import Mapping

import torch
from torch import Tensor

from reid_hub.data.views import VIEWS
from reid_hub.errors import ReIDError
from reid_hub.methods.fd.branches import FeatureMapBranch
from reid_hub.models import ReIDModel


@torch.no_grad()
def attention_maps(model: ReIDModel, trained: Mapping[str, Tensor], pixel_values: Tensor) -> dict[str, Tensor]:
    """Lengths of the features at each place of a map, (B, 3, H, W) -> (B, h, w) each.

    For plots like figure 4 of Factorized Distillation (arXiv:1811.08073).

    Args:
        model: the student, in evaluation mode.
        trained: what its training left beside it (`read_state`), with the FMFB branches "fmfb.VIEW...".

    Returns:
        "student", of its feature map, then each view, in the paper's order, of the features that its branch selects
        from that map.

    Raises:
        ReIDError: if there are no such branches.
    """
    views = {name.split(".")[1] for name in trained if name.startswith("fmfb.")}
    if not views:
        raise ReIDError("there are no branches on the feature map: the student was trained with alpha=0, or not by FD")
    feature_map = model(pixel_values).feature_map
    maps = {"student": feature_map.norm(dim=1)}
    for view in sorted(views, key=lambda view: (list(VIEWS).index(view) if view in VIEWS else len(VIEWS), view)):
        state = {
            name.removeprefix(f"fmfb.{view}."): t for name, t in trained.items() if name.startswith(f"fmfb.{view}.")
        }
        width, channels = state["select.0.weight"].shape[:2]
        branch = FeatureMapBranch(channels, len(state["embed.fc.weight"]), width)
        branch.load_state_dict(state)
        maps[view] = branch.to(feature_map.device).eval().select(feature_map).norm(dim=1)
    return maps
