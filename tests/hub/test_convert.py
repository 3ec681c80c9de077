"""Foreign checkpoints: torchvision's own networks; OSNet and MSINet written a second time from their tensor names."""

import copy
import io
import pickle
import re
import zipfile

import pytest
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModel

from reid_hub import ReIDConfig, ReIDModel
from reid_hub.hub.convert import convert_checkpoint, load_foreign, load_weights, read_checkpoint


class FunctionalOSNet:
    """OSNet's evaluation forward from a torchreid state dict, as plain function calls."""

    def __init__(self, tensors: dict[str, torch.Tensor]):
        self.t = tensors

    def norm(self, x, name):
        t = self.t
        return F.batch_norm(
            x, t[f"{name}.running_mean"], t[f"{name}.running_var"], t[f"{name}.weight"], t[f"{name}.bias"]
        )

    def layer(self, x, name, stride=1, pad=0, relu=True):
        x = self.norm(F.conv2d(x, self.t[f"{name}.conv.weight"], stride=stride, padding=pad), f"{name}.bn")
        return F.relu(x) if relu else x

    def lite(self, x, name):
        depthwise = self.t[f"{name}.conv2.weight"]
        x = F.conv2d(x, self.t[f"{name}.conv1.weight"])
        return F.relu(self.norm(F.conv2d(x, depthwise, padding=1, groups=len(depthwise)), f"{name}.bn"))

    def gate(self, x, name):
        t, squeezed = self.t, F.adaptive_avg_pool2d(x, 1)
        squeezed = F.relu(F.conv2d(squeezed, t[f"{name}.fc1.weight"], t[f"{name}.fc1.bias"]))
        return x * torch.sigmoid(F.conv2d(squeezed, t[f"{name}.fc2.weight"], t[f"{name}.fc2.bias"]))

    def block(self, x, name):
        entry, joined = self.layer(x, f"{name}.conv1"), 0
        for letter, depth in zip("abcd", (1, 2, 3, 4), strict=True):
            stream = entry
            for number in range(depth):
                stream = self.lite(stream, f"{name}.conv2{letter}" + (f".{number}" if depth > 1 else ""))
            joined = joined + self.gate(stream, f"{name}.gate")
        out = self.layer(joined, f"{name}.conv3", relu=False)
        has_downsample = f"{name}.downsample.conv.weight" in self.t
        return F.relu(out + (self.layer(x, f"{name}.downsample", relu=False) if has_downsample else x))

    def __call__(self, x):
        x = F.max_pool2d(self.layer(x, "conv1", stride=2, pad=3), 3, 2, 1)
        for stage in (2, 3, 4):
            x = self.block(self.block(x, f"conv{stage}.0"), f"conv{stage}.1")
            if stage < 4:
                x = F.avg_pool2d(self.layer(x, f"conv{stage}.2.0"), 2)
        v = self.layer(x, "conv5").mean((2, 3))
        return F.relu(self.norm(F.linear(v, self.t["fc.0.weight"], self.t["fc.0.bias"]), "fc.1"))


class FunctionalMSINet(FunctionalOSNet):
    """MSINet's evaluation forward from a published state dict: the vector v beside f, and n beside n_f."""

    # Interactions in the middle and at the tail of each cell: Gate, eXchange, Cross attention, or none.
    CELLS = ("GG", "XG", "transition", "CG", "G-", "transition", "GC", "XC")

    def interact(self, a, b, name, kind):
        if kind == "G":
            return self.gate(a, name), self.gate(b, name)
        if kind != "C":
            return (b, a) if kind == "X" else (a, b)
        energy = torch.einsum("nihw,njhw->nij", a, b)
        gamma, energies = self.t[f"{name}.gamma"], (energy, energy.transpose(1, 2))
        return [
            x + gamma * torch.einsum("nij,njhw->nihw", F.softmax(e.amax(2, keepdim=True) - e, 2), x)
            for x, e in zip((a, b), energies, strict=True)
        ]

    def cell(self, x, name, kinds):
        a, b = self.layer(x, f"{name}.conv1a"), self.layer(x, f"{name}.conv1b")
        for level, kind in zip((2, 3), kinds, strict=True):
            a = self.lite(a, f"{name}.conv{level}a")
            for number in range(3):
                b = self.lite(b, f"{name}.conv{level}b.{number}")
            a, b = self.interact(a, b, f"{name}._op{level}", kind)
        out = self.layer(a, f"{name}.conv4a", relu=False) + self.layer(b, f"{name}.conv4b", relu=False)
        has_downsample = f"{name}.downsample.conv.weight" in self.t
        return F.relu(out + (self.layer(x, f"{name}.downsample", relu=False) if has_downsample else x))

    def __call__(self, x):
        t, x = self.t, F.max_pool2d(self.layer(x, "conv1", stride=2, pad=3), 3, 2, 1)
        for number, kinds in enumerate(self.CELLS):
            if kinds == "transition":
                x = F.avg_pool2d(self.layer(x, f"cells.{number}.0"), 2)
                early = x
            else:
                x = self.cell(x, f"cells.{number}", kinds)
        halves = F.conv2d(early, t["f_conv.weight"], t["f_conv.bias"]).chunk(2, 2)
        v, f = x.mean((2, 3)), torch.cat([half.mean((2, 3)) for half in halves], 1)
        n, n_f = self.norm(v @ t["fc.weight"].T, "head"), self.norm(f @ t["f_fc.weight"].T, "f_head")
        return torch.cat([v, f], 1), torch.cat([n, n_f], 1)


