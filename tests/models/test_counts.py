"""Exact sizes: published figures of the methods, and every variant against PyTorch's own count of its parts."""

import pytest
import torch

from reid_hub import ReIDConfig, ReIDModel
from reid_hub.evaluation.cost import count_macs, measure_cost
from reid_hub.models.families import FAMILIES


def build_on_meta(variant: str, **overrides) -> ReIDModel:
    with torch.device("meta"):
        return ReIDModel(ReIDConfig.from_variant(variant, **overrides))


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


PUBLISHED = {
    name: variant
    for family in FAMILIES.values()
    for name, variant in family.variants.items()
    if variant.backbone_parameters is not None or variant.parameters is not None
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_variant_has_the_published_number_of_parameters(name):
    """The figures are beside the variants, in the file of their family."""
    variant, model = PUBLISHED[name], build_on_meta(name)
    assert variant.backbone_parameters in (None, count(model.backbone))
    assert variant.parameters in (None, count(model))


def test_every_family_with_variants_has_published_numbers():
    with_variants = {name: set(family.variants) for name, family in FAMILIES.items() if family.variants}
    assert len(with_variants) == 8
    assert [name for name, variants in with_variants.items() if not variants & set(PUBLISHED)] == []
    assert len(PUBLISHED) >= 40


@pytest.mark.parametrize(
    ("variant", "published"),
    [("osnet-x1.0", 2_169_508), ("osnet-x0.75", 1_236_218), ("osnet-x0.5", 563_730), ("osnet-x0.25", 151_560)],
)
def test_osnet_with_an_embedding_as_wide_as_its_trunk_has_the_size_that_oskt_compares(variant, published):
    width = ReIDConfig.from_variant(variant).backbone_config.channels[-1]
    assert count(build_on_meta(variant, embedding_dim=width)) == published


@pytest.mark.parametrize(
    ("variant", "ids", "published"),
    [
        # Progressive Transfer Learning, table I: the feature's convolution and three fully connected layers.
        ("res50-conv", 1041, 28_562_257), ("res50-ptl", 1041, 35_921_745),
        ("densenet161", 1041, 32_248_305), ("densenet161-ptl", 1041, 42_630_129),
        # MGN with its eight classifiers, and less what the release of MGN+PTL registers and never uses.
        ("mgn", 751, 66_678_200), ("mgn", 702, 66_577_456), ("mgn", 1041, 67_274_440),
        ("mgn-ptl", 751, 103_487_648 - 22_599_656),
        # DenseNet-BC-100-12 with its classifier.
        ("densenet-bc-100", 10, 769_162), ("densenet-bc-100", 100, 800_032),
    ],
)  # fmt: skip
def test_network_with_its_classifier_has_the_published_number_of_parameters(variant, ids, published):
    model = build_on_meta(variant)
    classifier = sum((dim + 1) * ids for dim in model.part_dims)
    if model.config.embedding["name"] == "linear":
        classifier = (model.feature_dim + 1) * 256 + 257 * 256 + 257 * ids
    assert count(model) + classifier == published


@pytest.mark.parametrize("variant", ["res50-ptl", "densenet161-ptl", "mgn-ptl", "densenet-bc-100-ptl"])
def test_cells_have_four_filters_of_nine_weights_for_each_pair_of_channels(variant):
    cells = [module for module in build_on_meta(variant).side.modules() if hasattr(module, "gates")]
    assert [count(cell) for cell in cells] == [4 * cell.c_out * cell.c_in * 9 for cell in cells]
    widths = [(cell.c_in, cell.c_out, cell.stride) for cell in cells]
    expected = [(3, 16, 2), (16, 32, 2), (64, 64, 1), (128, 256, 2), (256, 512, 2)]
    ends = {"res50-ptl": [], "densenet161-ptl": [(512, 128, 2)], "mgn-ptl": [(512, 128, s) for s in (2, 1, 1)]}
    if variant == "densenet-bc-100-ptl":
        expected, ends = [(3, 16, 1), (32, 32, 1), (64, 64, 2), (128, 128, 2)], {variant: []}
    assert widths == expected + ends[variant]


def count_layers(variant: str, **overrides) -> int:
    model = build_on_meta(variant, **overrides).eval()
    return count_macs(model, torch.empty(1, 3, *model.config.image_size, device="meta"))[0]


def test_mgn_multiplies_as_often_as_published():
    """With eight classifiers of 751 identities, which this model does not have, at 384x128."""
    assert count_layers("mgn") + 8 * 256 * 751 == 11_886_360_576


def test_densenets_multiply_as_often_as_published():
    assert count_layers("densenet161", head="none", embedding_dim=None) == 5_045_354_496
    assert count_layers("densenet-bc-100") + 342 * 10 == 287_929_692


MSINETS = {  # Parameters without classifiers, multiply-adds with both necks, both as published (x1.0) or computed.
    "msinet-x1.0": (2_328_035, 1_129_131_520),
    "msinet-x0.75": (1_361_962, 656_103_616),
    "msinet-x0.5": (663_155, 310_250_368),
    "msinet-x0.25": (231_130, 91_570_816),
}


@pytest.mark.parametrize("variant", MSINETS)
def test_msinet_costs_what_is_published(variant):
    published, macs = MSINETS[variant]
    model = build_on_meta(variant, retrieve="neck")
    # Batch norm's biases, frozen at zero there, are no parameters here.
    assert count(model) + model.feature_dim == published
    cost = measure_cost(model, repeats=1)
    # Of the two energies of a cross attention one is the other's transpose, and is not computed again.
    c2, c3 = (width // 4 for width in model.backbone.stage_channels[-2:])
    assert cost.macs + cost.attention_macs + c2**2 * 32 * 16 + 2 * c3**2 * 16 * 8 == macs


def test_msinet_cells_have_the_published_sizes():
    sizes = [98_696, 105_796, 66_048, 307_303, 232_806, 148_224, 574_089, 407_041]
    assert [count(cell) for cell in build_on_meta("msinet-x1.0").backbone.cells] == sizes


@pytest.mark.parametrize(
    ("variant", "embed_dim", "width", "printed", "without_tokens", "published"),
    [
        # Millions in three conventions: every parameter of the trunk; without tokens and positions, which profilers
        # that count by layers do not see; and the latter of a network whose patch embedding is as narrow as its blocks,
        # which is what OSKT's tables print. (OSKT prints 4.42 for ViT-S-S2, counting an unused layer of 1000 classes.)
        ("vit-s-s1", 384, 120, 2.486, 2.434, 2.199), ("vit-s-s2", 384, 168, 4.503, 4.451, 4.248),
        ("vit-s", 384, 384, 21.789, 21.737, 21.737), ("vit-b-s1", 768, 264, 10.976, 10.871, 10.351),
        ("vit-b-s2", 768, 336, 17.263, 17.159, 16.681), ("vit-b", 768, 768, 86.341, 86.236, 86.236),
    ],
)  # fmt: skip
def test_part_vit_has_the_published_number_of_parameters(variant, embed_dim, width, printed, without_tokens, published):
    def formula(e: int, d: int) -> int:
        """Patch embedding; dw; blocks; last norm; four tokens with their positions; 128 positions."""
        return (3 * 16 * 16 * e + e) + d * e + 12 * (12 * d * d + 13 * d) + 2 * d + 8 * e + 128 * e

    backbone = build_on_meta(variant).backbone
    assert count(backbone) == formula(embed_dim, width)
    tokens = sum(p.numel() for name, p in backbone.named_parameters() if "." not in name)
    assert tokens == 136 * embed_dim
    narrow = formula(width, width) - 136 * width
    assert [round(n / 1e6, 3) for n in (count(backbone), count(backbone) - tokens, narrow)] == [
        printed, without_tokens, published,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("variant", "embed_dim", "width", "printed", "with_attention"),
    [
        ("vit-s-s1", 384, 120, 0.3175, 0.3677), ("vit-s-s2", 384, 168, 0.5827, 0.6530),
        ("vit-s", 384, 384, 2.8601, 3.0206), ("vit-b-s1", 768, 264, 1.4270, 1.5374),
        ("vit-b-s2", 768, 336, 2.2555, 2.3960), ("vit-b", 768, 768, 11.3647, 11.6859),
    ],
)  # fmt: skip
def test_part_vit_has_the_published_multiply_adds(variant, embed_dim, width, printed, with_attention):
    """128 patches are embedded; 132 tokens go through dw and the blocks, and each meets each twice (q k, values)."""
    cost = measure_cost(build_on_meta(variant), repeats=1)
    assert cost.macs == 128 * 3 * 16 * 16 * embed_dim + 132 * embed_dim * width + 12 * 132 * 12 * width * width
    assert cost.attention_macs == 12 * 2 * 132 * 132 * width
    assert round(cost.macs / 1e9, 4) == printed
    assert round((cost.macs + cost.attention_macs) / 1e9, 4) == with_attention


def test_transreid_baseline_is_a_vit_b_of_128_patches():
    """Patch embedding; class token; 129 positions; twelve blocks; last norm: the 85.8 M of the paper, 768 numbers."""
    model, d = build_on_meta("transreid-vit-b"), 768
    expected = (3 * 16 * 16 * d + d) + d + 129 * d + 12 * (12 * d * d + 13 * d) + 2 * d
    assert count(model.backbone) == expected
    assert round(expected / 1e6, 1) == 85.7  # "85.8" rounds 197 positions up, those of 224x224
    assert model.embedding_dim == 768
    assert build_on_meta("transreid-vit-b", image_size=(128, 64)).eval().config.backbone_config.model_args == {
        "img_size": [128, 64], "drop_path_rate": 0.1,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
def test_trunk_counts_what_torchvision_counts(name):
    import torchvision

    with torch.device("meta"):
        reference = torchvision.models.get_model(name)
    reference.fc = torch.nn.Identity()
    assert count(build_on_meta(name.replace("resnet", "res")).backbone) == count(reference)


def test_osnet_checkpoint_has_the_published_number_of_entries():
    plain = build_on_meta("osnet-x0.25").state_dict()
    with_ibn = build_on_meta("osnet-x0.25", backbone_config={"model_type": "reid_osnet", "ibn": True}).state_dict()
    classifier = 2
    assert len(plain) + classifier == 567
    assert len(with_ibn) + classifier == 568


@pytest.mark.parametrize("variant", [name for family in FAMILIES.values() for name in family.variants])
def test_every_variant_states_the_width_it_has(variant):
    model = build_on_meta(variant)
    with torch.device("meta"):
        output = model.eval()(torch.empty(1, 3, *model.config.image_size))
    channels = output.feature_map.shape[1 if output.feature_map.ndim == 4 else 2]
    assert channels == model.backbone.out_channels
    assert output.features.shape == (1, model.feature_dim)
    assert output.embeddings.shape == (1, model.embedding_dim)


@pytest.mark.parametrize(
    ("variant", "size", "expected"),
    [
        ("mgn", (384, 128), (24, 8)),
        ("res50", (256, 128), (16, 8)), ("res50-s2", (256, 128), (16, 8)), ("res18", (224, 224), (14, 14)),
        ("squeezenet", (256, 128), (15, 7)), ("squeezenet", (224, 224), (13, 13)), ("osnet-x0.5", (256, 128), (16, 8)),
    ],
)  # fmt: skip
def test_map_has_stride_sixteen(variant, size, expected):
    model = build_on_meta(variant)
    with torch.device("meta"):
        assert tuple(model.backbone(torch.empty(1, 3, *size)).shape[2:]) == expected


@pytest.mark.parametrize(
    ("stage", "reductions", "billions"), [(4, (4, 4, 8, 16, 16), 1.99), (3, (4, 4, 8, 8, 16), 2.79)]
)
def test_either_of_the_last_two_stages_can_be_the_one_without_a_stride(stage, reductions, billions):
    """Against a trunk whose strides are set by hand; Factorized Distillation says "conv4_1", which may be either."""
    torch.manual_seed(0)
    model = ReIDModel(ReIDConfig.from_variant("res18", stride1_stage=stage)).eval()
    plain = ReIDModel(ReIDConfig.from_variant("res18", last_stride=None)).eval()
    plain.load_state_dict(model.state_dict())
    assert plain.fingerprint() != model.fingerprint()
    block = plain.backbone.model.encoder.stages[stage - 1].layers[0]
    for convolution in (block.layer[0].convolution, block.shortcut.convolution):
        assert convolution.stride == (2, 2)
        convolution.stride = (1, 1)
    pixels = torch.randn(1, 3, 64, 32)
    with torch.no_grad():
        assert torch.equal(model(pixels).feature_map, plain(pixels).feature_map)
        assert model.backbone.stage_reductions == reductions
        assert [64 // feature_map.shape[2] for feature_map in model.backbone.stages(pixels)] == list(reductions)
    assert measure_cost(model, repeats=1).macs / 1e9 == pytest.approx(billions, abs=0.005)


def test_a_stage_without_a_stride_is_asked_of_a_resnet():
    with torch.device("meta"):
        timm = ReIDModel(ReIDConfig.from_variant("timm/resnet10t", stride1_stage=3)).eval()
        assert timm.backbone.stage_reductions[-2:] == (8, 16)
        assert timm(torch.empty(1, 3, 64, 32)).feature_map.shape[2:] == (4, 2)
        for variant, fields, reason in (
            (
                "squeezenet",
                {"stride1_stage": 3},
                "is for a ResNet, reid_squeezenet has its own strides",
            ),
            ("timm/vit_tiny_patch16_224", {"stride1_stage": 3}, "needs a backbone with a strided last stage but one"),
            ("res18", {"stride1_stage": 2}, "stride1_stage must be one of None, 3, 4, got 2"),
        ):
            with pytest.raises(ValueError, match=reason):
                ReIDModel(ReIDConfig.from_variant(variant, **fields))
