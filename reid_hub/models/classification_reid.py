"""General classification, and dense prediction, with the backbones of re-identification."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.modeling_outputs import BackboneOutput, ImageClassifierOutput
from transformers.utils.generic import can_return_tuple

from .checkpoint_reid import CheckpointMixin
from .configuration_reid import ReIDConfig
from .image_processing_reid import ReIDImageProcessor
from .modeling_reid import ReIDModel


class ReIDForImageClassification(CheckpointMixin, PreTrainedModel):
    """An image classifier, (B, 3, H, W) -> logits (B, num_labels): a `ReIDModel` and a classifier on its embeddings.

    The configuration is a `ReIDConfig` with `num_labels` (or `id2label`); `classifier_hidden` makes the classifier an
    MLP: linear layers of these widths with ReLU between them. A folder of a `ReIDModel` loads too: the classifier then
    starts anew.

    Raises:
        ValueError: if the vector that is classified in training is not the embedding, for `retrieve="features"` in
            front of a neck.
    """

    config: ReIDConfig
    config_class = ReIDConfig
    base_model_prefix = "reid"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    model_tags = ("image-classification",)

    def __init__(self, config: ReIDConfig):
        super().__init__(config)
        if config.retrieve == "features" and config.neck["name"] != "none":
            raise ValueError(
                "a classifier reads the same vector in training and in use: with retrieve='features' the neck must be "
                f"'none', got {config.neck['name']!r}"
            )
        self.num_labels = config.num_labels
        self.reid = ReIDModel(config)
        widths = [self.reid.embedding_dim, *config.classifier_hidden, config.num_labels]
        layers = [nn.Linear(*pair) for pair in pairwise(widths)]
        self.classifier = layers[0]
        if len(layers) > 1:
            with_relu = [module for layer in layers for module in (layer, nn.ReLU())]
            self.classifier = nn.Sequential(*with_relu[:-1])
        self.post_init()

    @can_return_tuple
    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs) -> ImageClassifierOutput:
        """Classify a batch of normalised images; with `labels` (B,) also their mean cross-entropy."""
        logits = self.classifier(self.reid(pixel_values).embeddings)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)

    @torch.no_grad()
    def _init_weights(self, module):
        """As torch initialises a linear layer, with bias 0; the `ReIDModel` answers for its own."""
        if isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            init.uniform_(module.weight, -bound, bound)
            init.zeros_(module.bias)

    def fresh_prefixes(self) -> tuple[str, ...]:
        """A `ReIDModel` has no classifier."""
        return ("classifier.",) if "ReIDModel" in (self.config.architectures or ()) else ()

    def write_companions(self, folder: Path) -> dict[str, Any]:
        """Write the image processor; sentence-transformers has no use for a classifier."""
        ReIDImageProcessor.from_config(self.config).save_pretrained(folder)
        return {}

    def memory(self) -> list[Tensor]:
        """What a side network remembers, see `ReIDModel`."""
        return self.reid.memory()

    def restore_memory(self, memory: list[Tensor]) -> None:
        """Let it go on from what `memory` returned."""
        self.reid.restore_memory(memory)

    def reset_memory(self) -> None:
        """Let it forget."""
        self.reid.reset_memory()

    def activation_checkpointing_enable(self, *args, **kwargs) -> None:
        """See `ReIDModel`."""
        self.reid.activation_checkpointing_enable(*args, **kwargs)

    def activation_checkpointing_disable(self) -> None:
        """Undo `activation_checkpointing_enable`."""
        self.reid.activation_checkpointing_disable()

    def gradient_checkpointing_enable(self, *args, **kwargs) -> None:
        """The same under its former name."""
        self.reid.gradient_checkpointing_enable(*args, **kwargs)


class ReIDBackboneConfig(BackboneConfigMixin, ReIDConfig):
    """A `ReIDConfig` that also says which maps a `ReIDBackbone` gives: `out_features` or `out_indices`, by default the
    last. The maps are called "stem", "stage1", ... in the order of the backbone's `stages`.

    Raises:
        ValueError: for a backbone without stages, or a map that it does not have.
    """

    model_type = "reid_backbone"

    def __post_init__(self, out_features=None, out_indices=None, stage_names=None, stage_channels=None, **kwargs):
        super().__post_init__(**kwargs)
        self.stage_channels = _stage_channels(self)
        self.stage_names = ["stem", *(f"stage{number}" for number in range(1, len(self.stage_channels)))]
        self.set_output_features_output_indices(out_features=out_features, out_indices=out_indices)


class ReIDBackbone(BackboneMixin, CheckpointMixin, PreTrainedModel):
    """Backbone of a `ReIDModel` or classifier, for detectors and segmenters: (B, 3, H, W) -> maps of its stages.

    `ReIDBackbone.from_pretrained(folder, out_indices=[1, 2, 3, 4])` loads the backbone of any reid_hub checkpoint.

    Args:
        config: that of a `ReIDModel` will do; then `out_features` or `out_indices` say which maps.
    """

    config: ReIDBackboneConfig
    config_class = ReIDBackboneConfig
    base_model_prefix = "reid"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    has_attentions = False
    _keys_to_ignore_on_load_unexpected = (r"^(reid\.)?(?!backbone\.)",)

    def __init__(
        self,
        config: ReIDBackboneConfig | ReIDConfig,
        out_features: list[str] | None = None,
        out_indices: list[int] | None = None,
    ):
        if not hasattr(config, "stage_channels"):  # AutoBackbone has read it as what it was saved as
            fields = {name: value for name, value in config.to_dict().items() if name != "model_type"}
            fields |= {"out_features": out_features, "out_indices": out_indices}
            config = ReIDBackboneConfig(**fields)
        super().__init__(config)
        self.num_features = config.stage_channels
        self.backbone = ReIDModel(config).backbone
        self.post_init()

    _init_weights = ReIDModel._init_weights
    write_companions = ReIDForImageClassification.write_companions

    @can_return_tuple
    def forward(self, pixel_values: Tensor, output_hidden_states: bool | None = None, **kwargs) -> BackboneOutput:
        """The maps that the configuration names, each (B, C, h, w); with `output_hidden_states` also all of them."""
        stages = self.backbone.stages(pixel_values)
        chosen = tuple(stages[index] for index in self.out_indices)
        return BackboneOutput(feature_maps=chosen, hidden_states=stages if output_hidden_states else None)


def _stage_channels(config: ReIDConfig) -> list[int]:
    """Channels of every map, told by a model without memory."""
    with torch.device("meta"):
        channels = getattr(ReIDModel(config).backbone, "stage_channels", None)
    if not channels:
        raise ValueError(f"a {config.backbone_config.model_type!r} backbone has no stages of maps: take a ResNet")
    return list(channels)