def with_statistics(name: str, tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    noise = torch.rand(tensor.shape, generator=generator)
    return noise + 0.5 if "running_var" in name else tensor + (noise - 0.5) * 0.2 * tensor.is_floating_point()


def torchreid_state(seed: int = 0) -> dict[str, torch.Tensor]:
    """A state dict as torchreid writes it, with random statistics."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in ReIDModel(ReIDConfig.from_variant("osnet-x0.25")).state_dict().items():
        name = name.removeprefix("backbone.").replace("head.fc.", "fc.0.").replace("head.bn.", "fc.1.")
        state[name] = with_statistics(name, tensor, generator)
    return {**state, "classifier.weight": torch.zeros(9, 512), "classifier.bias": torch.zeros(9)}


def msinet_state() -> dict[str, torch.Tensor]:
    """A state dict as MSINet's code writes it: with both classifiers, and the BNNecks' biases at zero."""
    generator = torch.Generator().manual_seed(0)
    renamed = (
        ("backbone.", ""), ("pooling.", ""), ("neck.fc.0", "fc"), ("neck.fc.1", "f_fc"), ("neck.norm.0", "head"),
        ("neck.norm.1", "f_head"),
    )  # fmt: skip
    state = {}
    for name, tensor in ReIDModel(ReIDConfig.from_variant("msinet-x0.25")).state_dict().items():
        for ours, theirs in renamed:
            name = theirs + name.removeprefix(ours) if name.startswith(ours) else name
        state[name] = with_statistics(name, tensor, generator)
    for part, width in (("", 128), ("f_", 256)):
        state[f"{part}head.bias"] = torch.zeros(width)
        state[f"{part}classifier.weight"], state[f"{part}classifier.bias"] = torch.ones(9, width), torch.ones(9)
    return state


MSINET_REST = ["classifier.bias", "classifier.weight", "f_classifier.bias", "f_classifier.weight", "f_head.bias",
               "head.bias"]  # fmt: skip


def test_msinet_written_twice_agrees(tmp_path):
    state = msinet_state()
    assert state["cells.7._op3.gamma"].abs() > 1e-3  # cross attention takes part
    torch.save({"state_dict": state, "epoch": 350}, tmp_path / "msinet.pth.tar")
    model, conversion = convert_checkpoint(tmp_path / "msinet.pth.tar", "msinet-x0.25", tmp_path / "out")
    assert (conversion.ignored, conversion.fresh) == (MSINET_REST, [])
    assert len(conversion.used) == len(state) - 6
    x = torch.randn(2, 3, 128, 64)
    loaded = AutoModel.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        compared, classified = FunctionalMSINet(state)(x)
        torch.testing.assert_close(loaded(x).embeddings, compared, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.neck(model(x).features), classified, rtol=1e-4, atol=1e-4)


def test_msinet_backbone_alone_takes_only_the_backbone():
    state = msinet_state()
    model = ReIDModel(ReIDConfig.from_variant("msinet-x0.25", pooling="avg", neck="bnneck", retrieve="neck"))
    conversion = load_foreign(model, {**state, "align_module.conv1.weight": torch.zeros(1)})
    assert all(name.startswith("backbone.") for name in conversion.used)
    assert conversion.fresh == ["neck.running_mean", "neck.running_var", "neck.weight"]
    del state["f_fc.weight"]
    fresh = load_foreign(ReIDModel(ReIDConfig.from_variant("msinet-x0.25")), state).fresh
    assert fresh == ["neck.fc.1.weight"]


def test_osnet_written_twice_agrees(tmp_path):
    state = torchreid_state()
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 3}, tmp_path / "o.pth.tar"
    )
    model, conversion = convert_checkpoint(tmp_path / "o.pth.tar", "osnet-x0.25", tmp_path / "out")
    assert conversion.ignored == ["classifier.bias", "classifier.weight"]
    assert conversion.fresh == []
    assert len(conversion.used) == len(state) - 2
    x = torch.randn(2, 3, 128, 64)
    with torch.no_grad():
        expected = FunctionalOSNet(state)(x)
        torch.testing.assert_close(model(x).embeddings, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            AutoModel.from_pretrained(tmp_path / "out")(x).embeddings, expected, rtol=1e-4, atol=1e-5
        )


def test_real_torchreid_checkpoint_is_used_to_the_last_tensor(real_data, tmp_path):
    path = real_data / "osnet_x0_25_msmt17.pth"
    if not path.exists():
        pytest.skip(f"{path.name} is not among the real data")
    model, conversion = convert_checkpoint(path, "osnet-x0.25", tmp_path / "out")
    assert (len(conversion.used), len(conversion.fresh)) == (565, 0)
    assert conversion.ignored == ["classifier.bias", "classifier.weight"]
    x = torch.randn(2, 3, 256, 128)
    with torch.no_grad():
        torch.testing.assert_close(model(x).embeddings, FunctionalOSNet(read_checkpoint(path))(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_torchvision_resnet_gives_the_same_map(name, tmp_path):
    torch.manual_seed(0)
    reference = torchvision.models.get_model(name).eval()
    save_file(reference.state_dict(), tmp_path / "weights.safetensors")
    variant = name.replace("resnet", "res")
    model = ReIDModel(ReIDConfig.from_variant(variant, last_stride=2))
    conversion = load_weights(model, str(tmp_path / "weights.safetensors"))
    assert conversion.ignored == ["fc.bias", "fc.weight"]
    assert conversion.fresh == ["neck.running_mean", "neck.running_var", "neck.weight"]
    x = torch.randn(2, 3, 64, 64)
    backbone = nn.Sequential(*list(reference.children())[:-2])
    with torch.no_grad():
        torch.testing.assert_close(model.eval().backbone(x), backbone(x), rtol=1e-4, atol=1e-5)


def test_torchvision_squeezenet_gives_the_same_map():
    reference = torchvision.models.squeezenet1_0().eval()
    model = ReIDModel(ReIDConfig.from_variant("squeezenet")).eval()
    load_foreign(model, reference.state_dict())
    x = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        torch.testing.assert_close(model.backbone(x), reference.features(x))


@pytest.mark.parametrize("dotted", [False, True], ids=["norm1", "norm.1"])
def test_torchvision_densenet_gives_the_same_map(dotted):
    shape = {"growth_rate": 4, "block_config": (2, 3, 1, 2), "num_init_features": 8}
    reference = torchvision.models.DenseNet(**shape).eval()
    state = {name: with_statistics(name, t, torch.Generator()) for name, t in reference.state_dict().items()}
    reference.load_state_dict(state)
    config = {"model_type": "reid_densenet", "growth": 4, "blocks": [2, 3, 1, 2], "stem": 8}
    model = ReIDModel(ReIDConfig.from_variant("densenet161", backbone_config=config, embedding_dim=8)).eval()
    if dotted:  # as in the published files
        state = {re.sub(r"(layer\d+\.(?:norm|conv))(\d)", r"\1.\2", name): t for name, t in state.items()}
        assert "features.denseblock1.denselayer1.norm.1.weight" in state
    conversion = load_foreign(model, state)
    assert conversion.ignored == ["classifier.bias", "classifier.weight"]
    assert conversion.fresh == ["head.fc.bias", "head.fc.weight"]
    x = torch.randn(2, 3, 70, 64)
    with torch.no_grad():
        torch.testing.assert_close(model.backbone(x), reference.features(x).relu())


MGN = {"model_type": "reid_mgn", "depths": [1, 1, 2, 1]}


def small_resnet() -> nn.Module:
    """torchvision's bottleneck ResNet with few blocks, and with statistics."""
    reference = torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, MGN["depths"]).eval()
    generator = torch.Generator().manual_seed(0)
    reference.load_state_dict({name: with_statistics(name, t, generator) for name, t in reference.state_dict().items()})
    return reference


