"""Image models of transformers as backbones."""

import inspect

import torch
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoModel, PreTrainedConfig

from .families import Family, register


class LibraryBackbone(nn.Module):
    """Wrap a library's model as a backbone, (B, 3, H, W) -> feature map (B, C, h, w) or tokens (B, N, C).

    Args:
        last_stride, stride1_stage: see `ReIDConfig`.

    Attributes:
        stage_channels, stage_reductions: channels and strides of the feature maps returned by `stages`; empty for a
            model without stages.

    Raises:
        ValueError: if a stride is given for a model without such a strided stage, or if the model does not take images.
    """

    stage_channels: tuple[int, ...] = ()
    stage_reductions: tuple[int, ...] = ()

    def __init__(
        self, config: PreTrainedConfig, last_stride: int | None = None, stride1_stage: int | None = None
    ) -> None:
        super().__init__()
        self.model, self.out_channels = self.build(config)
        self.stage_channels, self.stage_reductions = self.describe_stages(config)
        if stride1_stage is not None:
            self._set_stride(stride1_stage, 1, f"stride1_stage={stride1_stage}")
        elif last_stride is not None:
            self._set_stride(4, last_stride, f"last_stride={last_stride}")

    @property
    def gives(self) -> tuple[str, ...]:
        """Feature map or tokens (known only after the first forward pass), and stages if the model has any."""
        return ("map", "tokens", "stages") if self.stage_channels else ("map", "tokens")

    def build(self, config: PreTrainedConfig) -> tuple[nn.Module, int]:
        """Return the library's model and its number of output channels C."""
        channels = _out_channels(config)
        return without_pooler(config), channels

    def describe_stages(self, config: PreTrainedConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Channels and strides (image size / map size) of the feature maps of all stages."""
        return (), ()

    def late_stage(self, number: int) -> nn.Module | None:
        """The last stage (4) or the second to last (3); None if the model has no stages."""
        stages = getattr(getattr(self.model, "encoder", None), "stages", ())
        return dict(zip((4, 3), reversed(stages), strict=False)).get(number)

    def _set_stride(self, number: int, stride: int, asked: str) -> None:
        """Set the stride of a late stage, on its 3x3 convolution and its shortcut."""
        stage = self.late_stage(number)
        if stage is None or not set_stride(stage, stride):
            which = "last stage" if number == 4 else "last stage but one"
            raise ValueError(f"{asked} needs a backbone with a strided {which} (a ResNet); leave it at None")
        if self.stage_reductions:
            before, after = self.stage_reductions[: number - 5], self.stage_reductions[number - 5 :]
            self.stage_reductions = (*before, *(reduction * stride // 2 for reduction in after))

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.model(pixel_values).last_hidden_state

    def stages(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of the stem and of each stage, for a model with `stage_channels`; the last equals `forward`.

        Raises:
            ValueError: if the model has no stages, such as a ViT.
        """
        raise ValueError(f"a {self.model.config.model_type!r} backbone has no stages of maps: take a ResNet")


def without_pooler(config: PreTrainedConfig) -> nn.Module:
    """Build a model from its configuration, without a pooler and with its own weight initialisation.

    A ViT's pooler is a dense layer after the tokens that we use: it is untrained, and an unused parameter under DDP.
    """
    model_class = MODEL_MAPPING[type(config)]
    model_class = model_class[0] if isinstance(model_class, (list, tuple)) else model_class
    takes_pooler = "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
    return AutoModel.from_config(config, **({"add_pooling_layer": False} if takes_pooler else {}))


def _out_channels(config: PreTrainedConfig) -> int:
    """Number of output channels, found with a forward pass on the meta device: configurations name it inconsistently.

    Raises:
        ValueError: if the model cannot compute a feature map or tokens from an image alone.
    """
    size = getattr(config, "image_size", None) or 224
    size = [size, size] if isinstance(size, int) else size
    try:
        with torch.device("meta"):
            shape = without_pooler(config).eval()(torch.zeros(1, 3, *size)).last_hidden_state.shape
    except (AttributeError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"a {config.model_type!r} model makes no feature map of an image alone ({error})") from error
    return shape[1] if len(shape) == 4 else shape[-1]


def set_stride(stage: nn.Module, stride: int) -> bool:
    """Change the stride of all stride-2 layers in a ResNet stage; return whether there are any."""
    strided = [module for module in stage.modules() if getattr(module, "stride", None) in (2, (2, 2))]
    for module in strided:
        module.stride = (stride, stride) if isinstance(module, nn.Conv2d) else stride
        if isinstance(module, nn.AvgPool2d):  # ResNet-D downsamples its shortcut by average pooling
            module.kernel_size = stride
    return bool(strided)


_VECTOR_FIELDS = ("heads", "layer_norm_eps", "num_attention_heads", "stride")

# The fallback for every transformers model without a family of its own.
LIBRARY = register(
    Family(
        name="transformers",
        title="any image model of transformers",
        network=LibraryBackbone,
        strided=True,
        vector_fields=_VECTOR_FIELDS,
    )
)

VIT = register(
    Family(
        name="vit",
        title="ViT",
        network=LibraryBackbone,
        strided=True,
        vector_fields=_VECTOR_FIELDS,
        citation="""@inproceedings{dosovitskiy2021image,
  title     = {An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale},
  author    = {Dosovitskiy, Alexey and Beyer, Lucas and Kolesnikov, Alexander and Weissenborn, Dirk and Zhai, Xiaohua
               and Unterthiner, Thomas and Dehghani, Mostafa and Minderer, Matthias and Heigold, Georg and Gelly,
               Sylvain and Uszkoreit, Jakob and Houlsby, Neil},
  booktitle = {ICLR}, year = {2021}
}""",
    )
)
