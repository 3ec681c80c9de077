"""Configuration of a re-identification model: its backbone, how a map becomes a vector, and the input."""

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

# What transformers itself hands to a configuration besides the declared fields.
_LIBRARY_KEYS = {
    "attn_implementation", "experts_implementation", "model_type", "name_or_path", "num_labels", "output_attentions",
    "torch_dtype", "transformers_version", "trust_remote_code", "auto_map", "tie_word_embeddings", "code_revision",
}  # fmt: skip


@strict
class ReIDConfig(PreTrainedConfig):
    """Everything that defines a `ReIDModel` and its input.

    The image goes through the backbone to a map (or tokens), `pooling` to a vector, `embedding` to the *features* that
    metric losses compare, and `neck` to the vector that is classified in training. `retrieve` says which of the two
    last is the embedding at test time: BoT ranks by what leaves the BNNeck, TransReID by what enters it.

    A part is stored as its name and options, {"name": "gem", "p": 3.0}; its name alone, "gem", is read as that with
    the options' defaults. The flat fields of earlier versions (`head`, `embedding_dim`, `gem_p`, ...; see `FLAT`) are
    read as the options that they are now.

    Args:
        backbone_config: configuration of the backbone: one of ours (`model_type` "reid_osnet", "reid_msinet",
            "reid_part_vit", "reid_squeezenet", "reid_densenet", "reid_mgn"), "timm_wrapper", or any image model of
            transformers.
        last_stride: stride of the last stage of a ResNet (1 is ReID's habit); None leaves the backbone as it is.
        stride1_stage: in its place, which stage has stride 1: 4, the last, or 3, the one before (the "conv4_1" of
            Factorized Distillation, arXiv:1811.08073, taken literally). Either way the map is 1/16 of the image.
        pooling: "avg", "max", "gem" (`p`), "stabilised_max" (FD, eq. 5: max over averages of a `window`), "cls" (first
            token), "patches" (of a ViT of timm: mean of the tokens behind class token and registers), "global_stripes"
            (MSINet: mean of the last map, and of two stripes of an earlier one), "part_tokens" (PASS: the class token
            beside the mean of three part tokens), or "branch_stripes" (MGN: the largest values of three branches and of
            their stripes).
        embedding: the embedding layer: "none", "linear" (FC to `dim` and BN unless `norm` is off; `bias` and `relu` as
            in OSNet, `init_std` as in `LinearEmbedding`) or "shared_linear" (MGN: one for all parts, each of which it
            takes to `dim`).
        neck: "bnneck" (batch norm without bias, arXiv:1903.07071), "linear_bnneck" (MSINet: an FC in front of it, both
            for each part of the vector), "part_bnneck" (PASS: one for each of the four tokens) or "none".
        side: None, or a side network of Progressive Transfer Learning, whose vector stands beside the backbone's:
            "cell" ("v1", "v2", or the control "plain"), "memory" (False forgets before every batch), "stem" and "pairs"
            (channels, see `SideNetwork`; the published ones scaled to the backbone's), "bias", "batch_mean", and for v2
            "aggregate" (see `BConvCell2`).
        codes: None, or how the embedding is shortened to `dim` numbers (Embedding Compression, arXiv:2405.14730):
            "slice", "low_rank" or "pruned". What is shortened is what `retrieve` names; the result is both features and
            embedding, and what training needs behind it (expansion, norm, classifier) is no part of the model.
            `quantization` "int8" lets the embedding be what its int8 codes decode to; `granularity` is that of the
            scale: "tensor", "dimension" or "vector".
        decision: a threshold of the distance below which two images show one person, see `calibrate`.
        image_size: (height, width) in pixels.
        resize_shortest: resize the shorter side to this and cut `image_size` from the centre, as general classification
            does; None resizes both sides to `image_size`.
        interpolation: of the resize, "bilinear" or "bicubic".
        classifier_hidden: widths of the layers in front of the last, of the classifier of general images.
        variant: the name this configuration was made from.
        lineage: what the weights went through, a step each, oldest first: its method, recipe, epochs and data set, what
            it started from, and who taught it. It goes wherever the weights go, also into narrower ones.

    Raises:
        ValueError: for an unknown key, a value outside its choices, or parts that do not fit one another.
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
        # @strict would run these too, but wraps what they raise in an error that is no ValueError.
        self.validate_choices()
        self.validate_input()
        flat = {name: kwargs.pop(name) for name in FLAT if name in kwargs}
        parts = join_fields({}, {**{part: getattr(self, part) for part in PARTS}, **flat})
        for part, classes in PARTS.items():
            setattr(self, part, None if parts[part] is None else read_part(part, parts[part], classes))
        self.side = read_side(self.side)
        gives = getattr(family_of(self.backbone_config).network, "gives", None)
        self.check_parts(gives if isinstance(gives, tuple) else ())  # a library's model says when it is built
        self.backbone_config = at_size(self.backbone_config, self.image_size)  # which is said in one place, here
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
        """Refuse parts that do not fit one another.

        Args:
            gives: what the backbone gives, see `KINDS`; empty if that is not known yet.

        Raises:
            ValueError: saying what would fit.
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
        """Configuration of a named variant; `overrides` replace its fields, of a part only the options they name.

        Raises:
            ValueError: for an unknown variant or field; the nearest name is offered.
            ImportError: for "timm/NAME" without the timm library.
        """
        base = join_fields({}, find_variant(name, overrides.get("image_size", cls.image_size)))
        if base.get("side") is not None and isinstance(overrides.get("side"), dict):
            overrides["side"] = {**base["side"], **overrides["side"]}
        return cls(**join_fields({"variant": name, **base}, overrides))


def _base_fields() -> set[str]:
    return {field.name for field in fields(PreTrainedConfig)}
