"""Backbones that a library already has: any image model of transformers, and timm's through transformers' wrapper."""

import inspect
from itertools import pairwise

import torch
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoModel

from .width_groups import WidthGroups


class LibraryBackbone(nn.Module):
    """A library's model as a map from pictures to features, (B, 3, H, W) -> (B, C, h, w) or tokens (B, N, C).

    Args:
        last_stride, stride1_stage: see `ReIDConfig`.

    Attributes:
        prefix_tokens: how many tokens of timm's, class and registers, stand in front of those of the patches.
        stage_channels, stage_reductions: of the maps that `stages` returns; empty for a model without them.

    Raises:
        ValueError: if a stride is given for a trunk that has no such strided stage, or for a model of no pictures.
    """

    def __init__(self, config, last_stride: int | None = None, stride1_stage: int | None = None):
        super().__init__()
        if config.model_type == "timm_wrapper":
            from .backbone_timm import TimmModel  # timm takes a second to import, and few models need it

            self.model = TimmModel(config)
            self.out_channels = self.model.timm_model.num_features
        else:
            self.out_channels = _width(config)
            self.model = _without_pooler(config)
        timm_model = getattr(self.model, "timm_model", None)
        self.channels_last = getattr(timm_model, "output_fmt", None) == "NHWC"
        self.prefix_tokens = getattr(timm_model, "num_prefix_tokens", 0)
        self.stage_channels, self.stage_reductions = _stages(self.model, config)
        if stride1_stage is not None:
            self._set_stride(stride1_stage, 1, f"stride1_stage={stride1_stage}")
        elif last_stride is not None:
            self._set_stride(4, last_stride, f"last_stride={last_stride}")

    def _set_stride(self, number: int, stride: int, asked: str) -> None:
        """Give a ResNet's last stage (4) or the one before (3) the stride `stride`, on the 3x3 and on the shortcut."""
        stages = getattr(getattr(self.model, "encoder", None), "stages", ())
        last = dict(zip((4, 3), reversed(stages), strict=False))
        stage = last.get(number) or getattr(getattr(self.model, "timm_model", None), f"layer{number}", None)
        if stage is None or not set_stride(stage, stride):
            which = "last stage" if number == 4 else "last stage but one"
            raise ValueError(f"{asked} needs a trunk with a strided {which} (a ResNet); leave it at None")
        if self.stage_reductions:
            before, after = self.stage_reductions[: number - 5], self.stage_reductions[number - 5 :]
            self.stage_reductions = (*before, *(reduction * stride // 2 for reduction in after))

    def forward(self, pixel_values: Tensor) -> Tensor:
        feature_map = self.model(pixel_values).last_hidden_state
        return feature_map.permute(0, 3, 1, 2) if self.channels_last else feature_map

    def stages(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """The stem's map and those of the stages, if it has `stage_channels`; the last one is `forward`'s.

        Raises:
            ValueError: for a model without them, such as a ViT.
        """
        if not self.stage_channels:
            raise ValueError(f"a {self.model.config.model_type!r} backbone has no stages of maps: take a ResNet")
        if hasattr(self.model, "timm_model"):
            final, maps = self.model.timm_model.forward_intermediates(pixel_values)
            return *maps[:-1], final.permute(0, 3, 1, 2) if self.channels_last else final
        maps = [self.model.embedder(pixel_values)]
        for stage in self.model.encoder.stages:
            maps.append(stage(maps[-1]))
        return tuple(maps)

    def width_groups(self, groups: WidthGroups) -> tuple[str, ...]:
        """Declare the channels of a ResNet (basic or bottleneck); returns the group of the last map.

        Raises:
            ValueError: for any other library model.
        """
        if getattr(self.model.config, "model_type", None) != "resnet":
            raise ValueError(
                f"the channels of a {self.model.config.model_type!r} backbone are not declared; width groups "
                "exist for ResNet, OSNet, MSINet and the part-token ViT"
            )
        _conv_norm(groups, "model.embedder.embedder", writes="stem")
        stream = "stem"
        for s, stage in enumerate(self.model.encoder.stages):
            for b, block in enumerate(stage.layers):
                path, entering = f"model.encoder.stages.{s}.layers.{b}", stream
                # Every block of a stage adds to one residual stream; it begins where a shortcut convolution maps it.
                if not isinstance(block.shortcut, nn.Identity):
                    stream = f"stage{s + 1}"
                    _conv_norm(groups, f"{path}.shortcut", reads=entering, writes=stream)
                inner = [f"stage{s + 1}.{b}.conv{c + 1}" for c in range(len(block.layer) - 1)]
                for c, (reads, writes) in enumerate(pairwise([entering, *inner, stream])):
                    _conv_norm(groups, f"{path}.layer.{c}", reads=reads, writes=writes)
        return (stream,)


def _conv_norm(groups: WidthGroups, path: str, *, writes: str, reads: str | tuple[str, ...] = ()) -> None:
    """Declare one of transformers' convolutions with the norm behind it."""
    groups.layer(f"{path}.convolution", reads=reads, writes=writes)
    groups.layer(f"{path}.normalization", writes=writes)


def _without_pooler(config) -> nn.Module:
    """A ViT's pooler is a dense layer behind the tokens we take: untrained, and an unused parameter under DDP."""
    model_class = MODEL_MAPPING[type(config)]
    model_class = model_class[0] if isinstance(model_class, (list, tuple)) else model_class
    takes_pooler = "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
    return AutoModel.from_config(config, **({"add_pooling_layer": False} if takes_pooler else {}))


def _width(config) -> int:
    """Channels of what comes out, found without any arithmetic: configurations name them in a dozen ways.

    Raises:
        ValueError: for a model that makes no map and no tokens of a picture alone.
    """
    if config.model_type == "resnet":
        return config.hidden_sizes[-1]
    size = getattr(config, "image_size", None) or 224
    size = [size, size] if isinstance(size, int) else size
    try:
        with torch.device("meta"):
            shape = _without_pooler(config).eval()(torch.zeros(1, 3, *size)).last_hidden_state.shape
    except (AttributeError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"a {config.model_type!r} model makes no feature map of a picture alone ({error})") from error
    return shape[1] if len(shape) == 4 else shape[-1]


def _stages(model: nn.Module, config) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Channels of a model's stages, and how much smaller than the picture they are; nothing where it has none."""
    if config.model_type == "resnet":
        first = 8 if config.downsample_in_first_stage else 4
        reductions = (4, *(first * 2**stage for stage in range(len(config.hidden_sizes))))
        return (config.embedding_size, *config.hidden_sizes), reductions
    timm_model = getattr(model, "timm_model", None)
    taps = list(getattr(timm_model, "feature_info", ())) if hasattr(timm_model, "forward_intermediates") else []
    reductions = tuple(tap["reduction"] for tap in taps)
    if len(set(reductions)) < 2:  # a transformer's blocks all have the size of its patches
        return (), ()
    return (*(tap["num_chs"] for tap in taps[:-1]), timm_model.num_features), reductions


def set_stride(stage: nn.Module, stride: int) -> bool:
    """Give all layers of stride 2 in a ResNet's stage another; returns whether there are any."""
    strided = [module for module in stage.modules() if getattr(module, "stride", None) in (2, (2, 2))]
    for module in strided:
        module.stride = (stride, stride) if isinstance(module, nn.Conv2d) else stride
        if isinstance(module, nn.AvgPool2d):  # ResNet-D halves its shortcut by averaging
            module.kernel_size = stride
    return bool(strided)
