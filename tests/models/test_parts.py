"""Configurations in parts: the flat form means what it meant, and what fits behind what is told by the parts alone."""

import hashlib
import json

import pytest
import torch
from torch import nn

from reid_hub.models import ReIDConfig, ReIDModel
from reid_hub.models.flat_fields import FLAT, flat_fields, join_fields
from reid_hub.models.pooling import POOLINGS, Pooling
from reid_hub.runs.models import check_changes

# Names, shapes and types of all tensors of every variant, before configurations had parts.
SHAPES = {
    "res18": "b1eac2d45ad7c012",
    "res34": "55850fa663ce6c70",
    "res18-x0.25": "609fef7f55105ed0",
    "res50": "dd03df48e229baa8",
    "res101": "9506334bf22d3e3b",
    "res152": "111e69ff39cee46f",
    "res50-s1": "224849e7f3ff0895",
    "res50-s2": "2b0b0a3e34108fed",
    "res50-s3": "c30c85dbc65eba38",
    "res50-s4": "a3c38dfe932c55b1",
    "res50-s5": "5be129ddd3095431",
    "res50-s6": "1b96bb8e4ebaf359",
    "vit-s": "260c3eec11a1c5af",
    "vit-b": "1a92234170fe0eff",
    "vit-s-s1": "725d91fd296cf418",
    "vit-s-s2": "79af4760c68802c2",
    "vit-b-s1": "ae0098fe64f546fe",
    "vit-b-s2": "ab8803cd1c5e4d7d",
    "transreid-vit-b": "68f6ec77f6123d21",
    "mobilenetv2": "3474c2f8ce349581",
    "squeezenet": "3a73396cd14694d3",
    "res18a": "c73e16ae4714371a",
    "res50a": "f6f89a97b3fb76a6",
    "res50b": "47030130b2789070",
    "res101a": "78c40236daa40f8a",
    "res152a": "7dc3376214abb4b5",
    "res152b": "74265da42a66da3e",
    "res18-x0.25-conv": "1d05b0ea94d08b60",
    "res18-x0.25-ptl": "5a912b4b95731179",
    "res50-conv": "6e4299b5266a8b44",
    "res50-ptl": "b3b036a65fd143f9",
    "densenet161": "b77ce608a8e7cafb",
    "densenet161-ptl": "af38a0abc981532e",
    "densenet-bc-100": "ed4fcf2b71a57b9a",
    "densenet-bc-100-ptl": "85128867c13d3626",
    "mgn": "36fd8d63693d0262",
    "mgn-ptl": "b99faa50ba3f314e",
    "osnet-x1.0": "91aa541d676ae5cf",
    "osnet-x0.75": "e4e422350c73f0f4",
    "osnet-x0.5": "1ec81f3c6cc87525",
    "osnet-x0.25": "a39a65b555d624ac",
    "msinet-x1.0": "a89efd3223e41d82",
    "msinet-x0.75": "b6872758dea0c56b",
    "msinet-x0.5": "2e9e26441fe3d1be",
    "msinet-x0.25": "2eb0a5d992bf6ad6",
}
MGN = {"backbone_config": {"model_type": "reid_mgn", "width": 8, "depths": [1, 1, 2, 1]}, "embedding_dim": 8}
# Variant and flat fields -> sum of all |weights| and the start of the embeddings in evaluation behind one training
# batch, as they were before configurations had parts.
SEEDED = {
    "gem": ("res18-x0.25", {"pooling": "gem", "gem_p": 2.0}, 28859.519, [3.069044, 2.314942, 1.468795]),
    "max": ("res18-x0.25", {"pooling": "max", "pooling_window": 3}, 28857.519, [5.461065, 5.792375, 3.213086]),
    "embedding": (
        "res18-x0.25",
        {
            "head": "linear", "embedding_dim": 12, "head_relu": True, "head_bias": True, "head_init_std": 0.02,
            "retrieve": "features",
        },
        28778.139, [0.0, 0.0, 0.319572],
    ),
    "int8": (
        "res18-x0.25", {"compression": "slice", "compressed_dim": 16, "quantization": "int8"}, 28857.519,
        [1.709793, 1.319368, 0.928943],
    ),
    "low rank": (
        "res18-x0.25",
        {
            "compression": "low_rank", "compressed_dim": 16, "retrieve": "features", "neck": "none",
            "quantization_granularity": "vector",
        },
        28762.026, [-0.164066, -0.123712, 0.716793],
    ),
    "fd": ("squeezenet", {"pooling_window": 2}, 49963.465, [1.00203, 10.093158, -4.578266]),
    "msinet": ("msinet-x0.25", {"retrieve": "neck"}, 25286.495, [-0.035137, 0.009301, 0.01233]),
    "vit": (
        "vit-s-s1", {"neck": "bnneck", "retrieve": "neck", "head": "linear", "embedding_dim": 5}, 42940.892,
        [-0.008384, 3.584172, -3.866768],
    ),
    "side": (
        "res18-x0.25-ptl", {"side": {"cell": "v2", "aggregate": "conv", "bias": True, "memory": False}}, 69357.487,
        [-0.570662, 2.91195, -1.860485],
    ),
    "mgn": ("mgn-ptl", {**MGN, "side": {"cell": "plain"}}, 45046.977, [0.837178, 0.0, 0.0]),
}  # fmt: skip