def mgn_branches(resnet: nn.Module) -> tuple[nn.Module, list[nn.Module]]:
    """Trunk and branches as the public reproduction of MGN cuts and copies a ResNet."""
    layers = [resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool, resnet.layer1, resnet.layer2, resnet.layer3[0]]
    branches = []
    for number in range(3):
        branches.append(copy.deepcopy(nn.Sequential(nn.Sequential(*resnet.layer3[1:]), resnet.layer4)))
        if number:
            first = branches[-1][1][0]
            first.conv2.stride = first.downsample[0].stride = (1, 1)
    return nn.Sequential(*layers), branches


def test_resnet_starts_all_branches_of_mgn():
    reference = small_resnet()
    model = ReIDModel(ReIDConfig.from_variant("mgn", backbone_config=MGN, image_size=(96, 32))).eval()
    conversion = load_foreign(model, reference.state_dict())
    assert conversion.ignored == ["fc.bias", "fc.weight"]
    assert {name.partition(".")[0] for name in conversion.fresh} == {"head"}
    assert all(name.startswith(("backbone.tails.1.", "backbone.tails.2.")) for name in conversion.made)
    trunk, branches = mgn_branches(reference)
    x = torch.randn(2, 3, 96, 32)
    with torch.no_grad():
        stages = model.backbone.stages(x)
        for got, branch in zip(stages[-3:], branches, strict=True):
            torch.testing.assert_close(got, branch(trunk(x)), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"unknown \d+ \(layer"):
        load_foreign(ReIDModel(ReIDConfig.from_variant("mgn")), {**reference.state_dict(), "layer5.0.x": x})


