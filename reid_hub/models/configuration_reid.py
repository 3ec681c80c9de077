"""Configuration of a re-identification model: its backbone, how a map becomes a vector, and the input."""

from dataclasses import fields

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .backbone_mgn import MGNConfig
from .backbone_part_vit import PartViTConfig
from .backbones import at_size, find_variant, read_config

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
POOLINGS = ("avg", "max", "gem", "stabilised_max", "cls", "patches", "global_stripes", "part_tokens", "branch_stripes")
HEADS = ("none", "linear", "shared_linear")
NECKS = ("bnneck", "linear_bnneck", "part_bnneck", "none")
STRIDE1_STAGES = (None, 3, 4)
RETRIEVALS = ("neck", "features")
INTERPOLATIONS = ("bilinear", "bicubic")
COMPRESSIONS = (None, "slice", "low_rank", "pruned")
QUANTIZATIONS = (None, "int8")
GRANULARITIES = ("tensor", "dimension", "vector")
SIDE_CELLS = ("v1", "v2", "plain")
SIDE_AGGREGATES = ("mean", "last", "conv")
SIDE_OPTIONS = ("cell", "memory", "stem", "pairs", "bias", "batch_mean", "aggregate")
# The others read a certain map, or tokens, and there is none of the side network's for them.
SIDE_POOLINGS = ("avg", "max", "gem", "stabilised_max", "branch_stripes")

# What transformers itself hands to a configuration besides the declared fields.
_LIBRARY_KEYS = {
    "attn_implementation", "experts_implementation", "model_type", "name_or_path", "num_labels", "output_attentions",
    "torch_dtype", "transformers_version", "trust_remote_code", "auto_map", "tie_word_embeddings", "code_revision",
}  # fmt: skip


