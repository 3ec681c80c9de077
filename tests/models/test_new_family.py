"""The contract of a model family, run on one whose file is outside the package."""

import importlib
import json
import sys
from itertools import pairwise
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModel
from typer.testing import CliRunner

from reid_hub import ReIDConfig, ReIDModel, WeightChain, list_variants
from reid_hub.cli import app
from reid_hub.hub.convert import convert_checkpoint
from reid_hub.hub.folder import checkpoint_files
from reid_hub.models.families import FAMILIES, register

from ..hub.client import run_python

FAMILY = '''
"""A plain CNN: convolutions of stride 2, each with a batch norm and ReLU."""

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import PreTrainedConfig

from reid_hub.models.families import Family, Foreign, Variant, Width, register, scale_channels
from reid_hub.models.width_groups import WidthGroups


@strict
class PlainConfig(PreTrainedConfig):
    """`channels` of the convolutions."""

    model_type = "plain"
    channels: list[int] | tuple[int, ...] = (8, 16, 32)


class Plain(nn.Module):
    """(B, 3, H, W) -> (B, C, H / 8, W / 8)."""

    def __init__(self, config: PlainConfig):
        super().__init__()
        self.depth, widths = len(config.channels), [3, *config.channels]
        for i, (before, after) in enumerate(zip(widths, widths[1:])):
            setattr(self, f"conv{i}", nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False))
            setattr(self, f"bn{i}", nn.BatchNorm2d(after))
        self.out_channels = widths[-1]

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = pixel_values
        for i in range(self.depth):
            x = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x)).relu()
        return x

    def width_groups(self, groups: WidthGroups) -> tuple[str, ...]:
        reads = ()
        for i in range(self.depth):
            groups.layer(f"conv{i}", reads=reads, writes=f"layer{i}")
            groups.layer(f"bn{i}", writes=f"layer{i}")
            reads = f"layer{i}"
        return (reads,)


def set_width(config: PlainConfig, width: int) -> None:
    config.channels = scale_channels(config.channels, config.channels[0], width)


PLAIN = register(
    Family(
        name="plain",
        title="Plain",
        config=PlainConfig,
        network=Plain,
        variants={
            "plain-s": Variant({"channels": [8, 16, 32]}, {"image_size": (64, 32)}, 6_088, 6_120),
            "plain-xs": Variant({"channels": [4, 8, 16]}, {"image_size": (64, 32)}, 1_604, 1_620),
        },
        width=Width(get=lambda config: config.channels[0], set=set_width, fields=("channels",)),
        foreign=Foreign(
            names=(
                (r"features\\.(\\d+)\\.0\\.(\\w+)", r"backbone.conv\\1.\\2"),
                (r"features\\.(\\d+)\\.1\\.(\\w+)", r"backbone.bn\\1.\\2"),
            ),
            ignored="rotation",
        ),
        citation="""@misc{doe2026plain,
  title  = {Plain Networks},
  author = {Doe, Jane},
  year   = {2026}
}""",
    )
)
'''