def test_mgn_written_twice_agrees(tmp_path):
    """With the names of the public reproduction, behind DataParallel."""
    trunk, branches = mgn_branches(small_resnet())
    reduction = nn.Sequential(nn.Conv2d(2048, 256, 1, bias=False), nn.BatchNorm2d(256), nn.ReLU()).eval()
    network = nn.ModuleDict({"backbone": trunk, **{f"p{n + 1}": branch for n, branch in enumerate(branches)}})
    network["reduction"], generator = reduction, torch.Generator().manual_seed(3)
    for name in ("fc_id_2048_0", "fc_id_256_1_1", "fc_id_256_2_2"):
        network[name] = nn.Linear(256, 9)
    network.load_state_dict({n: with_statistics(n, t, generator) for n, t in network.state_dict().items()})
    torch.save({f"module.{name}": tensor for name, tensor in network.state_dict().items()}, tmp_path / "mgn.pt")
    options = {"backbone_config": MGN, "image_size": (192, 64)}
    _, conversion = convert_checkpoint(tmp_path / "mgn.pt", "mgn", tmp_path / "out", **options)
    assert conversion.fresh == conversion.made == []
    assert len(conversion.ignored) == 6
    x = torch.randn(2, 3, 192, 64)
    with torch.no_grad():
        shared = trunk(x)
        p1, p2, p3 = (branch(shared) for branch in branches)
        windows = [F.max_pool2d(p1, (6, 2)), F.max_pool2d(p2, (12, 4)), F.max_pool2d(p3, (12, 4))]
        halves, thirds = F.max_pool2d(p2, (6, 4)), F.max_pool2d(p3, (4, 4))
        windows += [halves[:, :, :1], halves[:, :, 1:], thirds[:, :, :1], thirds[:, :, 1:2], thirds[:, :, 2:]]
        expected = torch.cat([reduction(window).flatten(1) for window in windows], 1)
        embeddings = AutoModel.from_pretrained(tmp_path / "out")(x).embeddings
    torch.testing.assert_close(embeddings, expected, rtol=1e-3, atol=1e-5 * expected.max().item())


def test_timm_checkpoint_loads_into_timm_and_into_resnet():
    import timm

    reference = timm.create_model("resnet18").eval()
    for variant in ("timm/resnet18", "res18"):
        model = ReIDModel(ReIDConfig.from_variant(variant, last_stride=2)).eval()
        load_foreign(model, reference.state_dict())
        x = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(model.backbone(x), reference.forward_features(x), rtol=1e-4, atol=1e-5)


