"""transformers' wrapper of timm models; imported lazily, because importing timm takes a second."""

import torch
from torch import Tensor
from transformers import TimmWrapperConfig, TimmWrapperModel


class TimmModel(TimmWrapperModel):
    """The wrapper with timm's own initialisation.

    The wrapper expects to be loaded and would draw every weight from N(0, 0.02), which no CNN trains well from. timm
    has already initialised its weights when `_init_weights` is called; only what no state dict holds is rebuilt.
    """

    config: TimmWrapperConfig

    @torch.no_grad()
    def _init_weights(self, module):
        if hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()

    def forward(self, pixel_values: Tensor, do_pooling: bool = False, **kwargs):
        """The wrapper's, without what timm puts behind the last map unless asked, whatever the configuration says.

        Nothing here reads it, and some heads have layers of their own (MobileNetV4, GhostNet), whose cost, batch
        statistics and ReLU would be taken for the backbone's.
        """
        return super().forward(pixel_values, do_pooling=do_pooling, **kwargs)
