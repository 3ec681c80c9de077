"""Networks with a side network: wiring by hand, and what must be true of a memory between training batches."""

import copy
import multiprocessing
import pickle

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from reid_hub import ReIDConfig, ReIDModel

RESNET = {
    "model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 8, 12, 12], "depths": [1] * 4,
    "layer_type": "basic",
}  # fmt: skip
DENSENET = {"model_type": "reid_densenet", "growth": 4, "blocks": [2, 1], "stem": 8, "small_input": True}
MGN = {"model_type": "reid_mgn", "width": 4, "depths": [1, 1, 2, 1]}
NARROW = {"stem": [4, 4], "pairs": [[4, 6], [6, 4]]}
NETWORKS = {
    "resnet": ("res18-x0.25-ptl", {"backbone_config": RESNET, "embedding_dim": 6}, (61, 37)),
    "osnet": ("osnet-x0.25", {"side": NARROW}, (61, 37)),
    "densenet": ("densenet-bc-100-ptl", {"backbone_config": DENSENET, "side": {"pairs": 2, "stem": [4]}}, (15, 16)),
    "mgn": ("mgn-ptl", {"backbone_config": MGN, "embedding_dim": 4}, (96, 32)),
}


def make(kind: str = "resnet", seed: int = 0, **side) -> ReIDModel:
    variant, options, size = NETWORKS[kind]
    torch.manual_seed(seed)
    options = {**options, "side": {**options.get("side", {}), **side}}
    model = ReIDModel(ReIDConfig.from_variant(variant, image_size=size, **options))
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2.0)
    return model


