"""Any model of the timm library, through transformers' wrapper; timm is optional."""

from collections.abc import Sequence
from difflib import get_close_matches
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from .backbone_library import LibraryBackbone
from .backbone_part_vit import VIT_HEADS, resize_positions
from .families import BNNECK, Family, Foreign, Variant, register


def require_timm() -> ModuleType:
    """The timm library.

    Raises:
        ImportError: naming the extra, unless timm is installed.
    """
    try:
        import timm
    except ImportError:
        raise ImportError(
            "this model's backbone comes from timm, which is not installed: pip install 'reid-hub[timm]'"
        ) from None
    return timm


class TimmBackbone(LibraryBackbone):
    """A model of timm, (B, 3, H, W) -> (B, C, h, w) or tokens (B, N, C).

    Attributes:
        prefix_tokens: how many tokens, class and registers, stand in front of those of the patches.
    """

    @property
    def gives(self) -> tuple[str, ...]:
        return (*super().gives, "patches") if self.prefix_tokens else super().gives

    def build(self, config: PreTrainedConfig) -> tuple[nn.Module, int]:
        require_timm()
        from .timm_model import TimmModel

        model = TimmModel(config)
        self.channels_last = getattr(model.timm_model, "output_fmt", None) == "NHWC"
        self.prefix_tokens = getattr(model.timm_model, "num_prefix_tokens", 0)
        return model, model.timm_model.num_features

    def describe_stages(self, config: PreTrainedConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
        model = self.model.timm_model
        taps = list(getattr(model, "feature_info", ())) if hasattr(model, "forward_intermediates") else []
        reductions = tuple(tap["reduction"] for tap in taps)
        if len(set(reductions)) < 2:  # a transformer's blocks all have the size of its patches
            return (), ()
        return (*(tap["num_chs"] for tap in taps[:-1]), model.num_features), reductions

    def late_stage(self, number: int) -> nn.Module | None:
        return getattr(self.model.timm_model, f"layer{number}", None)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self._channels_first(super().forward(pixel_values))

    def stages(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        if not self.stage_channels:
            return super().stages(pixel_values)
        final, maps = self.model.timm_model.forward_intermediates(pixel_values)
        return *maps[:-1], self._channels_first(final)

    def _channels_first(self, feature_map: Tensor) -> Tensor:
        return feature_map.permute(0, 3, 1, 2) if self.channels_last else feature_map


def own_pooling(model: nn.Module) -> str:
    """The `pooling` of a `ReIDConfig` that is that of a timm model's own classifier.

    For attention pooling there is none: the class token stands for it, or where there is none the mean of the patches.
    """
    prefix_tokens = getattr(model, "num_prefix_tokens", 0)
    averages = prefix_tokens and getattr(model, "global_pool", None) == "avg"
    if getattr(model, "cls_token", None) is not None and not averages:
        return "cls"
    return "patches" if prefix_tokens and not getattr(model, "pool_include_prefix", False) else "avg"


def timm_variant(name: str, image_size: tuple[int, int]) -> dict[str, Any]:
    """Configuration fields for timm's model `name` at `image_size` (height, width).

    The model is probed on the meta device: a ViT takes the image size, a ResNet gets `last_stride` 1, and tokens are
    pooled as the model's own classifier pools them.

    Raises:
        ImportError: without timm.
        ValueError: for a name that timm does not know; the nearest is offered.
    """
    timm = require_timm()
    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), n=3)
        raise ValueError(f"timm has no model {name!r}" + (f"; near: {', '.join(near)}" if near else ""))
    arguments = {"img_size": list(image_size)}
    with torch.device("meta"):
        try:
            model = timm.create_model(name, num_classes=0, **arguments)
        except TypeError:  # a convolutional model takes no image size
            arguments = {}
            model = timm.create_model(name, num_classes=0)
    data = model.pretrained_cfg
    return {
        "backbone_config": {"model_type": "timm_wrapper", "architecture": name, "model_args": arguments or None},
        "last_stride": 1 if hasattr(model, "layer4") else None,
        "pooling": own_pooling(model),
        "image_mean": list(data.get("mean", (0.485, 0.456, 0.406))),
        "image_std": list(data.get("std", (0.229, 0.224, 0.225))),
    }


def _complete(tensors: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
    """The state dict of a ViT with a class token, its positions resized bilinearly to the grid of our model.

    The class token keeps its pretrained position (as TransReID, unlike UniCat); nothing is replaced.

    Raises:
        ValueError: if the grid of the positions cannot be told.
    """
    vit = model.backbone.model.timm_model
    grid, positions = getattr(getattr(vit, "patch_embed", None), "grid_size", None), tensors.get("pos_embed")
    if grid is None or positions is None or positions.ndim != 3 or positions.shape[1] == 1 + grid[0] * grid[1]:
        return tensors
    return {**tensors, "pos_embed": torch.cat([positions[:, :1], resize_positions(positions[:, 1:], grid)], 1)}


def _set_size(backbone: PreTrainedConfig, image_size: Sequence[int]) -> None:
    backbone.model_args["img_size"] = list(image_size)


TIMM = register(
    Family(
        name="timm_wrapper",
        title="timm",
        network=TimmBackbone,
        strided=True,
        variants={
            # TransReID's baseline (arXiv:2102.04378), which Embedding Compression (arXiv:2405.14730) starts from:
            # ViT-B/16 by its class token, stochastic depth 0.1, ranked by what enters the BNNeck. The paper's 85.8 M
            # have 197 positions, those of 224x224.
            "transreid-vit-b": Variant(
                {
                    "architecture": "vit_base_patch16_224",
                    "model_args": {"img_size": [256, 128], "drop_path_rate": 0.1},
                },
                {
                    "pooling": "cls",
                    "retrieve": "features",
                    "image_mean": (0.5, 0.5, 0.5),
                    "image_std": (0.5, 0.5, 0.5),
                },
                backbone_parameters=85_746_432,
            ),
            # MobileNetV2 as torchvision has it, a student of KDEP (arXiv:2203.05180); that of transformers pads
            # otherwise.
            "mobilenetv2": Variant({"architecture": "mobilenetv2_100"}, backbone_parameters=2_223_872),
        },
        from_name=timm_variant,
        prefix="timm",
        # timm's own names; TransReID's BNNeck is called bottleneck.
        foreign=Foreign(
            names=((rf"bottleneck\.({BNNECK})", r"neck.\1"), (r"(.+)", r"backbone.model.timm_model.\1")),
            complete=_complete,
            ignored=VIT_HEADS,
        ),
        # A ViT has a position for each patch.
        fixes_size=lambda backbone: "img_size" in (backbone.model_args or {}),
        set_size=_set_size,
        citation="""@misc{wightman2019timm,
  title  = {PyTorch Image Models},
  author = {Wightman, Ross},
  year   = {2019}, howpublished = {https://github.com/huggingface/pytorch-image-models}
}""",
    )
)