@strict
class ReIDConfig(PreTrainedConfig):
    """Everything that defines a `ReIDModel` and its input.

    The picture goes through `backbone` to a map (or tokens), `pooling` to a vector, `head` to the *features* that
    metric losses compare, and `neck` to the vector that is classified in training. `retrieve` says which of the two
    last is the embedding at test time: BoT ranks by what leaves the BNNeck, TransReID by what enters it.

    Args:
        backbone_config: configuration of the trunk: one of ours (`model_type` "reid_osnet", "reid_msinet",
            "reid_part_vit", "reid_squeezenet", "reid_densenet", "reid_mgn"), "timm_wrapper", or any image model of
            transformers.
        last_stride: stride of the last stage of a ResNet (1 is ReID's habit); None leaves the trunk as it is.
        stride1_stage: in its place, which stage has stride 1: 4, the last, or 3, the one before (the "conv4_1" of
            Factorized Distillation, arXiv:1811.08073, taken literally). Either way the map is 1/16 of the picture.
        pooling: "avg", "max", "gem", "stabilised_max" (FD, eq. 5: max over `pooling_window` averages), "cls" (first
            token), "patches" (of a ViT of timm: mean of the tokens behind class token and registers), "global_stripes"
            (MSINet: mean of the last map, and of two stripes of an earlier one), "part_tokens" (PASS: the class token
            beside the mean of three part tokens), or "branch_stripes" (MGN: the largest values of three branches and of
            their stripes).
        side: None, or a side network of Progressive Transfer Learning, whose vector stands beside the backbone's:
            "cell" ("v1", "v2", or the control "plain"), "memory" (False forgets before every batch), "stem" and "pairs"
            (channels, see `SideNetwork`; the published ones scaled to the backbone's), "bias", "batch_mean", and for v2
            "aggregate" (see `BConvCell2`).
        head: "none", "linear" (FC to `embedding_dim` and BN unless `head_norm` is off; `head_bias`, `head_relu` as in
            OSNet) or "shared_linear" (MGN: one for all parts, each of which it takes to `embedding_dim`).
        head_init_std: standard deviation of the head's FC at the start; None is Kaiming fan-out.
        neck: "bnneck" (batch norm without bias, arXiv:1903.07071), "linear_bnneck" (MSINet: an FC in front of it, both
            for each part of the vector), "part_bnneck" (PASS: one for each of the four tokens) or "none".
        compression: how the embedding is shortened to `compressed_dim` (Embedding Compression, arXiv:2405.14730):
            "slice", "low_rank" or "pruned". What is shortened is what `retrieve` names; the result is both features and
            embedding, and what training needs behind it (expansion, norm, classifier) is no part of the model.
        quantization: "int8" lets a compressed embedding be what its int8 codes decode to; `quantization_granularity`
            is that of the scale: "tensor", "dimension" or "vector".
        decision: a threshold of the distance below which two pictures show one person, see `calibrate`.
        image_size: (height, width) in pixels.
        resize_shortest: resize the shorter side to this and cut `image_size` from the centre, as general classification
            does; None resizes both sides to `image_size`.
        interpolation: of the resize, "bilinear" or "bicubic".
        classifier_hidden: widths of the layers in front of the last, of the classifier of general pictures.
        variant: the name this configuration was made from.
        lineage: what the weights went through, a step each, oldest first: its method, recipe, epochs and data set, what
            it started from, and who taught it. It goes wherever the weights go, also into narrower ones.

    Raises:
        ValueError: for an unknown key or a value outside its choices.
    """

    model_type = "reid"
    backbone_config: dict | PreTrainedConfig | None = None
    last_stride: int | None = None
    stride1_stage: int | None = None
    pooling: str = "avg"
    gem_p: float = 3.0
    pooling_window: int = 4
    side: dict | None = None
    head: str = "none"
    embedding_dim: int | None = None
    head_bias: bool = False
    head_norm: bool = True
    head_relu: bool = False
    head_init_std: float | None = None
    neck: str = "bnneck"
    retrieve: str = "neck"
    compression: str | None = None
    compressed_dim: int | None = None
    quantization: str | None = None
    quantization_granularity: str = "tensor"
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
        unknown = {key for key in kwargs if not key.startswith("_")} - _LIBRARY_KEYS
        if unknown:
            known = sorted(field.name for field in fields(ReIDConfig) if field.name not in _base_fields())
            raise ValueError(f"unknown configuration keys {sorted(unknown)}; a ReIDConfig has {', '.join(known)}")
        self.backbone_config = read_config(self.backbone_config or find_variant("res50")["backbone_config"])
        for name in ("image_size", "image_mean", "image_std", "classifier_hidden"):
            setattr(self, name, list(getattr(self, name)))
        # @strict would run these too, but wraps what they raise in an error that is no ValueError.
        self.validate_choices()
        self.validate_input()
        self.validate_head()
        self.validate_parts()
        self.validate_side()
        if self.side is not None:
            self.side = {"cell": "v1", "memory": True, **self.side}
        self.validate_compression()
        self.backbone_config = at_size(self.backbone_config, self.image_size)  # which is said in one place, here
        super().__post_init__(**kwargs)

    def validate_choices(self):
        for name, choices in (
            ("pooling", POOLINGS), ("head", HEADS), ("neck", NECKS), ("retrieve", RETRIEVALS),
            ("interpolation", INTERPOLATIONS), ("compression", COMPRESSIONS), ("quantization", QUANTIZATIONS),
            ("quantization_granularity", GRANULARITIES), ("stride1_stage", STRIDE1_STAGES),
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

    def validate_head(self):
        if (self.head != "none") != (self.embedding_dim is not None):
            raise ValueError(
                "embedding_dim belongs to head='linear' or 'shared_linear', got "
                f"head={self.head!r} and embedding_dim={self.embedding_dim}"
            )

    def validate_parts(self):
        if self.pooling == "part_tokens" and self.backbone_config.model_type != PartViTConfig.model_type:
            raise ValueError(
                f"pooling='part_tokens' needs a backbone with part tokens ({PartViTConfig.model_type!r}), got "
                f"{self.backbone_config.model_type!r}"
            )
        if self.neck == "part_bnneck" and (self.pooling != "part_tokens" or self.head != "none"):
            raise ValueError(
                "neck='part_bnneck' normalises the tokens themselves, so it needs pooling='part_tokens' and "
                f"head='none', got pooling={self.pooling!r} and head={self.head!r}; behind a head take neck='bnneck'"
            )

        branches = self.backbone_config.model_type == MGNConfig.model_type
        if (self.pooling == "branch_stripes") != branches or (self.head == "shared_linear") != branches:
            raise ValueError(
                "pooling='branch_stripes' and head='shared_linear' belong to a backbone with branches "
                f"({MGNConfig.model_type!r}) and it to them, got pooling={self.pooling!r} and head={self.head!r} for "
                f"{self.backbone_config.model_type!r}"
            )

    def validate_side(self):
        if self.side is None:
            return
        unknown = sorted(set(self.side) - set(SIDE_OPTIONS))
        if unknown:
            raise ValueError(f"unknown options {unknown} of a side network; it has {', '.join(SIDE_OPTIONS)}")
        cell = self.side.get("cell", "v1")
        if cell not in SIDE_CELLS:
            raise ValueError(f"the side network's cell must be one of {', '.join(SIDE_CELLS)}, got {cell!r}")
        if "aggregate" in self.side and (cell != "v2" or self.side["aggregate"] not in SIDE_AGGREGATES):
            raise ValueError(
                f"aggregate belongs to a side network of cell 'v2' and is one of {', '.join(SIDE_AGGREGATES)}; got "
                f"{self.side['aggregate']!r} for {cell!r}"
            )
        flags = [name for name in ("memory", "bias", "batch_mean") if not isinstance(self.side.get(name, True), bool)]
        if flags:
            raise ValueError(f"{', '.join(flags)} of a side network must be true or false, got {self.side}")
        stem, pairs = self.side.get("stem"), self.side.get("pairs")
        listed = pairs if isinstance(pairs, list | tuple) else [[1, 1] if pairs is None or type(pairs) is int else []]
        if not (stem is None or _are_widths(stem)) or not all(_are_widths(pair) and len(pair) == 2 for pair in listed):
            raise ValueError(
                "stem of a side network must be channels of its first cells, and pairs a number or pairs of channels, "
                f"all at least 1; got {stem} and {pairs}"
            )
        if self.pooling not in SIDE_POOLINGS:
            raise ValueError(
                f"beside a side network pooling must be one of {', '.join(SIDE_POOLINGS)}, got {self.pooling!r}"
            )

    def validate_compression(self):
        if (self.compression is None) != (self.compressed_dim is None) or (self.compressed_dim or 1) < 1:
            raise ValueError(
                "compression and compressed_dim belong together, and compressed_dim is at least 1; got "
                f"{self.compression!r} and {self.compressed_dim}"
            )
        if self.quantization is not None and self.compression is None:
            raise ValueError(
                "quantization is of a compressed embedding: give compression too; 'slice' with all dimensions keeps it "
                "as it is"
            )
        if self.compression is not None and self.retrieve == "features" and self.neck != "none":
            raise ValueError(
                "a compressed model that retrieves by its features has no neck of its own (training adds one behind "
                f"the compression): neck must be 'none', got {self.neck!r}"
            )

    @classmethod
    def from_variant(cls, name: str, **overrides) -> "ReIDConfig":
        """Configuration of a named variant; `overrides` replace its fields, of `side` only the options they name.

        Raises:
            ValueError: for an unknown variant or field; the nearest name is offered.
            ImportError: for "timm/NAME" without the timm library.
        """
        base = find_variant(name, overrides.get("image_size", cls.image_size))
        if base.get("side") is not None and isinstance(overrides.get("side"), dict):
            overrides["side"] = {**base["side"], **overrides["side"]}
        return cls(**{"variant": name, **base, **overrides})


def _are_widths(value) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(type(n) is int and n > 0 for n in value)


def _base_fields() -> set[str]:
    return {field.name for field in fields(PreTrainedConfig)}
