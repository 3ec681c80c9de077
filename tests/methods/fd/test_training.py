"""Losses against sums by hand, gradients against those of the plain method, bit for bit."""

import copy
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from reid_hub import ReIDConfig, ReIDModel, evaluate_retrieval
from reid_hub.data.views import VIEWS, ErasedShares, View, choose_views
from reid_hub.losses import representation_loss
from reid_hub.methods import FDMethod, SupervisedMethod
from reid_hub.methods.compression import CompressionMethod, compress_model
from reid_hub.methods.fd import CompressedFDMethod, FeatureMapBranch, RepresentationBranch, fd_method

IDS, SIZE = 5, (64, 32)
LOSSES = {"label_smoothing": 0.0, "metric": None, "classifier_bias": True}
BACKBONE = {"model_type": "resnet", "embedding_size": 4, "hidden_sizes": [8, 12], "depths": [1, 1]}


@dataclass
class Table:
    """Representations that were drawn."""

    views: tuple[View, ...]
    vectors: list[Tensor]
    paths: list[str]

    @property
    def dims(self):
        return tuple(vectors.shape[1] for vectors in self.vectors)

    def __getitem__(self, indices):
        return [vectors[indices] for vectors in self.vectors]


def student(**changes) -> ReIDModel:
    """A tiny student of total stride 8: its map is 8x4."""
    torch.manual_seed(1)
    head = {"image_size": SIZE, "pooling": "stabilised_max", "head": "linear", "embedding_dim": 6, "neck": "none"}
    config = ReIDConfig(backbone_config={**BACKBONE, "layer_type": "basic"}, **{**head, **changes})
    return ReIDModel(config)


def table(names="all", count=10, scale=1.0) -> Table:
    views, generator = choose_views(names), torch.Generator().manual_seed(2)
    vectors = [scale * torch.randn(count, 7 if v.whole else 5, generator=generator) for v in views]
    return Table(views, vectors, [f"{row}.jpg" for row in range(count)])


def method(names="all", model=None, **options) -> FDMethod:
    torch.manual_seed(3)
    return fd_method(model or student(), IDS, representations=table(names), width=9, **LOSSES, **options).double()


def batch(count=6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    pixels = torch.randn(count, 3, *SIZE, generator=generator, dtype=torch.float64)
    indices = torch.randint(0, 10, (count,), generator=generator)
    return {"pixel_values": pixels, "pids": torch.arange(count) % IDS, "camids": indices % 2, "indices": indices}


def no_boxes(count=6) -> Tensor:
    return torch.full((count, 4), -1)


def gradients(module, prefix="model."):
    return {name: p.grad for name, p in module.named_parameters() if name.startswith((prefix, "classifier"))}


def test_the_loss_is_the_sum_by_hand():
    fd, inputs = method(alpha=3.0, beta=0.5), batch()
    boxes = no_boxes()
    boxes[1] = torch.tensor([16, 0, 32, 32])  # Up1, and most of Up2
    boxes[4] = torch.tensor([60, 0, 64, 4])
    found = fd({**inputs, "erased_boxes": boxes})

    fd = method(alpha=3.0, beta=0.5)
    output = fd.model(inputs["pixel_values"])
    logits = output.embeddings @ fd.classifier.weight.T + fd.classifier.bias
    expected = -logits.log_softmax(1)[torch.arange(6), inputs["pids"]].mean()
    dropped = {(1, "Up1"), (1, "Up2")}
    for k, name in enumerate(VIEWS):
        for weight, said in (
            (3.0, fd.fmfb[name](output.feature_map)),
            (0.5, fd.rfb[name](output.embeddings)),
        ):
            for i, row in enumerate(inputs["indices"].tolist()):
                if (i, name) not in dropped:
                    target = fd.representations.vectors[k][row]
                    expected = expected + weight / 7 * sum((target - said[i]) ** 2) / (2 * 6)
    torch.testing.assert_close(found["loss"], expected, rtol=1e-12, atol=0)
    parts = found["identity"] + 3.0 * found["attribute"] + 0.5 * found["metric"]
    torch.testing.assert_close(found["loss"], parts, rtol=1e-12, atol=0)


def test_half_the_squared_distance_and_nothing_at_the_target():
    vectors, shift = torch.randn(4, 5, dtype=torch.float64), torch.tensor([3.0, 0, 4.0, 0, 0], dtype=torch.float64)
    assert representation_loss(vectors, vectors) == 0
    assert representation_loss(vectors, vectors + shift).item() == pytest.approx(25 / 2)
    assert representation_loss(vectors, vectors + shift, torch.tensor([1, 0, 0, 1])).item() == pytest.approx(25 / 4)


@pytest.mark.parametrize("names", ["Hol", "Hol+G1", "all"])
def test_equal_losses_of_all_views_weigh_alpha_and_beta_however_many_there_are(names):
    fd, inputs = method(names), batch()
    for branches in (fd.fmfb, fd.rfb):
        for branch in branches.values():  # all say zero, with equal targets every view's loss is the same
            torch.nn.init.zeros_(branch.embed.bn.weight)
    for vectors in fd.representations.vectors:
        vectors.zero_()[:, 0] = 2.0
    found = fd({**inputs, "erased_boxes": no_boxes()})
    assert found["attribute"].item() == pytest.approx(2.0)
    assert (found["loss"] - found["identity"]).item() == pytest.approx((4 + 2) * 2.0)
    assert len(fd.fmfb) == len(fd.rfb) == {"Hol": 1, "Hol+G1": 4, "all": 7}[names]


@pytest.mark.parametrize("branches", [False, True], ids=["none", "unweighted"])
def test_without_weights_every_bit_is_that_of_the_plain_method(branches):
    inputs = batch()
    torch.manual_seed(3)
    plain = SupervisedMethod(student(), IDS, **LOSSES).double()
    fd = method() if branches else method(alpha=0.0, beta=0.0)
    assert bool(fd.fmfb) is branches
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, fd.state_dict()[name]), name
    fd.alpha = fd.beta = 0.0
    said, expected = fd({**inputs, "erased_boxes": no_boxes()}) if branches else fd(inputs), plain(inputs)
    assert torch.equal(said["loss"], expected["loss"])
    said["loss"].backward()
    expected["loss"].backward()
    for name, gradient in gradients(plain).items():
        assert torch.equal(gradient, gradients(fd)[name]), name
    for name, buffer in plain.named_buffers():
        assert torch.equal(buffer, fd.get_buffer(name)), name