@pytest.mark.parametrize("variant", SHAPES)
def test_tensors_of_every_variant_keep_their_names_and_shapes(variant):
    with torch.device("meta"):
        model = ReIDModel(ReIDConfig.from_variant(variant))
    text = json.dumps([[name, list(tensor.shape), str(tensor.dtype)] for name, tensor in model.state_dict().items()])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == SHAPES[variant]


@pytest.mark.parametrize("case", SEEDED)
def test_flat_fields_build_the_model_that_they_built(case):
    variant, fields, weights, embedding = SEEDED[case]
    torch.manual_seed(0)
    model = ReIDModel(ReIDConfig.from_variant(variant, image_size=(96, 48), **fields))
    pixels = torch.randn(4, 3, 96, 48, generator=torch.Generator().manual_seed(1))
    assert float(sum(p.detach().double().abs().sum() for p in model.parameters())) == pytest.approx(weights, rel=1e-6)
    with torch.no_grad():
        torch.manual_seed(2)
        model.train()(pixels)
        found = model.eval()(pixels).embeddings[0, :3]
    torch.testing.assert_close(found, torch.tensor(embedding), rtol=1e-3, atol=1e-3)


WRITTEN = {  # The parts in config.json of "res18-x0.25-ptl" with codes, as earlier versions wrote it.
    "compressed_dim": 16, "compression": "pruned", "embedding_dim": 128, "gem_p": 2.0, "head": "linear",
    "head_bias": True, "head_init_std": None, "head_norm": False, "head_relu": False, "neck": "none", "pooling": "gem",
    "pooling_window": 4, "quantization": "int8", "quantization_granularity": "vector",
}  # fmt: skip
PARTS = {
    "pooling": {"name": "gem", "p": 2.0},
    "embedding": {"name": "linear", "dim": 128, "bias": True, "norm": False, "relu": False, "init_std": None},
    "neck": {"name": "none"},
    "codes": {"name": "pruned", "dim": 16, "quantization": "int8", "granularity": "vector"},
}
PLAIN = {
    "compressed_dim": None, "compression": None, "embedding_dim": None, "gem_p": 3.0, "head": "none",
    "head_bias": False, "head_init_std": None, "head_norm": True, "head_relu": False, "neck": "bnneck",
    "pooling": "avg", "pooling_window": 4, "quantization": None, "quantization_granularity": "tensor",
}  # fmt: skip


@pytest.mark.parametrize(
    ("flat", "parts"),
    [
        (WRITTEN, PARTS),
        (PLAIN, {"pooling": "avg", "embedding": "none", "neck": "bnneck", "codes": None}),
        ({"pooling": "stabilised_max"}, {"pooling": {"name": "stabilised_max", "window": 4}}),
        ({"pooling": "avg", "gem_p": 2.0, "head_relu": True, "quantization_granularity": "vector"}, {}),
        ({"head": "linear", "embedding_dim": 4}, {"embedding": {"name": "linear", "dim": 4}}),
    ],
)
def test_both_forms_are_one_configuration(flat, parts):
    assert ReIDConfig(**flat).to_dict() == ReIDConfig(**parts).to_dict()
    assert set(flat) <= set(FLAT)
    assert {name: value for name, value in flat_fields(ReIDConfig(**WRITTEN)).items() if name in WRITTEN} == WRITTEN


def test_a_file_in_the_flat_form_is_read_and_written_in_parts(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "reid", **WRITTEN}))
    config = ReIDConfig.from_pretrained(tmp_path)
    assert {part: getattr(config, part) for part in PARTS} == PARTS
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert {part: written[part] for part in PARTS} == PARTS
    assert not (written.keys() & FLAT.keys()) - {"pooling", "neck"}
    assert ReIDConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("changes", "part", "expected"),
    [
        ({"embedding": {"dim": 24}}, "embedding", {"name": "linear", "dim": 24, "relu": True, "init_std": 0.01}),
        ({"embedding_dim": 24}, "embedding", {"name": "linear", "dim": 24, "relu": True, "init_std": 0.01}),
        ({"head_relu": False}, "embedding", {"dim": 512, "bias": True, "relu": False}),
        ({"embedding": "none"}, "embedding", {"name": "none"}),
        ({"head": "none", "embedding_dim": None}, "embedding", {"name": "none"}),
        ({"pooling": "gem"}, "pooling", {"name": "gem", "p": 3.0}),
        ({"pooling": {"name": "gem", "p": 2}}, "pooling", {"name": "gem", "p": 2.0}),
        ({"codes": {"name": "slice", "dim": 8}, "quantization": "int8"}, "codes", {"dim": 8, "quantization": "int8"}),
    ],
)
def test_a_variants_part_changes_in_the_options_that_are_named(changes, part, expected):
    found = getattr(ReIDConfig.from_variant("osnet-x0.25", **changes), part)
    assert expected.items() <= found.items()
    assert set(found) == set(expected) or part != "embedding" or found["name"] == "linear"