@pytest.fixture
def plain(tmp_path, monkeypatch) -> ModuleType:
    """The family's file, imported from a folder of its own; forgotten after the test."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "backbone_plain.py").write_text(FAMILY)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "backbone_plain", raising=False)
    before = dict(FAMILIES)
    yield importlib.import_module("backbone_plain")
    FAMILIES.clear()
    FAMILIES.update(before)


def make(variant: str = "plain-s", **fields) -> ReIDModel:
    """A model whose statistics, gains and offsets all differ."""
    torch.manual_seed(0)
    model = ReIDModel(ReIDConfig.from_variant(variant, **fields))
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor.uniform_(0.5, 1.5) if name.endswith(("weight", "var")) else tensor.normal_(0, 0.1)
    return model.eval()


def pixels(batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 3, 64, 32, generator=torch.Generator().manual_seed(1))


def test_variants_are_listed_and_have_the_counts_beside_them(plain):
    assert {"plain-s", "plain-xs"} <= set(list_variants())
    for name, variant in plain.PLAIN.variants.items():
        with torch.device("meta"):
            model = ReIDModel(ReIDConfig.from_variant(name))
        widths = [3, *variant.backbone["channels"]]
        by_hand = sum(9 * a * b + 2 * b for a, b in pairwise(widths))
        assert sum(p.numel() for p in model.backbone.parameters()) == by_hand == variant.backbone_parameters
        assert sum(p.numel() for p in model.parameters()) == by_hand + widths[-1] == variant.parameters
    assert [name for name in list_variants() if "plain" not in name] == [
        name for family in FAMILIES.values() if family.name != "plain" for name in family.variants
    ] + ["timm/<name>"]


def test_a_checkpoint_is_the_same_with_the_package_and_without(plain, tmp_path):
    model, folder, x = make(), tmp_path / "model", pixels()
    model.save_pretrained(folder)
    assert "backbone_plain.py" in checkpoint_files(folder)
    assert "reid_hub" not in (folder / "backbone_plain.py").read_text()
    with torch.no_grad():
        expected = model(x).embeddings
        assert torch.equal(AutoModel.from_pretrained(folder)(x).embeddings, expected)
    save_file({"pixels": x, "embeddings": expected}, tmp_path / "expected.safetensors")
    code = """
import sys, torch
from safetensors.torch import load_file
from transformers import AutoModel
expected = load_file(sys.argv[2])
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
assert type(model.backbone).__module__.startswith("transformers_modules."), type(model.backbone)
with torch.no_grad():
    assert torch.equal(model(expected["pixels"]).embeddings, expected["embeddings"])
