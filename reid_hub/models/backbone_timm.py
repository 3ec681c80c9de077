"""Any model of the timm library as a backbone, through transformers' wrapper; timm is optional."""

from difflib import get_close_matches

import torch
from torch import Tensor, nn
from transformers import TimmWrapperConfig, TimmWrapperModel

try:
    import timm
except ImportError:
    timm = None


def require_timm() -> None:
    """Raise an ImportError that names the extra unless timm is installed."""
    if timm is None:
        raise ImportError("this model's backbone comes from timm, which is not installed: pip install 'reid-hub[timm]'")


class TimmModel(TimmWrapperModel):
    """transformers' wrapper with timm's own initialisation.

    The wrapper expects to be loaded and would draw every weight from N(0, 0.02), which no CNN trains well from. timm
    has already initialised its weights when `_init_weights` is called; only what no state dict holds is rebuilt.
    """

    def __init__(self, config: TimmWrapperConfig):
        require_timm()
        super().__init__(config)

    @torch.no_grad()
    def _init_weights(self, module):
        if hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()

    def forward(self, pixel_values: Tensor, do_pooling: bool = False, **kwargs):
        """The wrapper's, without what timm puts behind the last map unless asked, whatever the configuration says.

        Nothing here reads it, and some heads have layers of their own (MobileNetV4, GhostNet), whose cost, batch
        statistics and ReLU would be taken for the trunk's.
        """
        return super().forward(pixel_values, do_pooling=do_pooling, **kwargs)


def own_pooling(model: nn.Module) -> str:
    """The `pooling` of a `ReIDConfig` that is that of a timm model's own classifier.

    For attention pooling there is none: the class token stands for it, or where there is none the mean of the patches.
    """
    prefix_tokens = getattr(model, "num_prefix_tokens", 0)
    averages = prefix_tokens and getattr(model, "global_pool", None) == "avg"
    if getattr(model, "cls_token", None) is not None and not averages:
        return "cls"
    return "patches" if prefix_tokens and not getattr(model, "pool_include_prefix", False) else "avg"


def timm_variant(name: str, image_size: tuple[int, int]) -> dict:
    """Configuration fields for timm's model `name` at `image_size` (height, width).

    The model is probed on the meta device: a ViT takes the image size, a ResNet gets `last_stride` 1, and tokens are
    pooled as the model's own classifier pools them.

    Raises:
        ImportError: without timm.
        ValueError: for a name that timm does not know; the nearest is offered.
    """
    require_timm()
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
