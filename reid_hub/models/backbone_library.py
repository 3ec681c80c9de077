"""Backbones that a library already has: any image model of transformers, and timm's through transformers' wrapper."""

import inspect

from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoModel


class LibraryBackbone(nn.Module):
    """A library's model as a map from pictures to features, (B, 3, H, W) -> (B, C, h, w) or tokens (B, N, C).

    Raises:
        ValueError: if `last_stride` is given for a trunk that has no strided last stage, or the width is unknown.
    """

    def __init__(self, config, last_stride: int | None = None):
        super().__init__()
        if config.model_type == "timm_wrapper":
            from .backbone_timm import TimmModel  # timm takes a second to import, and few models need it

            self.model = TimmModel(config)
            self.out_channels = self.model.timm_model.num_features
        else:
            self.model = _without_pooler(config)
            self.out_channels = _width(config)
        self.channels_last = getattr(getattr(self.model, "timm_model", None), "output_fmt", None) == "NHWC"
        if last_stride is not None:
            set_last_stride(self.model, last_stride)

    def forward(self, pixel_values: Tensor) -> Tensor:
        feature_map = self.model(pixel_values).last_hidden_state
        return feature_map.permute(0, 3, 1, 2) if self.channels_last else feature_map


def _without_pooler(config) -> nn.Module:
    """A ViT's pooler is a dense layer behind the tokens we take: untrained, and an unused parameter under DDP."""
    model_class = MODEL_MAPPING[type(config)]
    model_class = model_class[0] if isinstance(model_class, (list, tuple)) else model_class
    takes_pooler = "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
    return AutoModel.from_config(config, **({"add_pooling_layer": False} if takes_pooler else {}))


def _width(config) -> int:
    for name in ("hidden_sizes", "hidden_size", "num_channels_out"):
        value = getattr(config, name, None)
        if value:
            return value[-1] if isinstance(value, (list, tuple)) else value
    raise ValueError(f"cannot tell the feature width of a {config.model_type!r} backbone: it has no hidden_size(s)")


def set_last_stride(model: nn.Module, stride: int) -> None:
    """Give the strided layers of a ResNet's last stage the stride `stride`, on the 3x3 and on the shortcut."""
    encoder = getattr(model, "encoder", None)
    timm_model = getattr(model, "timm_model", None)
    stage = encoder.stages[-1] if hasattr(encoder, "stages") else getattr(timm_model, "layer4", None)
    strided = [m for m in stage.modules() if getattr(m, "stride", None) in (2, (2, 2))] if stage is not None else []
    if not strided:
        raise ValueError(f"last_stride={stride} needs a trunk with a strided last stage (a ResNet); leave it at None")
    for module in strided:
        module.stride = (stride, stride) if isinstance(module, nn.Conv2d) else stride
        if isinstance(module, nn.AvgPool2d):  # ResNet-D halves its shortcut by averaging
            module.kernel_size = stride