def training(model: ReIDModel) -> ReIDModel:
    """The model in training mode, its batch norms in evaluation mode: what is left of the mode is the memory."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    return model


def pictures(model: ReIDModel, *sizes: int, seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 3, *model.config.image_size, generator=generator) for n in sizes]


@pytest.fixture(params=[(kind, cell) for kind in NETWORKS for cell in ("v1", "v2")], ids=" ".join)
def model(request):
    return make(request.param[0], cell=request.param[1])


def test_evaluation_depends_on_nothing_but_the_picture(model):
    (batch,) = pictures(model, 5)
    with torch.no_grad():
        expected = model.eval()(batch).embeddings
        training(model)(batch)
        before = model.memory()
        order = torch.tensor([3, 1, 4, 0, 2])
        got = model.eval()(batch[order]).embeddings
        torch.testing.assert_close(got, expected[order], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(model(batch[2:3]).embeddings, expected[2:3], atol=1e-6, rtol=1e-5)
        assert torch.equal(model(batch).embeddings, expected)
    assert len(before) > 0
    assert all(now is then for now, then in zip(model.memory(), before, strict=True))


@torch.no_grad()
def test_epochs_begin_alike_and_samples_are_paired_by_place(model):
    first, second = pictures(model, 4, 4)
    evaluated = model.eval()(first).embeddings
    training(model)
    epoch = [model(first).embeddings, model(second).embeddings]
    torch.testing.assert_close(epoch[0], evaluated, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(model(first).embeddings, epoch[0], atol=1e-5)
    model.reset_memory()
    assert model.memory() == []
    assert torch.equal(model(first).embeddings, epoch[0])
    assert torch.equal(model(second).embeddings, epoch[1])
    model.reset_memory()
    order = torch.tensor([2, 0, 3, 1])
    for batch, due in zip((first, second), epoch, strict=True):
        torch.testing.assert_close(model(batch[order]).embeddings, due[order], atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_shorter_batches_leave_the_other_slots_and_longer_ones_start_in_new_ones(model):
    first, short, long = pictures(training(model), 3, 2, 5)
    model(first)
    before = model.memory()
    model(short)
    assert all(torch.equal(now[2:], then[2:]) for now, then in zip(model.memory(), before, strict=True))
    got = model(long).embeddings
    torch.testing.assert_close(got[3:], model.eval()(long[3:]).embeddings, atol=1e-6, rtol=1e-5)
    assert {len(slots) for slots in model.memory()} == {5}


def trained(model: ReIDModel, evaluate: bool) -> dict[str, torch.Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for batch in pictures(model, 3, 3, 2):
        model.train()(batch).features.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if evaluate:
            with torch.no_grad():
                model.eval()(pictures(model, 4, seed=7)[0])
            model.encode([torch.zeros(20, 10, 3, dtype=torch.uint8).numpy()])
    return model.state_dict()


def test_evaluating_between_training_batches_changes_nothing(model):
    """The defect of the published script: its first evaluation switched the memory off for good."""
    plain, forgetting = copy.deepcopy(model), copy.deepcopy(model)
    for cell in forgetting.side.modules():
        cell.remembers = False
    without, with_evaluation = trained(plain, evaluate=False), trained(model, evaluate=True)
    assert all(torch.equal(with_evaluation[name], tensor) for name, tensor in without.items())
    assert any(not torch.equal(without[name], tensor) for name, tensor in trained(forgetting, False).items())


@pytest.mark.parametrize("size", [(256, 128), (384, 128), (33, 47), (64, 64)])
@pytest.mark.parametrize(
    "variant",
    ["res18-x0.25", "osnet-x0.25", "msinet-x0.25", "squeezenet", "densenet161", "densenet-bc-100", "mgn-ptl",
     "timm/resnet10t", "timm/mobilenetv3_small_050", "timm/convnext_atto"],
)  # fmt: skip
def test_every_backbone_with_stages_takes_one_at_any_size(variant, size):
    side = {"cell": "v2", "stem": [4, 4], "pairs": 3}
    if variant == "mgn-ptl":
        side |= {"pairs": 4}
    if "msinet" in variant:
        options = {"pooling": "avg", "neck": "none"}
    else:
        options = {"pooling": "max"} if variant == "squeezenet" else {}
    with torch.device("meta"):
        model = ReIDModel(ReIDConfig.from_variant(variant, side=side, image_size=size, **options)).eval()
        batch = torch.empty(2, 3, *size)
        stages = model.backbone.stages(batch)
        assert model(batch).embeddings.shape == (2, model.embedding_dim)
    assert tuple(stage.shape[1] for stage in stages) == model.backbone.stage_channels
    for stage, reduction in zip(stages, model.backbone.stage_reductions, strict=True):
        # Where a pooling rounds down, and where SqueezeNet has no border, a map is a little smaller.
        over = [due - got * reduction for got, due in zip(stage.shape[2:], size, strict=True)]
        assert -reduction < min(over) <= max(over) <= 2.5 * reduction


@pytest.mark.parametrize("variant", ["res18-x0.25", "osnet-x0.25", "msinet-x0.25", "squeezenet", "timm/resnet10t",
                                     "timm/efficientnet_b0", "densenet-bc-100"])  # fmt: skip
def test_the_last_stage_is_the_map(variant):
    torch.manual_seed(0)
    model = ReIDModel(ReIDConfig.from_variant(variant, image_size=(64, 64))).eval()
    (batch,) = pictures(model, 1)
    with torch.no_grad():
        torch.testing.assert_close(model.backbone.stages(batch)[-1], model.backbone(batch))


class ByHand:
    """Evaluation of the side network from a state dict, as plain function calls."""

    def __init__(self, model: ReIDModel):
        self.t = model.state_dict()

    def cell(self, name: str, x: torch.Tensor, stride: int) -> torch.Tensor:
        i, _, o, g = F.conv2d(x, self.t[f"side.{name}.gates.weight"], stride=stride, padding=1).chunk(4, 1)
        return o.sigmoid() * (i.sigmoid() * g.tanh()).tanh()

    def fuse(self, number: int, *maps: torch.Tensor) -> torch.Tensor:
        t, name = self.t, f"side.fuse.{number}"
        x = F.conv2d(torch.cat(maps, 1), t[f"{name}.0.weight"], t[f"{name}.0.bias"])
        return self.norm(x, f"{name}.1").relu()

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        t = self.t
        x = (x.movedim(1, -1) - t[f"{name}.running_mean"]) / (t[f"{name}.running_var"] + 1e-5).sqrt()
        return (x * t[f"{name}.weight"] + t[f"{name}.bias"]).movedim(-1, 1)


@torch.no_grad()
def test_resnet_with_three_pairs_is_wired_as_published():
    model = make().double().eval()
    batch, hand = torch.randn(2, 3, 64, 32, dtype=torch.float64), ByHand(model)
    x1, x2, x3, _, x5 = model.backbone.model(batch, output_hidden_states=True).hidden_states
    y0 = hand.cell("stem.1", hand.cell("stem.0", batch, 2), 2)
    y1 = hand.cell("cells.0", hand.fuse(0, x1, y0), 1)
    y2 = hand.cell("cells.1", hand.fuse(1, x2, y1), 2)
    y3 = hand.cell("ends.0", hand.fuse(2, x3, y2), 2)
    pooled = torch.cat([x5.mean((2, 3)), y3.mean((2, 3))], 1)
    expected = pooled @ hand.t["head.fc.weight"].T + hand.t["head.fc.bias"]
    output = model(batch)
    torch.testing.assert_close(output.embeddings, expected)
    assert torch.equal(output.features, output.embeddings)
    assert torch.equal(output.feature_map, x5)


@torch.no_grad()
def test_mgn_with_a_side_network_is_wired_as_published():
    model = make("mgn").double().eval()
    batch, hand = torch.randn(2, 3, 96, 32, dtype=torch.float64), ByHand(model)
    trunk = model.backbone.trunk.stages(batch)
    p = [tail(trunk[3]) for tail in model.backbone.tails]
    assert [tuple(branch.shape[2:]) for branch in p] == [(3, 1), (6, 2), (6, 2)]
    y = hand.cell("stem.1", hand.cell("stem.0", batch, 2), 2)
    for number, stride in enumerate((1, 2, 2)):
        y = hand.cell(f"cells.{number}", hand.fuse(number, trunk[number], y), stride)
    z = hand.fuse(3, trunk[3], y)
    p = [torch.cat([p[n], hand.cell(f"ends.{n}", z, stride)], 1) for n, stride in enumerate((2, 1, 1))]
    windows = [F.max_pool2d(p[0], (3, 1)), F.max_pool2d(p[1], (6, 2)), F.max_pool2d(p[2], (6, 2))]
    windows += [*F.max_pool2d(p[1], (3, 2)).split(1, 2), *F.max_pool2d(p[2], (2, 2)).split(1, 2)]
    weight, bias = hand.t["head.fc.weight"], hand.t["head.fc.bias"]
    vectors = [hand.norm(F.conv2d(v, weight[..., None, None], bias), "head.bn").relu().flatten(1) for v in windows]
    torch.testing.assert_close(model(batch).embeddings, torch.cat(vectors, 1))
    assert model.part_dims == (4,) * 8
    assert model.global_parts == 3


def test_mgn_norms_each_part_by_itself():
    model = make("mgn").train()
    (batch,) = pictures(model, 4)
    with torch.no_grad():
        stages = model.backbone.eval().stages(batch)
        pooled = torch.cat([model.pooling(stages), model.pooling(model.side.eval()(batch, stages))], 2)
        mean, before = model.head.bn.running_mean.clone(), model.head.bn.running_var.clone()
        features = model(batch).features.unflatten(1, (8, 4))
    for part in range(8):
        x = model.head.fc(pooled[:, part])
        mean = 0.9 * mean + 0.1 * x.mean(0)
        normed = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt() * model.head.bn.weight
        torch.testing.assert_close(features[:, part], normed.relu(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model.head.bn.running_mean, mean)
    assert not torch.equal(model.head.bn.running_var, before)


def test_initial_weights_are_those_of_the_published_code():
    torch.manual_seed(0)
    model = ReIDModel(ReIDConfig.from_variant("mgn-ptl", side={"cell": "v2", "aggregate": "conv"}))
    cell = model.side.cells[1]
    for convolution in (cell.gates, cell.aggregate, model.side.fuse[2][0], model.head.fc):
        fan_in = convolution.weight[0].numel()
        assert convolution.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.03)
    assert model.head.bn.weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert model.head.bn.weight.mean().item() == pytest.approx(1, abs=0.01)
    tails = [dict(tail.named_parameters()) for tail in model.backbone.tails]
    assert all(torch.equal(tails[0][name], tails[2][name]) for name in tails[0])


def test_memory_travels_with_copies_but_not_with_checkpoints(tmp_path):
    model = training(make(cell="v2"))
    first, second = pictures(model, 3, 3)
    with torch.no_grad():
        model(first)
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
        model.eval().save_pretrained(tmp_path)
        loaded = ReIDModel.from_pretrained(tmp_path)
        assert loaded.memory() == []
        with torch.device("meta"):
            empty = ReIDModel(model.config)
        empty.load_state_dict(model.state_dict(), assign=True)
        assert torch.equal(training(empty)(first).embeddings, training(loaded)(first).embeddings)
        expected = training(model)(second).embeddings
        for other in (*copies, empty, loaded):
            assert torch.equal(training(other)(second).embeddings, expected)


def test_a_memory_that_is_put_back_goes_on_bit_for_bit_also_in_another_precision():
    model = training(make(cell="v2"))
    first, second = pictures(model, 3, 2)
    with torch.no_grad():
        model(first)
        memory = model.memory()
        expected = model(second).embeddings
        other = training(make(cell="v2"))
        other.restore_memory(memory)
        assert torch.equal(other(second).embeddings, expected)
        other.restore_memory(memory)
        torch.testing.assert_close(other.double()(second.double()).embeddings.float(), expected)
    with pytest.raises(ValueError, match="another side network"):
        training(make(cell="v1")).restore_memory(memory)


def test_models_without_a_side_network_have_no_memory():
    model = ReIDModel(ReIDConfig.from_variant("res18-x0.25-conv", backbone_config=RESNET, embedding_dim=6))
    model.reset_memory()
    assert model.side is None
    assert model.memory() == []


def test_a_side_network_that_forgets_is_the_first_batch_every_time():
    model = training(make(memory=False))
    first, second = pictures(model, 3, 3)
    with torch.no_grad():
        model(first)
        assert model.memory() == []
        assert torch.equal(model(second).embeddings, model.eval()(second).embeddings)


def remember(rank: int, folder, steps: int) -> None:
    """Train on batches of this process's own and leave the memory; under DDP unless `rank` is negative."""
    parallel, rank = (rank >= 0), abs(rank + (rank < 0))
    torch.set_num_threads(1)
    model = make(cell="v2", memory=True).train()
    wrapped = model
    if parallel:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
        wrapped = DistributedDataParallel(model)
    for step in range(steps):
        wrapped(pictures(model, 2, seed=10 * step + rank)[0]).embeddings.square().mean().backward()
    torch.save(model.memory(), folder / f"{'parallel' if parallel else 'alone'}-{rank}.pt")
    if parallel:
        dist.destroy_process_group()


