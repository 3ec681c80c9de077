"""Named model variants as plain data: what `ReIDConfig.from_variant` builds, and nothing else."""

from difflib import get_close_matches


def _resnet(depths: list[int], planes: list[int], layer_type: str = "bottleneck", stem: int | None = None) -> dict:
    """ResNet with free stage widths; a bottleneck stage of `planes` channels puts out four times as many."""
    expansion = 4 if layer_type == "bottleneck" else 1
    return {
        "backbone_config": {
            "model_type": "resnet",
            "embedding_size": stem or planes[0],
            "hidden_sizes": [expansion * width for width in planes],
            "depths": depths,
            "layer_type": layer_type,
        },
        "last_stride": 1,
    }


def _factorized(base: dict, embedding_dim: int) -> dict:
    """Factorized Distillation (arXiv:1811.08073) 2.2-2.3: stabilised max pooling, then FC without bias and BN."""
    return {**base, "pooling": "stabilised_max", "head": "linear", "embedding_dim": embedding_dim, "neck": "none"}


def _osnet(channels: list[int]) -> dict:
    """OSNet (arXiv:1905.00953): the 512-d vector after FC, BN and ReLU is classified, compared and retrieved."""
    return {
        "backbone_config": {"model_type": "reid_osnet", "channels": channels},
        "head": "linear",
        "head_bias": True,
        "head_relu": True,
        "head_init_std": 0.01,
        "embedding_dim": 512,
        "neck": "none",
    }


def _part_vit(embed_dim: int, heads: int, width: int | None = None) -> dict:
    """PASS (arXiv:2203.03931) as OSKT (arXiv:2511.06016) uses it: a student keeps its teacher's patch embedding."""
    return {
        "backbone_config": {
            "model_type": "reid_part_vit",
            "embed_dim": embed_dim,
            "width": width or embed_dim,
            "heads": heads,
        },
        "pooling": "part_tokens",
        "neck": "part_bnneck",
        "retrieve": "features",
        "image_mean": (0.5, 0.5, 0.5),
        "image_std": (0.5, 0.5, 0.5),
    }


def _msinet(channels: list[int]) -> dict:
    """MSINet (arXiv:2303.07065): the global and the striped vector are compared, and classified behind their necks."""
    return {
        "backbone_config": {"model_type": "reid_msinet", "channels": channels},
        "pooling": "global_stripes",
        "neck": "linear_bnneck",
        "retrieve": "features",
    }


def _conv_head(base: dict, embedding_dim: int, side: dict | None = None) -> dict:
    """Progressive Transfer Learning (arXiv:1908.02492): a 1x1 convolution without norm makes the feature.

    The paper's ResNet-50 goes down to 1/32. Without `side` they are its baselines, and its students.
    """
    head = {"head": "linear", "head_bias": True, "head_norm": False, "embedding_dim": embedding_dim, "neck": "none"}
    return {**base, "last_stride": None, **head, "side": side}


def _mgn(side: dict | None = None) -> dict:
    """MGN (arXiv:1804.01438) as Progressive Transfer Learning's authors reproduced it: eight vectors of 256 numbers."""
    return {
        "backbone_config": {"model_type": "reid_mgn"},
        "pooling": "branch_stripes",
        "head": "shared_linear",
        "head_bias": side is not None,
        "head_relu": True,
        "embedding_dim": 256,
        "neck": "none",
        "side": side,
        "image_size": (384, 128),
        "interpolation": "bicubic",
    }


def _cifar(side: dict | None = None) -> dict:
    """DenseNet-BC-100-12 (arXiv:1608.06993) for pictures of 32x32; with a side network behind a 1x1 convolution."""
    densenet = {"growth": 12, "blocks": [16, 16, 16], "stem": 24, "small_input": True}
    base = {
        "backbone_config": {"model_type": "reid_densenet", **densenet},
        "neck": "none",
        "image_size": (32, 32),
        "image_mean": (0.4914, 0.4822, 0.4465),
        "image_std": (0.2470, 0.2435, 0.2616),
    }
    return base if side is None else _conv_head(base, 342, side)


def _planes(width: int, *multipliers: int) -> list[int]:
    return [width, *(width * multiplier for multiplier in multipliers)]


R18, R34 = ([2, 2, 2, 2], [64, 128, 256, 512], "basic"), ([3, 4, 6, 3], [64, 128, 256, 512], "basic")
R18_QUARTER = ([2, 2, 2, 2], [16, 32, 64, 128], "basic")
D161 = {"backbone_config": {"model_type": "reid_densenet"}}
# With the published widths and three pairs ResNet-50 has the size that the paper states, with four it would not;
# DenseNet-161 has it with the published widths themselves, its stem is wider.
D161_SIDE = {"stem": [16, 32], "pairs": [[64, 64], [128, 256], [256, 512], [512, 128]]}
R50, R101, R152 = [3, 4, 6, 3], [3, 4, 23, 3], [3, 8, 36, 3]
FULL = [64, 128, 256, 512]