def test_both_losses_reach_trunk_and_embedding():
    for options in ({"alpha": 1.0, "beta": 0.0}, {"alpha": 0.0, "beta": 1.0}):
        fd = method(**options)
        assert bool(fd.fmfb) == bool(options["alpha"])
        assert bool(fd.rfb) == bool(options["beta"])
        parts = fd({**batch(), "erased_boxes": no_boxes()})
        (parts["loss"] - parts["identity"]).backward()
        reached = {name for name, gradient in gradients(fd).items() if gradient is not None and gradient.any()}
        assert any("backbone" in name for name in reached)
        assert any("head" in name for name in reached) == bool(options["beta"])
        assert not any("classifier" in name for name in reached)


def test_an_erased_view_has_no_gradient_and_the_others_keep_theirs():
    fd, inputs, boxes = method("Hol+G1"), batch(), no_boxes()
    boxes[2] = torch.tensor([16, 0, 32, 32])  # all of Up1, a quarter of the whole
    said = {}

    def outputs_and_gradients(boxes):
        run = copy.deepcopy(fd)
        handles = [
            branch.register_forward_hook(
                lambda module, args, out, key=key: (out.retain_grad(), said.update({key: out}))[1]
            )
            for key, branch in [
                (f"{kind}.{name}", b) for kind in ("fmfb", "rfb") for name, b in getattr(run, kind).items()
            ]
        ]
        run({**inputs, "erased_boxes": boxes})["loss"].backward()
        for handle in handles:
            handle.remove()
        return {key: out.grad.clone() for key, out in said.items()}

    before, after = outputs_and_gradients(no_boxes()), outputs_and_gradients(boxes)
    assert len(before) == 8
    for key, gradient in after.items():
        expected = before[key].clone()
        assert expected.any(1).all()
        if key.endswith("Up1"):
            expected[2] = 0
        assert torch.equal(gradient, expected), key


def test_forty_percent_is_the_limit():
    fd = method("Hol+G1")
    boxes, indices = no_boxes(3), torch.zeros(3, dtype=torch.long)
    boxes[0], boxes[1] = torch.tensor([16, 0, 22, 32]), torch.tensor([16, 0, 23, 32])  # 6 / 16 and 7 / 16 of Up1
    shares = ErasedShares(fd.representations.views, [], SIZE)(boxes, indices)
    assert shares[:, 1].tolist() == [6 / 16, 7 / 16, 0]
    assert torch.stack(fd._kept(boxes, indices), 1).int().tolist() == [[1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 1, 1]]
    # With an erased area of at most 0.4 the whole picture always counts.
    exact = torch.tensor([[0, 0, 100, 100]])
    whole = ErasedShares((VIEWS["Hol"],), [], (250, 100))(exact, indices[:1])
    assert bool(whole[0, 0] <= 0.4)


def test_deleting_the_branches_changes_nothing():
    fd, inputs = method(), batch()
    fd({**inputs, "erased_boxes": no_boxes()})["loss"].backward()
    fd.eval()
    expected = fd.model(inputs["pixel_values"]).embeddings
    plain = SupervisedMethod(student(), IDS, **LOSSES).double().eval()
    state = {name: tensor for name, tensor in fd.state_dict().items() if not name.startswith(("fmfb.", "rfb."))}
    plain.load_state_dict(state, strict=True)
    embeddings = plain.model(inputs["pixel_values"]).embeddings
    assert torch.equal(embeddings, expected)
    assert torch.equal(plain.logits(embeddings)[0], fd.logits(expected)[0])
    del fd.fmfb, fd.rfb
    assert torch.equal(fd.export()(inputs["pixel_values"]).embeddings, expected)


