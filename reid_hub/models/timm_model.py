"""transformers' wrapper of timm models; imported lazily, because importing timm takes a second."""

import torch
from torch import Tensor
from transformers import TimmWrapperConfig, TimmWrapperModel


class TimmModel(TimmWrapperModel):
    """The wrapper with timm's own initialisation.

    The wrapper expects pretrained weights and would otherwise initialise every weight from N(0, 0.02), from which CNNs
    train poorly. timm has already initialised its weights when `_init_weights` is called, so only non-persistent
    buffers are rebuilt.
    """

    config: TimmWrapperConfig

    @torch.no_grad()
    def _init_weights(self, module):
        if hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()

    def forward(self, pixel_values: Tensor, do_pooling: bool = False, **kwargs):
        """Run the model without timm's layers after the last feature map, unless `do_pooling`.

        Their output is not used, and those of some models (MobileNetV4, GhostNet) have cost, batch statistics and a
        ReLU that would be attributed to the backbone. The configuration's `do_pooling` is ignored.
        """
        return super().forward(pixel_values, do_pooling=do_pooling, **kwargs)