def test_every_process_has_a_memory_of_its_own(tmp_path):
    """DistributedDataParallel hands the first process's buffers to all before each forward; a memory must escape it."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=remember, args=(rank, tmp_path, 3)) for rank in (0, 1)]
    [process.start() for process in processes]
    [process.join(120) for process in processes]
    assert [process.exitcode for process in processes] == [0, 0]
    for rank in (0, 1):
        remember(-1 - rank, tmp_path, 3)
    parallel, alone = ([torch.load(tmp_path / f"{name}-{r}.pt") for r in (0, 1)] for name in ("parallel", "alone"))
    for rank in (0, 1):
        assert len(parallel[rank]) == 15
        for got, due in zip(parallel[rank], alone[rank], strict=True):
            assert torch.equal(got, due)
    assert not torch.equal(parallel[0][0], parallel[1][0])


@pytest.mark.parametrize(
    ("variant", "options", "message"),
    [
        ("timm/vit_tiny_patch16_224", {"pooling": "avg", "side": {}}, "needs a backbone with stages"),
        ("vit-s", {"pooling": "avg", "neck": "none", "side": {}}, "'reid_part_vit' .* has none"),
        ("msinet-x0.25", {"side": {}}, "a side network gives a map: take pooling avg or max or gem or stabilised_max"),
        ("res50-ptl", {"side": {"cell": "v3"}}, "cell must be one of v1, v2, plain, got 'v3'"),
        ("res50-ptl", {"side": {"cels": "v1"}}, r"unknown options \['cels'\] of a side network; it has cell, memory"),
        ("res50-ptl", {"side": {"aggregate": "last"}}, "aggregate belongs to a side network of cell 'v2'"),
        ("res50-ptl", {"side": {"pairs": 5}}, "has room for 4 pairs"),
        ("res50-ptl", {"side": {"pairs": 0}}, "has room for 4 pairs of a side network; got 0"),
        ("res50-ptl", {"side": {"pairs": [[64, 0]]}}, "all at least 1; got None and"),
        ("res50-ptl", {"side": {"pairs": [[64]]}}, "pairs a number or pairs of channels"),
        ("res50-ptl", {"side": {"pairs": [64]}}, "pairs a number or pairs of channels"),
        ("res50-ptl", {"side": {"pairs": True}}, "pairs a number or pairs of channels"),
        ("res50-ptl", {"side": {"stem": []}}, r"all at least 1; got \[\] and 3"),
        ("res50-ptl", {"side": {"stem": 16}}, "must be channels of its first cells"),
        ("res50-ptl", {"side": {"stem": [1.5]}}, "must be channels of its first cells"),
        ("res50-ptl", {"side": {"memory": "no"}}, "memory of a side network must be true or false"),
        ("mgn-ptl", {"side": {"pairs": 3}}, "needs them all for its branches; got 3"),
        ("mgn", {"pooling": "max"}, "gives the maps of several branches: take pooling branch_stripes"),
        ("res50", {"pooling": "branch_stripes"}, "needs the maps of several branches, but"),
        ("mgn", {"backbone_config": {"model_type": "reid_mgn", "depths": [3, 4, 1, 3]}}, "depths must be four"),
        ("densenet161", {"backbone_config": {"model_type": "reid_densenet", "dropout": 1.0}}, "dropout must be"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(variant, options, message):
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        ReIDModel(ReIDConfig.from_variant(variant, **options))


@pytest.mark.parametrize("variant", ["res18-x0.25-ptl", "mgn", "densenet-bc-100"])
def test_their_channels_are_not_declared(variant):
    with torch.device("meta"):
        model = ReIDModel(ReIDConfig.from_variant(variant))
    with pytest.raises(ValueError, match="are not declared"):
        model.width_groups()


def test_an_override_of_the_side_network_keeps_the_variants_other_options():
    config = ReIDConfig.from_variant("densenet161-ptl", side={"cell": "v2", "memory": False})
    assert config.side["pairs"] == [[64, 64], [128, 256], [256, 512], [512, 128]]
    assert (config.side["cell"], config.side["memory"]) == ("v2", False)
    assert ReIDConfig.from_variant("densenet161-ptl", side=None).side is None
    assert ReIDConfig.from_variant("densenet161-ptl").side["cell"] == "v1"


def test_another_cell_with_the_same_weights_gives_other_vectors_under_another_fingerprint():
    model, plain = make().eval(), make(cell="plain").eval()
    plain.load_state_dict(model.state_dict())
    (batch,) = pictures(model, 2)
    assert not torch.allclose(plain(batch).embeddings, model(batch).embeddings)
    assert plain.fingerprint() != model.fingerprint()