VARIANTS: dict[str, dict] = {
    "res18": _resnet(*R18),
    "res34": _resnet(*R34),
    # A quarter of the width in basic blocks: trains from nothing in minutes where the narrow bottlenecks below do not.
    "res18-x0.25": _resnet(*R18_QUARTER),
    "res50": _resnet(R50, FULL),
    "res101": _resnet(R101, FULL),
    "res152": _resnet(R152, FULL),
    # OSKT (arXiv:2511.06016), table A1: stem width and the three multipliers of the stages behind the first.
    "res50-s1": _resnet(R50, _planes(8, 2, 4, 8)),
    "res50-s2": _resnet(R50, _planes(16, 2, 3, 4)),
    "res50-s3": _resnet(R50, _planes(16, 2, 4, 8)),
    "res50-s4": _resnet(R50, _planes(32, 2, 3, 4)),
    "res50-s5": _resnet(R50, _planes(32, 2, 4, 8)),
    "res50-s6": _resnet(R50, _planes(64, 2, 3, 4)),
    # OSKT, table A3: teachers, and students with the teacher's heads in narrower blocks.
    "vit-s": _part_vit(384, 6),
    "vit-b": _part_vit(768, 12),
    "vit-s-s1": _part_vit(384, 6, 120),
    "vit-s-s2": _part_vit(384, 6, 168),
    "vit-b-s1": _part_vit(768, 12, 264),
    "vit-b-s2": _part_vit(768, 12, 336),
    # TransReID's baseline (arXiv:2102.04378), which Embedding Compression (arXiv:2405.14730) starts from: ViT-B/16 by
    # its class token, stochastic depth 0.1, ranked by what enters the BNNeck.
    "transreid-vit-b": {
        "backbone_config": {
            "model_type": "timm_wrapper",
            "architecture": "vit_base_patch16_224",
            "model_args": {"img_size": [256, 128], "drop_path_rate": 0.1},
        },
        "pooling": "cls",
        "retrieve": "features",
        "image_mean": (0.5, 0.5, 0.5),
        "image_std": (0.5, 0.5, 0.5),
    },
    # MobileNetV2 as torchvision has it, a student of KDEP (arXiv:2203.05180); that of transformers pads otherwise.
    "mobilenetv2": {"backbone_config": {"model_type": "timm_wrapper", "architecture": "mobilenetv2_100"}},
    # Students of Factorized Distillation, table 1.
    "squeezenet": _factorized({"backbone_config": {"model_type": "reid_squeezenet"}}, 512),
    "res18a": _factorized(_resnet(*R18), 512),
    "res50a": _factorized(_resnet(R50, FULL), 512),
    "res50b": _factorized(_resnet(R50, FULL), 2048),
    "res101a": _factorized(_resnet(R101, FULL), 512),
    "res152a": _factorized(_resnet(R152, FULL), 512),
    "res152b": _factorized(_resnet(R152, FULL), 2048),
    # Progressive Transfer Learning (arXiv:1908.02492): baselines, and networks with a side network.
    "res18-x0.25-conv": _conv_head(_resnet(*R18_QUARTER), 128),
    "res18-x0.25-ptl": _conv_head(_resnet(*R18_QUARTER), 128, {"pairs": 3}),
    "res50-conv": _conv_head(_resnet(R50, FULL), 2048),
    "res50-ptl": _conv_head(_resnet(R50, FULL), 2048, {"pairs": 3}),
    "densenet161": _conv_head(D161, 2208),
    "densenet161-ptl": _conv_head(D161, 2208, D161_SIDE),
    "densenet-bc-100": _cifar(),
    "densenet-bc-100-ptl": _cifar({"stem": [16], "pairs": [[32, 32], [64, 64], [128, 128]]}),
    "mgn": _mgn(),
    "mgn-ptl": _mgn({"cell": "v1"}),
    "osnet-x1.0": _osnet([64, 256, 384, 512]),
    "osnet-x0.75": _osnet([48, 192, 288, 384]),
    "osnet-x0.5": _osnet([32, 128, 192, 256]),
    "osnet-x0.25": _osnet([16, 64, 96, 128]),
    # Only x1.0 was released; the widths are OSNet's.
    "msinet-x1.0": _msinet([64, 256, 384, 512]),
    "msinet-x0.75": _msinet([48, 192, 288, 384]),
    "msinet-x0.5": _msinet([32, 128, 192, 256]),
    "msinet-x0.25": _msinet([16, 64, 96, 128]),
}


def list_variants() -> list[str]:
    """Names that `ReIDConfig.from_variant` knows; besides these, "timm/NAME" takes any model of the timm library."""
    return [*VARIANTS, "timm/<name>"]


def find_variant(name: str) -> dict:
    """The configuration fields of a variant, nested values shared with the table: copy before writing.

    Raises:
        ValueError: if there is no such variant; the nearest name is offered.
    """
    if name not in VARIANTS:
        # The package has a look-up for this, but a file that travels with a checkpoint imports siblings only.
        near = get_close_matches(name, VARIANTS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown variant {name!r}: {hint}choices are {', '.join(list_variants())}")
    return VARIANTS[name]