def test_it_starts_with_the_logits_of_the_initial_student():
    inputs = batch()
    initial = SupervisedMethod(student(), IDS, **LOSSES).double()
    for _ in range(3):
        initial(inputs)["loss"].backward()
    with torch.no_grad():
        for parameter in initial.parameters():
            parameter -= 0.1 * parameter.grad
    fd = method(model=copy.deepcopy(initial.model))
    fd.load_state_dict({**fd.state_dict(), **initial.training_state()})
    for mode in (True, False):
        outputs = [m.train(mode).logits(m.model(inputs["pixel_values"]).embeddings)[0] for m in (initial, fd)]
        assert torch.equal(*outputs)


def test_ranking_ignores_the_length_of_a_vector_and_which_mirror_image_is_which():
    network, pixels = student().double().eval(), batch(30)["pixel_values"]
    with torch.no_grad():
        vectors, mirrored = network.embed(pixels, flip=True), network.embed(pixels.flip(3), flip=True)
    assert torch.equal(vectors, mirrored)
    vectors, pids, camids = vectors.numpy(), np.arange(30) % 5, np.arange(30) % 2
    lengths = np.random.default_rng(0).uniform(0.1, 10, (30, 1))
    split = [part for array in (pids, camids) for part in (array[:10], array[10:])]
    plain, scaled = (evaluate_retrieval(v[:10], v[10:], *split) for v in (vectors, vectors * lengths))
    assert 0 < plain.mAP < 1
    np.testing.assert_array_equal(plain.cmc, scaled.cmc)
    assert scaled.mAP == pytest.approx(plain.mAP, abs=1e-12)


def test_branches_are_those_of_the_paper():
    torch.manual_seed(0)
    fmfb = FeatureMapBranch(8, 5, width=6).double().eval()
    maps = torch.randn(2, 8, 7, 5, dtype=torch.float64)
    selected = F.relu(torch.einsum("oc,bchw->bohw", fmfb.select[0].weight[:, :, 0, 0], maps) / (1 + 1e-5) ** 0.5)
    windows = torch.stack([selected[:, :, y : y + 4, x : x + 4].mean((2, 3)) for y in range(4) for x in range(2)]).amax(
        0
    )
    torch.testing.assert_close(fmfb(maps), windows @ fmfb.embed.fc.weight.T / (1 + 1e-5) ** 0.5)
    counts = {512: 5.5e6, 2048: 11.0e6}
    for channels, expected in counts.items():
        branches = [FeatureMapBranch(channels, view.dim) for view in VIEWS.values()]
        branches += [RepresentationBranch(512, view.dim, view.whole) for view in VIEWS.values()]
        by_hand = 7 * (channels * 512 + 2 * 512) + 512 * 2048 + 2 * 2048  # FMFB
        by_hand += 512 * 512 + 2 * 512 + 6 * (512 * 512 + 2 * 512 + 512 * 256 + 2 * 256)  # RFB
        found = sum(p.numel() for branch in branches for p in branch.parameters())
        assert found == by_hand
        assert found == pytest.approx(expected, rel=0.01)
    assert RepresentationBranch(4, 3, whole=True).select(maps) is maps


def test_a_compressed_student_keeps_its_own_classifier():
    base = student()
    model = compress_model(base, "low_rank", 3)
    fd, inputs = method(model=copy.deepcopy(model)), batch()
    assert isinstance(fd, CompressedFDMethod)
    torch.manual_seed(3)
    plain = CompressionMethod(copy.deepcopy(model), IDS, **LOSSES).double()
    fd.load_state_dict({**fd.state_dict(), **plain.state_dict()})
    parts = fd({**inputs, "erased_boxes": no_boxes()})
    torch.testing.assert_close(parts["identity"], plain(inputs)["loss"], rtol=1e-12, atol=0)
    assert fd.rfb["Up1"].select.fc.in_features == 3
    assert parts["loss"] > parts["identity"]


def test_an_expanded_student_learns_too():
    """As OSKT expands them: average pooling, BNNeck, retrieval by the neck."""
    model = student(pooling="avg", head="none", embedding_dim=None, neck="bnneck")
    parts = method(model=model)({**batch(), "erased_boxes": no_boxes()})
    assert parts["attribute"] > 0
    assert parts["metric"] > 0


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="nothing to learn from"):
        FDMethod(student(), IDS, representations=None)
    with pytest.raises(ValueError, match="at least 0"):
        FDMethod(student(), IDS, representations=table(), alpha=-1)
    with pytest.raises(ValueError, match=r"map of at least 4x4, got \(12, 4, 2\) for images of 32x16.*alpha=0"):
        FDMethod(student(image_size=(32, 16), pooling="avg"), IDS, representations=table())
    with pytest.raises(ValueError, match=r"shown the middle alone.* got 72"):
        FDMethod(student(resize_shortest=72), IDS, representations=table())
    assert not FDMethod(student(image_size=(32, 16), pooling="avg"), IDS, representations=table(), alpha=0).fmfb