def test_luperson_layout_takes_the_query_encoder_only(tmp_path):
    """MoCo files hold the encoder twice and a queue, behind DataParallel's prefix."""
    reference = torchvision.models.resnet18()
    state = {f"module.encoder_q.{key}": value for key, value in reference.state_dict().items()}
    state |= {f"module.encoder_k.{key}": value + 1 for key, value in reference.state_dict().items()}
    state["module.queue"] = torch.zeros(4, 8)
    torch.save({"state_dict": state}, tmp_path / "lup.pth")
    model = ReIDModel(ReIDConfig.from_variant("res18"))
    conversion = load_foreign(model, read_checkpoint(tmp_path / "lup.pth"))
    assert conversion.ignored == ["fc.bias", "fc.weight"]
    convolution = model.backbone.model.embedder.embedder.convolution.weight
    assert torch.equal(convolution, reference.conv1.weight)


def test_weights_of_one_of_our_checkpoints_start_another(tmp_path):
    source = ReIDModel(ReIDConfig.from_variant("res50-s1", lineage=[{"method": "kdep"}]))
    source.save_pretrained(tmp_path / "source")
    model = ReIDModel(ReIDConfig.from_variant("res50-s1", head="linear", embedding_dim=64, neck="none"))
    conversion = load_weights(model, str(tmp_path / "source"))
    assert all(name.startswith("head.") for name in conversion.fresh)
    assert model.config.lineage == [{"method": "kdep"}]
    assert all(
        torch.equal(p, q) for p, q in zip(model.backbone.parameters(), source.backbone.parameters(), strict=True)
    )
    with pytest.raises(ValueError, match="another backbone"):
        load_weights(ReIDModel(ReIDConfig.from_variant("res50-s2")), str(tmp_path / "source"))


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


def damaged(kind: str) -> bytes:
    if kind == "code":
        buffer = io.BytesIO()
        torch.save({"state_dict": {"a": torch.zeros(1)}, "extra": Evil()}, buffer)
        return buffer.getvalue()
    if kind == "bare pickle":
        return pickle.dumps(Evil())
    if kind == "truncated":
        buffer = io.BytesIO()
        torch.save(torchreid_state(), buffer)
        return buffer.getvalue()[: buffer.tell() // 2]
    if kind == "archive":
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("../../evil.txt", "out of the folder")
        return buffer.getvalue()
    buffer = io.BytesIO()
    torch.save({"epoch": 3}, buffer)
    return {"empty": b"", "text": b"not a checkpoint", "no tensors": buffer.getvalue()}[kind]


@pytest.mark.parametrize("kind", ["code", "bare pickle", "truncated", "archive", "empty", "text", "no tensors"])
def test_damaged_or_dangerous_file_is_refused_and_nothing_is_written(tmp_path, capsys, kind):
    path = tmp_path / "bad.pth"
    path.write_bytes(damaged(kind))
    with pytest.raises(ValueError, match=r"bad\.pth"):
        convert_checkpoint(path, "osnet-x0.25", tmp_path / "out")
    assert "code ran" not in capsys.readouterr().out
    assert [entry.name for entry in tmp_path.iterdir()] == ["bad.pth"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("conv1.conv.weight"), r"missing 1 \(backbone.conv1.conv.weight\)"),
        (lambda s: s.update({"stranger": torch.zeros(1)}), r"unknown 1 \(stranger\)"),
        (
            lambda s: s.update({"fc.0.weight": torch.zeros(512, 64)}),
            r"head.fc.weight \(512, 64\) instead of \(512, 128\)",
        ),
    ],
)
def test_checkpoint_that_does_not_fit_is_refused_and_changes_nothing(change, message):
    state = torchreid_state()
    change(state)
    model = ReIDModel(ReIDConfig.from_variant("osnet-x0.25"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_foreign(model, state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_missing_file_and_unknown_variant(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*nothing\.pth"):
        convert_checkpoint(tmp_path / "nothing.pth", "osnet-x0.25", tmp_path / "out")
    with pytest.raises(ValueError, match=r"did you mean 'osnet-x0\.25'"):
        convert_checkpoint(tmp_path / "nothing.pth", "osnet-x0.2", tmp_path / "out")
