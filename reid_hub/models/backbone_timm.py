"""Models of the timm library as backbones, through transformers' wrapper; timm is an optional dependency."""

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
    """Import and return timm.

    Raises:
        ImportError: if timm is not installed; the message names the extra to install.
    """
    try:
        import timm
    except ImportError:
        raise ImportError(
            "this model's backbone comes from timm, which is not installed: pip install 'reid-hub[timm]'"
        ) from None
    return timm


class TimmBackbone(LibraryBackbone):
    """A timm model, (B, 3, H, W) -> feature map (B, C, h, w) or tokens (B, N, C).

    Attributes:
        prefix_tokens: number of class and register tokens before the patch tokens.
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
        if len(set(reductions)) < 2:  # all blocks of a plain transformer have the same resolution
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
    """The `pooling` of a `ReIDConfig` that matches the pooling of a timm model's own classifier.

    Attention pooling has no equivalent: it is replaced by the class token, or by the mean of the patch tokens if the
    model has no class token.
    """
    prefix_tokens = getattr(model, "num_prefix_tokens", 0)
    averages = prefix_tokens and getattr(model, "global_pool", None) == "avg"
    if getattr(model, "cls_token", None) is not None and not averages:
        return "cls"
    return "patches" if prefix_tokens and not getattr(model, "pool_include_prefix", False) else "avg"


def timm_variant(name: str, image_size: tuple[int, int]) -> dict[str, Any]:
    """Configuration fields for the timm model `name` at `image_size` (height, width).

    The model is built on the meta device to inspect it: a ViT is given the image size, a ResNet gets `last_stride` 1,
    and tokens are pooled as in the model's own classifier.

    Raises:
        ImportError: if timm is not installed.
        ValueError: if timm has no model of this name; the message lists the closest names.
    """
    timm = require_timm()
    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), n=3)
        raise ValueError(f"timm has no model {name!r}" + (f"; near: {', '.join(near)}" if near else ""))
    arguments = {"img_size": list(image_size)}
    with torch.device("meta"):
        try:
            model = timm.create_model(name, num_classes=0, **arguments)
        except TypeError:  # convolutional models do not accept an image size
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
    """Resize the position embeddings in the state dict of a ViT with a class token bilinearly to our model's grid.

    The class token keeps its pretrained position embedding (as in TransReID, unlike UniCat); no other tensor changes.

    Raises:
        ValueError: if the grid of the position embeddings cannot be inferred.
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
            # TransReID's baseline (arXiv:2102.04378), the starting point of Embedding Compression (arXiv:2405.14730):
            # ViT-B/16, class token, stochastic depth 0.1, retrieval by the features before the BNNeck. The paper's
            # 85.8 M parameters include 197 positions, for 224x224 images.
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
            # MobileNetV2 as in torchvision, a student of KDEP (arXiv:2203.05180); transformers' version pads
            # differently.
            "mobilenetv2": Variant({"architecture": "mobilenetv2_100"}, backbone_parameters=2_223_872),
        },
        from_name=timm_variant,
        prefix="timm",
        # timm's own names; TransReID names its BNNeck bottleneck.
        foreign=Foreign(
            names=((rf"bottleneck\.({BNNECK})", r"neck.\1"), (r"(.+)", r"backbone.model.timm_model.\1")),
            complete=_complete,
            ignored=VIT_HEADS,
        ),
        # A ViT has one position embedding per patch.
        fixes_size=lambda backbone: "img_size" in (backbone.model_args or {}),
        set_size=_set_size,
        citation="""@misc{wightman2019timm,
  title  = {PyTorch Image Models},
  author = {Wightman, Ross},
  year   = {2019}, howpublished = {https://github.com/huggingface/pytorch-image-models}
}""",
    )
)
