"""The re-identification model: a backbone, a pooling, an embedding layer and a neck, as a `PreTrainedModel`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .backbones import FAMILIES, build_backbone
from .bconv import all_memory, set_memory
from .checkpoint_reid import CheckpointMixin
from .configuration_reid import RETRIEVALS, ReIDConfig
from .encoding_reid import EncodingMixin
from .flat_fields import PARTS
from .layers import BATCH_NORMS, reset_statistics
from .parts import Part
from .quantization import Quantizer
from .side_network import SideNetwork
from .width_groups import WidthGroups


@dataclass
class ReIDOutput(ModelOutput):
    """Output of a `ReIDModel`.

    Attributes:
        embeddings: (B, D); in evaluation the vector for retrieval, in training the neck's output for the classifier.
        features: (B, C); the neck's input, which metric losses compare.
        feature_map: (B, C, h, w), or tokens (B, N, C), of the backbone.
        pooler_output: same as `embeddings`, under the name that transformers' pipelines expect.
    """

    embeddings: Tensor = None
    features: Tensor = None
    feature_map: Tensor = None
    pooler_output: Tensor = None


class ReIDModel(CheckpointMixin, EncodingMixin, PreTrainedModel):
    """Model that embeds images for person re-identification, (B, 3, H, W) -> `ReIDOutput`.

    Attributes:
        backbone, pooling, head, neck: the layers in order; `head` is the embedding layer.
        side: side network, pooled like the backbone; None in most models.
        compression, quantizer: the last layers of a model with codes; None in other models.
        feature_dim, embedding_dim: lengths of the features and of the embeddings.
        part_dims: lengths of the parts that are concatenated in features and embeddings, for losses per part; usually a
            single one.
        global_parts: number of global parts (of the whole person), which come first.
    """

    config: ReIDConfig
    config_class = ReIDConfig
    base_model_prefix = "reid"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    model_tags = ("person-reid",)
    # A checkpoint of a ReIDForImageClassification is loaded without its classifier.
    _keys_to_ignore_on_load_unexpected = (r"^classifier\.",)

    def __init__(self, config: ReIDConfig):
        super().__init__(config)
        strides = {"last_stride": config.last_stride, "stride1_stage": config.stride1_stage}
        self.backbone = build_backbone(config.backbone_config, **strides)
        config.check_parts(getattr(self.backbone, "gives", ("map",)))
        self.pooling = self._part("pooling", self.backbone)
        self.side = None if config.side is None else SideNetwork.behind(self.backbone, **config.side)
        self.part_dims = self.pooling.part_dims or (self.backbone.out_channels,)
        if self.side is not None:
            self.part_dims = tuple(dim + self.side.out_channels for dim in self.part_dims)
        self.global_parts = self.pooling.global_parts or len(self.part_dims)
        self.head = self._part("embedding", self.part_dims)  # the name "head" is that of published checkpoints
        self.part_dims = self.head.part_dims
        self.neck = self._part("neck", self.part_dims)
        self._fuses_in_neck = "vector" not in self.neck.needs
        self.compression, self.quantizer = None, None
        if config.codes is not None:
            self.compression = self._part("codes", self.part_dims)
            self.part_dims = (self.compression.dim,)
            self.quantizer = Quantizer(self.compression.dim, config.codes["quantization"], config.codes["granularity"])
        self.global_parts = min(self.global_parts, len(self.part_dims))
        self.feature_dim = self.embedding_dim = sum(self.part_dims)
        self.post_init()

    def _part(self, part: str, before: Any) -> Part:
        options = dict(getattr(self.config, part))
        return PARTS[part][options.pop("name")].behind(before, **options)

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor, quantized: bool = True, retrieve: str | None = None, **kwargs
    ) -> ReIDOutput:
        """Embed a batch of normalised images.

        Args:
            quantized: whether a model with a quantiser returns decoded codes (True) or the vectors before quantisation.
            retrieve: vector to return as embeddings in evaluation, "neck" or "features" (default: the configuration's).
                Ignored by models with codes, which always use the configuration's.

        Raises:
            ValueError: unless `pixel_values` is (B, 3, H, W) and `retrieve` is one of these.
        """
        if pixel_values.ndim != 4 or pixel_values.shape[1] != 3:
            raise ValueError(f"pixel_values must be (B, 3, H, W), got {tuple(pixel_values.shape)}")
        retrieve = self._retrieves(retrieve)
        takes_stages = self.side is not None or self.pooling.takes_stages
        stages = self.backbone.stages(pixel_values) if takes_stages else (self.backbone(pixel_values),)
        pooled = self._pool(stages)
        if self.side is not None:
            pooled = torch.cat([pooled, self._pool(self.side(pixel_values, stages))], -1)
        features = self.head(self.pooling.fuse(pooled))
        embeddings = features
        if self.training or retrieve == "neck":
            embeddings = self.neck(pooled if self._fuses_in_neck else features)
        if self.compression is not None:
            features = embeddings = self.compression(embeddings)
            if quantized:
                features = embeddings = self.quantizer(embeddings)
        return ReIDOutput(embeddings, features, stages[-1], embeddings)

    def _retrieves(self, retrieve: str | None) -> str:
        if retrieve is None or self.compression is not None:
            return self.config.retrieve
        if retrieve not in RETRIEVALS:
            raise ValueError(f"retrieve must be one of {', '.join(RETRIEVALS)}, got {retrieve!r}")
        return retrieve

    def _pool(self, maps: tuple[Tensor, ...]) -> Tensor:
        return self.pooling(maps if self.pooling.takes_stages else maps[-1])

    def memory(self) -> list[Tensor]:
        """The memory of the side network's cells, for `restore_memory`; empty without a side network."""
        return all_memory(self)

    def restore_memory(self, memory: list[Tensor]) -> None:
        """Restore what `memory` returned.

        Raises:
            ValueError: if it belongs to another network.
        """
        set_memory(self, memory)

    def reset_memory(self) -> None:
        """Clear the memory: the next training batch starts from zeros, as every epoch does."""
        set_memory(self, [])

    def width_groups(self) -> WidthGroups:
        """Width groups of all tensors from the backbone to the neck.

        Raises:
            ValueError: if the backbone does not declare its channels, or the model has a side network or codes.
        """
        if not hasattr(self.backbone, "width_groups"):
            declared = ", ".join(family.title for family in FAMILIES.values() if family.width is not None)
            raise ValueError(
                f"the channels of a {self.config.backbone_config.model_type!r} backbone are not declared; width groups "
                f"exist for {declared}"
            )
        if self.side is not None:
            raise ValueError("the channels of a side network are not declared: models with one have no width groups")
        if self.compression is not None:
            raise ValueError("a compressed embedding has no width groups: expand the model first, then compress it")
        groups = WidthGroups(self)
        stages = self.backbone.width_groups(groups.inside("backbone"))
        vector = stages[-1:]  # pooling over positions keeps the channel order
        if hasattr(self.pooling, "width_groups"):
            vector = self.pooling.width_groups(groups.inside("pooling"), stages)
        vector = self.head.width_groups(groups.inside("head"), vector)
        if hasattr(self.neck, "width_groups"):
            self.neck.width_groups(groups.inside("neck"), vector)
        return groups

    @torch.no_grad()
    def _init_weights(self, module):
        """Initialise a module, by its own `initialise` if it has one; applies to nested library models too.

        Plain torch layers: Kaiming normal (fan-out) for convolutions and linear layers, weight 1 for norms, bias 0.
        """
        if hasattr(module, "initialise"):
            module.initialise()
            return
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            # For a transposed convolution, torch's fan-out is the actual fan-in.
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            reset_statistics(module)
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.InstanceNorm2d, nn.LayerNorm)):
            init.ones_(module.weight)
        if isinstance(getattr(module, "bias", None), Tensor):
            init.zeros_(module.bias)

    def activation_checkpointing_enable(self, activation_checkpointing_kwargs: dict | None = None, **kwargs) -> None:
        """Trade compute for memory in a transformer backbone.

        Raises:
            ValueError: if the backbone has batch norm, because recomputation would update its running statistics twice,
                or does not support checkpointing.
        """
        model = getattr(self.backbone, "model", self.backbone)
        enable = _checkpointing(model, "enable")
        if enable is None or any(isinstance(m, BATCH_NORMS) for m in self.backbone.modules()):
            raise ValueError(
                "gradient checkpointing runs the forward twice, and batch norm would update its running statistics "
                f"twice; only transformer backbones have it, not {self.config.backbone_config.model_type!r}"
            )
        enable(activation_checkpointing_kwargs, **kwargs)

    def activation_checkpointing_disable(self) -> None:
        """Undo `activation_checkpointing_enable`."""
        _checkpointing(getattr(self.backbone, "model", self.backbone), "disable")()

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict | None = None, **kwargs) -> None:
        """Name used by older versions of transformers."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **kwargs)


def _checkpointing(model: nn.Module, action: str) -> Callable | None:
    """A model's checkpointing method, by its name in transformers 5.20 and later or its former name."""
    names = (f"activation_checkpointing_{action}", f"gradient_checkpointing_{action}")
    return next((getattr(model, name) for name in names if hasattr(model, name)), None)
