"""A released weight chain becomes ours: same rows, same tables, and the student that its authors' rule gives."""

import json

import pytest
import torch

from reid_hub import ReIDConfig, ReIDModel, WeightChain
from reid_hub.hub.convert_chain import convert_chain

TINY = {
    "backbone_config": {
        "model_type": "resnet", "embedding_size": 8, "hidden_sizes": [32, 64, 64, 64], "depths": [2, 1, 1, 1],
        "layer_type": "bottleneck",
    },
    "image_size": (64, 32),
}  # fmt: skip


def released_name(name: str) -> str:
    """Our tensor's name in torchvision's, which the release uses."""
    parts = name.split(".")
    kind, leaf = {"convolution": "conv", "normalization": "bn"}[parts[-2]], parts[-1]
    if "embedder" in parts:
        return f"{kind}1.{leaf}"
    stage, block = int(parts[4]) + 1, parts[6]
    if "shortcut" in parts:
        return f"layer{stage}.{block}.downsample.{'0' if kind == 'conv' else '1'}.{leaf}"
    return f"layer{stage}.{block}.{kind}{int(parts[8]) + 1}.{leaf}"


@pytest.fixture
def release(tmp_path):
    """A refinement's checkpoint and tables as the authors write them, of a chain whose rows are not the means."""
    torch.manual_seed(0)
    teacher = ReIDModel(ReIDConfig.from_variant("res50", **TINY))
    chain = WeightChain.from_teacher(teacher, 4, clustering="random")
    state, tables = {}, {}
    for name, tensor in teacher.state_dict().items():
        if name.startswith("backbone."):
            state[f"base.{released_name(name)}"] = tensor
    with torch.no_grad():
        for name, link in chain.links.tensors().items():
            if link.ndim == 4:
                link.add_(0.1 * torch.randn_like(link))
                leaf = released_name(name)
                state[f"base.GeneChain.{leaf}"] = link.detach().clone()
                key = (
                    leaf.removesuffix(".weight").removesuffix(".0") if "downsample" in leaf else leaf[: -len(".weight")]
                )
                tables[f"base.{key}"] = chain.table(chain.groups.axes[name].rows[0]).tolist()
    # What else a released file holds: the rows again, the 0/1 matrices, and norms that nothing reads.
    state["base.layer1.0.Gene_Bottleneck.conv1.weight"] = torch.zeros(1)
    for leaf, width in (("trans_conv1", (8, 4, 1, 1)), ("layer1.0.trans_downsample", (32, 16, 1, 1))):
        state[f"base.GeneChain.{leaf}.weight"] = torch.zeros(width)
    state["base.GeneChain.trans_bn1.weight"] = torch.zeros(8, 8, 1, 1)
    for name, tensor in teacher.state_dict().items():
        if name.startswith("backbone.") and "normalization" in name:
            statistic = name.endswith(("running_mean", "running_var"))
            state[f"base.GeneChain.{released_name(name)}"] = tensor + 2 if statistic else torch.full_like(tensor, 5)
            if statistic:
                chain.links.tensors()[name].add_(2)
    state |= {"GeneNet_bottleneck.weight": torch.ones(2), "GeneNet_classifier.weight": torch.ones(3, 2)}
    state |= {
        "bottleneck.weight": torch.ones(64),
        "bottleneck.bias": torch.zeros(64),
        "classifier.weight": torch.ones(3, 64),
    }
    state |= {"bottleneck.running_mean": torch.zeros(64), "bottleneck.running_var": torch.ones(64)}
    torch.save(state, tmp_path / "resnet50_100.pth")
    (tmp_path / "labels.json").write_text(json.dumps(tables))
    return tmp_path, chain


def test_a_released_chain_expands_like_the_one_it_was_made_from(release):
    folder, chain = release
    convert_chain(folder / "resnet50_100.pth", folder / "labels.json", "res50", folder / "out", **TINY)
    again = WeightChain.from_pretrained(folder / "out")
    for width in (4, 6, 8):
        expected, found = chain.expand(width).state_dict(), again.expand(width).state_dict()
        assert all(torch.equal(expected[name], found[name]) for name in expected if name.startswith("backbone."))
    teacher = ReIDModel.from_pretrained(folder / "out" / "teacher")
    assert again.config.teacher_fingerprint == teacher.fingerprint()


def test_what_does_not_fit_is_named(release):
    folder, _ = release
    checkpoint, labels, out = folder / "resnet50_100.pth", folder / "labels.json", folder / "out"
    tables = json.loads(labels.read_text())

    def convert(file=checkpoint, content=tables):
        labels.write_text(json.dumps(content))
        convert_chain(file, labels, "res50", out, **TINY)

    with pytest.raises(ValueError, match="the table of stem is no partition"):
        convert(content={**tables, "base.conv1": [0] * 8})
    with pytest.raises(ValueError, match=r"layer1\.1\.conv3 shares its channels"):
        convert(content={**tables, "base.layer1.1.conv3": tables["base.layer1.1.conv3"][::-1]})
    with pytest.raises(ValueError, match="no table for stem"):
        convert(content={name: table for name, table in tables.items() if name != "base.conv1"})
    with pytest.raises(ValueError, match=r"a table for base\.conv9, which the teacher does not have"):
        convert(content={**tables, "base.conv9": [0]})
    with pytest.raises(ValueError, match="is not a JSON object of label lists"):
        convert(content=[1, 2])
    plain = folder / "plain.pth"
    torch.save({"conv1.weight": torch.zeros(1)}, plain)
    with pytest.raises(ValueError, match="holds no GeneChain"):
        convert(file=plain)
    with pytest.raises(FileNotFoundError, match="no tables"):
        convert_chain(checkpoint, folder / "nothing.json", "res50", out, **TINY)
    assert not out.exists()