print("loaded without the package")
"""
    arguments = [str(folder), str(tmp_path / "expected.safetensors")]
    home = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    assert "loaded without the package" in run_python(code, home, *arguments, package=False)
    del FAMILIES["plain"]
    with pytest.raises(ValueError, match=r"unknown model_type 'plain' .*import its file first"):
        AutoModel.from_pretrained(folder)


def test_a_chain_of_pairs_of_channels_loses_nothing(plain, tmp_path):
    """Of a teacher that has every channel of a narrow network twice."""
    narrow, teacher = make("plain-xs"), make("plain-s")
    ours = teacher.state_dict()
    for name, tensor in narrow.state_dict().items():
        if tensor.ndim:
            twice = tensor.repeat_interleave(2, 0)
            halved = tensor.ndim > 1 and tensor.shape[1] > 3  # each of a pair of columns brings half
            ours[name].copy_(twice.repeat_interleave(2, 1) / 2 if halved else twice)
    chain = WeightChain.from_teacher(teacher, 4)
    chain.save_pretrained(tmp_path / "chain")
    assert (tmp_path / "chain" / "backbone_plain.py").is_file()
    chain = WeightChain.from_pretrained(tmp_path / "chain")
    x = pixels()
    with torch.no_grad():
        expected = narrow(x).features.sort(1).values
        torch.testing.assert_close(teacher(x).features.sort(1).values[:, ::2], expected)
        for student, factor in ((4, 1), ("plain-xs", 1), (8, 2), ("plain-s", 2)):
            got = chain.expand(student)
            assert got.config.backbone_config.channels == [4 * factor, 8 * factor, 16 * factor]
            torch.testing.assert_close(got(x).features.sort(1).values[:, ::factor], expected)
    with pytest.raises(ValueError, match="the nearest that does not is"):
        WeightChain.from_teacher(make("plain-s", backbone_config={"model_type": "plain", "channels": [4, 6]}), 3)


def test_a_foreign_checkpoint_is_read_by_the_table(plain, tmp_path):
    theirs, before = nn.Sequential(), 3
    for number, width in enumerate((4, 8, 16)):
        layers = nn.Conv2d(before, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        theirs.add_module(str(number), nn.Sequential(*layers))
        before = width
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    state = {f"features.{name}": tensor for name, tensor in theirs.state_dict().items()}
    state |= {"classifier.weight": torch.zeros(9, 16), "rotation.weight": torch.zeros(4, 16)}
    torch.save({"state_dict": state}, tmp_path / "plain.pth")
    model, conversion = convert_checkpoint(tmp_path / "plain.pth", "plain-xs", tmp_path / "out")
    assert conversion.ignored == ["classifier.weight", "rotation.weight"]
    assert len(conversion.used) == len(state) - 2
    with torch.no_grad():
        torch.testing.assert_close(model.backbone(pixels()), theirs.eval()(pixels()))
    torch.save({**state, "stranger": torch.zeros(1)}, tmp_path / "plain.pth")
    with pytest.raises(ValueError, match=r"unknown 1 \(stranger\)"):
        convert_checkpoint(tmp_path / "plain.pth", "plain-xs", tmp_path / "refused")


def test_two_steps_of_training_and_a_card_that_cites_the_family(plain, tmp_path):
    data = {"num_train_ids": 4, "num_test_ids": 2, "images_per_id": 8, "num_distractors": 0}
    words = ["train", "--model", "plain-xs", "--data", "synthetic", "--out", tmp_path / "run", "--validation", 0]
    words += [word for name, value in data.items() for word in ("--data-option", f"{name}={value}")]
    words += ["--set", "batch_size=8", "--set", "num_instances=2", "--arg", "max_steps=2", "--arg", "use_cpu=true"]
    ran = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["cost"]["parameters"] == 1_620
    torch.manual_seed(0)
    trained = AutoModel.from_pretrained(tmp_path / "run")
    assert (trained.backbone.bn2.num_batches_tracked == 2).all()
    assert "doe2026plain" in (tmp_path / "run" / "README.md").read_text()


def renamed(code: str) -> str:
    """A family that takes no name of the first one's."""
    return code.replace('"plain', '"third')


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (FAMILY, "family 'plain' is already registered by .*backbone_plain.py: choose another"),
        (FAMILY.replace('"plain"', '"third"'), "family 'plain' already has the variants plain-s, plain-xs: choose"),
        (renamed(FAMILY).replace('name="third"', 'name="fourth"'), "their model_type 'third', got 'fourth'"),
        (f"import reid_hub\n{renamed(FAMILY)}", r"line 1 of .*broken.py: the file travels with checkpoints"),
        (f"\nfrom reid_hub.models import ReIDConfig\n{renamed(FAMILY)}", "line 2 of .*reid_hub.models.NAME import"),
        (f"from reid_hub.hub.convert import load_foreign\n{renamed(FAMILY)}", "line 1 of .*the file travels"),
        # These read the list of families, which would then read itself.
        (f"from reid_hub.models.backbones import FAMILIES\n{renamed(FAMILY)}", "line 1 of .*the file travels"),
        (f"from reid_hub.models.width_scale import at_width\n{renamed(FAMILY)}", "line 1 of .*the file travels"),
    ],
)
def test_a_family_that_takes_a_name_or_could_not_travel_is_refused(plain, tmp_path, monkeypatch, code, message):
    (tmp_path / "elsewhere" / "broken.py").write_text(code)
    monkeypatch.delitem(sys.modules, "broken", raising=False)
    before = dict(FAMILIES)
    with pytest.raises(ValueError, match=message):
        importlib.import_module("broken")
    assert before == FAMILIES


def test_its_own_file_may_register_a_family_again(plain):
    again = importlib.reload(plain)
    assert FAMILIES["plain"] is again.PLAIN


def test_a_family_of_a_script_is_refused(plain, monkeypatch):
    monkeypatch.setattr(plain.PlainConfig, "__module__", "__main__")
    with pytest.raises(ValueError, match="put the family into a file of its own"):
        register(plain.PLAIN)


def test_a_file_with_the_name_of_one_of_ours_is_refused_before_anything_is_written(plain, tmp_path):
    (tmp_path / "elsewhere" / "layers.py").write_text(FAMILY)
    FAMILIES.pop("plain")
    sys.modules.pop("layers", None)
    importlib.import_module("layers")
    with pytest.raises(ValueError, match="has the name of a file of the package"):
        make().save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