def test_the_fields_of_a_base_are_left_alone():
    base = join_fields({}, {"embedding": {"name": "linear", "dim": 4}})
    join_fields(base, {"embedding_dim": 8})
    assert base == {"embedding": {"name": "linear", "dim": 4}}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pooling": {"name": "gem", "q": 2.0}}, "unknown options q of pooling='gem'; its options are p"),
        ({"pooling": {"name": "avg", "p": 2.0}}, "unknown options p of pooling='avg'; it has no options"),
        ({"pooling": {"name": "stabilised_max", "window": "4"}}, "'window' expected int, got str"),
        ({"embedding": "linear"}, "embedding='linear' needs dim"),
        ({"head": "linear"}, "embedding='linear' needs dim"),
        ({"embedding": {"dim": 4}, "head": "none"}, "unknown options dim of embedding='none'"),
        ({"codes": {"dim": 4}}, "codes needs a name beside dim: one of slice, low_rank, pruned"),
        ({"codes": {"name": "slice", "dim": 0}}, "dim of codes must be at least 1, got 0"),
        ({"codes": {"name": "slice", "dim": 4, "quantization": "int4"}}, "quantization"),
        (
            {"embedding": {"name": "shared_linear", "dim": 4}},
            "needs vectors of parts, but pooling='avg' gives a vector",
        ),
        ({"pooling": "global_strips"}, "pooling must be one of avg, max, gem"),
    ],
)
def test_wrong_parts_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ReIDConfig(**fields)


def test_what_a_trained_model_is_may_be_said_again_in_either_form():
    config = ReIDConfig.from_variant("osnet-x0.25", pooling="gem", side="v2")
    same = {
        "config.pooling": "gem", "config.gem_p": 3.0, "config.head": "linear", "config.embedding_dim": 512,
        "config.embedding": {"dim": 512}, "config.neck": {"name": "none"}, "config.side": "v2",
        "config.compression": None, "config.codes": None, "learning_rate": 1.0,
    }  # fmt: skip
    check_changes(config, same)
    check_changes(config, {"config.embedding": "linear"})
    for name, value, found in (
        ("pooling", "max", "'gem'"),
        ("embedding_dim", 256, "512"),
        ("embedding", {"dim": 256}, r"{'bias': True, 'dim': 512"),
        ("codes", "slice", "None"),
        ("compressed_dim", 8, "None"),
    ):
        with pytest.raises(ValueError, match=f"comes too late for a trained model, whose {name} is {found}"):
            check_changes(config, {f"config.{name}": value})


class HalfPool(Pooling):
    """The mean of the upper share of a map."""

    needs = ("map",)

    def __init__(self, *, share: float = 0.5):
        super().__init__()
        self.share, self.gain = share, nn.Parameter(torch.empty(1))

    def initialise(self) -> None:
        """Twice as much as there is."""
        nn.init.constant_(self.gain, 2.0)

    def forward(self, feature_map):
        rows = round(self.share * feature_map.shape[2])
        return self.gain * feature_map[:, :, :rows].mean((2, 3))


def test_a_new_part_is_a_class_and_its_name(monkeypatch, tmp_path):
    monkeypatch.setitem(POOLINGS, "half", HalfPool)
    model = ReIDModel(ReIDConfig.from_variant("res18-x0.25", pooling={"name": "half", "share": 1}, neck="none"))
    pixels = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        output = model.eval()(pixels)
    torch.testing.assert_close(output.features, 2 * output.feature_map.mean((2, 3)))
    model.save_pretrained(tmp_path)
    again = ReIDModel.from_pretrained(tmp_path)
    assert again.config.pooling == {"name": "half", "share": 1.0}
    assert torch.equal(again(pixels).features, output.features)
    other = ReIDModel(ReIDConfig.from_variant("res18-x0.25", pooling={"name": "half", "share": 0.5}, neck="none"))
    other.load_state_dict(model.state_dict())
    assert other.fingerprint() != model.fingerprint()  # no weight says it
    with pytest.raises(ValueError, match="pooling='half' needs a map, but a 'reid_part_vit' backbone gives tokens"):
        ReIDConfig.from_variant("vit-s", pooling="half", neck="none")
