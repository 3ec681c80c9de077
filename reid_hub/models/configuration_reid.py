"""Configuration of a re-identification model: backbone, pooling, embedding layer, neck and input."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .backbones import at_size, family_of, find_variant, read_config
from .flat_fields import FLAT, PARTS, join_fields
from .parts import check_fit, read_part
from .side_network import SideNetwork, read_side

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STRIDE1_STAGES = (None, 3, 4)
RETRIEVALS = ("neck", "features")
INTERPOLATIONS = ("bilinear", "bicubic")

# Keys that transformers itself passes to a configuration besides the declared fields.
_LIBRARY_KEYS = {
    "attn_implementation", "experts_implementation", "model_type", "name_or_path", "num_labels", "output_attentions",
    "torch_dtype", "transformers_version", "trust_remote_code", "auto_map", "tie_word_embeddings", "code_revision",
}  # fmt: skip


@strict
class ReIDConfig(PreTrainedConfig):
    """Configuration of a `ReIDModel` and its input.

    The backbone computes a feature map (or tokens), `pooling` a vector, `embedding` the *features* that metric losses
    compare, and `neck` the vector that is classified in training. `retrieve` selects which of the last two is the
    embedding at test time: BoT retrieves by the output of the BNNeck, TransReID by its input.

    A part is stored as its name and options, {"name": "gem", "p": 3.0}; a name alone, "gem", selects the default
    options. The flat fields of earlier versions (`head`, `embedding_dim`, `gem_p`, ...; see `FLAT`) are still accepted
    and converted to options.

    Args:
        backbone_config: configuration of the backbone: one of ours (`model_type` "reid_osnet", "reid_msinet",
            "reid_part_vit", "reid_squeezenet", "reid_densenet", "reid_mgn"), "timm_wrapper", or any image model of
            transformers.
        last_stride: stride of the last stage of a ResNet (usually 1 in ReID); None keeps the backbone's own.
        stride1_stage: alternative to `last_stride`: the stage to set to stride 1, 4 (the last) or 3 (the second to
            last, the literal reading of "conv4_1" in Factorized Distillation, arXiv:1811.08073). Either way the feature
            map is 1/16 of the image.
        pooling: "avg", "max", "gem" (`p`), "stabilised_max" (FD, eq. 5: maximum over averages of a `window`), "cls"
            (first token), "patches" (timm ViTs: mean of the patch tokens, without class and register tokens),
            "global_stripes" (MSINet: means of the last map and of two stripes of an earlier one), "part_tokens" (PASS:
            the class token and the mean of three part tokens), or "branch_stripes" (MGN: maxima of three branches and
            of their stripes).
        embedding: the embedding layer: "none", "linear" (FC to `dim`, then BN if `norm`; `bias` and `relu` as in OSNet,
            `init_std` as in `LinearEmbedding`) or "shared_linear" (MGN: one layer that maps each part to `dim`).
        neck: "bnneck" (batch norm without bias, arXiv:1903.07071), "linear_bnneck" (MSINet: an FC and a BNNeck for each
            part of the vector), "part_bnneck" (PASS: a BNNeck for each of the four tokens) or "none".
        side: None, or the options of a side network (Progressive Transfer Learning); its vector is concatenated to the
            backbone's: "cell" ("v1", "v2", or the control "plain"), "memory" (False resets it before every batch),
            "stem" and "pairs" (channels, see `SideNetwork`; default: the published ones, scaled to the backbone),
            "bias", "batch_mean", and for v2 "aggregate" (see `BConvCell2`).
        codes: None, or how the embedding is shortened to `dim` dimensions (Embedding Compression, arXiv:2405.14730):
            "slice", "low_rank" or "pruned". The input is the vector selected by `retrieve`; the output is both features
            and embedding. Layers needed only in training (expansion, norm, classifier) are not part of the model. With
            `quantization` "int8", embeddings are decoded int8 codes; `granularity` is that of the scale: "tensor",
            "dimension" or "vector".
        retrieve: the vector used as embedding at test time, "neck" or "features".
        decision: a distance threshold below which two images show the same person, see `calibrate`.
        image_size: (height, width) in pixels.
        image_mean, image_std: per-channel normalisation of the input, three values each.
        resize_shortest: resize the shorter side to this and crop `image_size` from the centre, as in general
            classification; None resizes both sides to `image_size`.
        interpolation: interpolation of the resize, "bilinear" or "bicubic".
        classifier_hidden: widths of the hidden layers of `ReIDForImageClassification`'s classifier.
        variant: name of the variant that this configuration was made from.
        lineage: training history of the weights, one step each, oldest first: method, recipe, epochs, data set, initial
            weights and teacher. It is kept when weights are copied, also into narrower models.

    Raises:
        ValueError: for an unknown key, an invalid value, or incompatible parts.
    """

    model_type = "reid"
    backbone_config: dict | PreTrainedConfig | None = None
    last_stride: int | None = None
    stride1_stage: int | None = None
    pooling: str | dict = "avg"
    embedding: str | dict = "none"
    neck: str | dict = "bnneck"
    side: str | dict | None = None
    codes: str | dict | None = None
    retrieve: str = "neck"
    decision: dict | None = None
    image_size: list[int] | tuple[int, ...] = (256, 128)
    image_mean: list[float] | tuple[float, ...] = IMAGENET_MEAN
    image_std: list[float] | tuple[float, ...] = IMAGENET_STD
    resize_shortest: int | None = None
    interpolation: str = "bilinear"
    classifier_hidden: list[int] | tuple[int, ...] = ()
    variant: str | None = None
    lineage: list | None = None

    def __post_init__(self, **kwargs):
        unknown = {key for key in kwargs if not key.startswith("_")} - _LIBRARY_KEYS - set(FLAT)
        if unknown:
            known = sorted(field.name for field in fields(ReIDConfig) if field.name not in _base_fields())
            raise ValueError(f"unknown configuration keys {sorted(unknown)}; a ReIDConfig has {', '.join(known)}")
        self.backbone_config = read_config(self.backbone_config or find_variant("res50")["backbone_config"])
        for name in ("image_size", "image_mean", "image_std", "classifier_hidden"):
            setattr(self, name, list(getattr(self, name)))
        # @strict would run these too, but wraps their errors in one that is not a ValueError.
        self.validate_choices()
        self.validate_input()
        flat = {name: kwargs.pop(name) for name in FLAT if name in kwargs}
        parts = join_fields({}, {**{part: getattr(self, part) for part in PARTS}, **flat})
        for part, classes in PARTS.items():
            setattr(self, part, None if parts[part] is None else read_part(part, parts[part], classes))
        self.side = read_side(self.side)
        gives = getattr(family_of(self.backbone_config).network, "gives", None)
        self.check_parts(gives if isinstance(gives, tuple) else ())  # library models are checked when they are built
        self.backbone_config = at_size(self.backbone_config, self.image_size)  # image_size is configured only here
        super().__post_init__(**kwargs)

    def validate_choices(self):
        for name, choices in (
            ("retrieve", RETRIEVALS), ("interpolation", INTERPOLATIONS), ("stride1_stage", STRIDE1_STAGES),
        ):  # fmt: skip
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(map(str, choices))}, got {getattr(self, name)!r}")

    def validate_input(self):
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            raise ValueError(f"image_size must be (height, width) in pixels, got {self.image_size}")
        if len(self.image_mean) != 3 or len(self.image_std) != 3 or min(self.image_std) <= 0:
            raise ValueError(
                f"image_mean and image_std need 3 values, std above 0; got {self.image_mean}, {self.image_std}"
            )
        if self.resize_shortest is not None and self.resize_shortest < max(self.image_size):
            raise ValueError(f"resize_shortest must leave {self.image_size} to cut out, got {self.resize_shortest}")
        if min(self.classifier_hidden, default=1) < 1:
            raise ValueError(f"classifier_hidden must be widths, at least 1, got {self.classifier_hidden}")

    def check_parts(self, gives: Sequence[str]) -> None:
        """Check that the parts are compatible.

        Args:
            gives: kinds of output of the backbone, see `KINDS`; empty if not known yet.

        Raises:
            ValueError: if parts are incompatible; the message names the alternatives.
        """
        source = f"a {self.backbone_config.model_type!r} backbone"
        chain = {part: (getattr(self, part)["name"], PARTS[part]) for part in ("pooling", "embedding", "neck")}
        if self.side is not None:
            if gives and not set(SideNetwork.needs) & set(gives):
                raise ValueError(f"a side network needs a backbone with stages, and {source} has none")
            source, gives = "a side network", [kind for kind in SideNetwork.gives if not gives or kind in gives]
        if not gives:
            name, poolings = chain.pop("pooling")
            source, gives = f"pooling={name!r}", poolings[name].gives
        check_fit(source, gives, chain)
        if self.codes is not None and self.retrieve == "features" and self.neck["name"] != "none":
            raise ValueError(
                "a compressed model that retrieves by its features has no neck of its own (training adds one behind "
                f"the codes): neck must be 'none', got {self.neck['name']!r}"
            )

    @classmethod
    def from_variant(cls, name: str, **overrides: Any) -> "ReIDConfig":
        """Configuration of a named variant; `overrides` replace its fields, and individual options of its parts.

        Raises:
            ValueError: for an unknown variant or field; the message suggests the closest variant.
            ImportError: for "timm/NAME" if timm is not installed.
        """
        base = join_fields({}, find_variant(name, overrides.get("image_size", cls.image_size)))
        if base.get("side") is not None and isinstance(overrides.get("side"), dict):
            overrides["side"] = {**base["side"], **overrides["side"]}
        return cls(**join_fields({"variant": name, **base}, overrides))


def _base_fields() -> set[str]:
    return {field.name for field in fields(PreTrainedConfig)}
