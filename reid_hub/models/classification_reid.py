"""General image classification and dense prediction with re-identification backbones."""

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
    """Image classifier, (B, 3, H, W) -> logits (B, num_labels): a `ReIDModel` and a classifier on its embeddings.

    The configuration is a `ReIDConfig` with `num_labels` (or `id2label`). With `classifier_hidden` the classifier is an
    MLP with hidden layers of these widths and ReLU. A checkpoint of a `ReIDModel` can be loaded too: the classifier is
    then newly initialised.

    Raises:
        ValueError: if `retrieve="features"` is combined with a neck, so that training would classify another vector
            than the embedding.
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
        """Classify a batch of normalised images; with `labels` (B,), also return the mean cross-entropy loss."""
        logits = self.classifier(self.reid(pixel_values).embeddings)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)

    @torch.no_grad()
    def _init_weights(self, module):
        """Initialise linear layers as torch does, but with bias 0; the `ReIDModel` initialises its own layers."""
        if isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            init.uniform_(module.weight, -bound, bound)
            init.zeros_(module.bias)

    def fresh_prefixes(self) -> tuple[str, ...]:
        """The classifier, if the checkpoint is a `ReIDModel`."""
        return ("classifier.",) if "ReIDModel" in (self.config.architectures or ()) else ()

    def write_companions(self, folder: Path) -> dict[str, Any]:
        """Write the image processor; no files for sentence-transformers, which cannot use a classifier."""
        ReIDImageProcessor.from_config(self.config).save_pretrained(folder)
        return {}

    def memory(self) -> list[Tensor]:
        """The memory of the side network, see `ReIDModel.memory`."""
        return self.reid.memory()

    def restore_memory(self, memory: list[Tensor]) -> None:
        """Restore what `memory` returned."""
        self.reid.restore_memory(memory)

    def reset_memory(self) -> None:
        """Clear the memory."""
        self.reid.reset_memory()

    def activation_checkpointing_enable(self, *args, **kwargs) -> None:
        """See `ReIDModel.activation_checkpointing_enable`."""
        self.reid.activation_checkpointing_enable(*args, **kwargs)

    def activation_checkpointing_disable(self) -> None:
        """Undo `activation_checkpointing_enable`."""
        self.reid.activation_checkpointing_disable()

    def gradient_checkpointing_enable(self, *args, **kwargs) -> None:
        """Former name of `activation_checkpointing_enable`."""
        self.reid.gradient_checkpointing_enable(*args, **kwargs)


class ReIDBackboneConfig(BackboneConfigMixin, ReIDConfig):
    """A `ReIDConfig` that also selects the feature maps of a `ReIDBackbone`.

    Args:
        out_features, out_indices: names or indices of the feature maps to return (default: the last). They are named
            "stem", "stage1", ... in the order of the backbone's `stages`.

    Raises:
        ValueError: if the backbone has no stages, or does not have a selected map.
    """

    model_type = "reid_backbone"

    def __post_init__(self, out_features=None, out_indices=None, stage_names=None, stage_channels=None, **kwargs):
        super().__post_init__(**kwargs)
        self.stage_channels = _stage_channels(self)
        self.stage_names = ["stem", *(f"stage{number}" for number in range(1, len(self.stage_channels)))]
        self.set_output_features_output_indices(out_features=out_features, out_indices=out_indices)


class ReIDBackbone(BackboneMixin, CheckpointMixin, PreTrainedModel):
    """Backbone of a `ReIDModel` or classifier for detection and segmentation, (B, 3, H, W) -> maps of its stages.

    `ReIDBackbone.from_pretrained(folder, out_indices=[1, 2, 3, 4])` loads the backbone of any reid_hub checkpoint.

    Args:
        config: a `ReIDBackboneConfig`, or the `ReIDConfig` of a model; with the latter, select the feature maps by
            `out_features` or `out_indices`.
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
        if not hasattr(config, "stage_channels"):  # AutoBackbone passes the class that it was saved as
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
        """Return the selected feature maps, each (B, C, h, w); with `output_hidden_states`, also all of them."""
        stages = self.backbone.stages(pixel_values)
        chosen = tuple(stages[index] for index in self.out_indices)
        return BackboneOutput(feature_maps=chosen, hidden_states=stages if output_hidden_states else None)


def _stage_channels(config: ReIDConfig) -> list[int]:
    """Channels of every feature map, from a model on the meta device."""
    with torch.device("meta"):
        channels = getattr(ReIDModel(config).backbone, "stage_channels", None)
    if not channels:
        raise ValueError(f"a {config.backbone_config.model_type!r} backbone has no stages of maps: take a ResNet")
    return list(channels)
