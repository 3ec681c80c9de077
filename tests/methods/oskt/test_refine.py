"""Refinement against the published network of full width, written out with duplicated channels, in float64."""

import copy

import pytest
import torch
from torch.func import functional_call

from reid_hub import ReIDConfig, ReIDModel, WeightChain
from reid_hub.data.batch import Batch
from reid_hub.methods import RefineMethod

SIZE, IDS = (64, 32), 4
PLAIN = {"label_smoothing": 0.0, "metric": None}


def config_of(name: str) -> ReIDConfig:
    if name == "vit":
        backbone = {
            "model_type": "reid_part_vit",
            "embed_dim": 12,
            "width": 8,
            "depth": 1,
            "heads": 2,
            "drop_path": 0.0,
        }
        return ReIDConfig.from_variant("vit-s", backbone_config=backbone, image_size=SIZE)
    if name in ("osnet", "msinet"):
        backbone = {"model_type": f"reid_{name}", "channels": [32, 128, 128, 128]}
        return ReIDConfig.from_variant(f"{name}-x0.25", backbone_config=backbone, image_size=SIZE)
    expansion = 4 if name == "bottleneck" else 1
    backbone = {
        "model_type": "resnet", "embedding_size": 6, "hidden_sizes": [6 * expansion, 12 * expansion], "depths": [1, 2],
        "layer_type": name,
    }  # fmt: skip
    return ReIDConfig(backbone_config=backbone, last_stride=1, image_size=SIZE)


NETWORKS = ["bottleneck", "basic", "osnet", "msinet", "vit"]
WIDTHS = {"vit": 4, "osnet": 16, "msinet": 16}


def teacher_of(name: str = "bottleneck") -> ReIDModel:
    torch.manual_seed(0)
    model = ReIDModel(config_of(name)).double()
    state = model.state_dict()
    for key, tensor in state.items():
        if key.endswith("gamma"):
            state[key] = torch.full_like(tensor, 0.7)
        elif tensor.is_floating_point() and tensor.ndim == 1:
            state[key] = torch.rand_like(tensor) + (0.5 if key.endswith(("weight", "var")) else -0.5)
    model.load_state_dict(state)
    return model


def method_of(name: str = "bottleneck", **options) -> RefineMethod:
    teacher = teacher_of(name)
    chain = WeightChain.from_teacher(teacher, WIDTHS.get(name, 2), clustering="random", seed=1)
    torch.manual_seed(1)
    return RefineMethod(teacher, IDS, chain=chain, **{**PLAIN, **options}).double().train()


def batch():
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randn(8, 3, *SIZE, generator=generator, dtype=torch.float64)
    return pixels, torch.arange(IDS).repeat_interleave(2)


def published_student(method: RefineMethod, pixels: torch.Tensor) -> tuple[torch.Tensor, list[tuple]]:
    """The student as its authors run it: rows duplicated to teacher width, the teacher's gains and offsets, and every
    channel replaced by the mean of its cluster behind each norm. Returns the last map, one channel a cluster."""
    chain, teacher = method.chain, method.model
    links, axes = chain.links.tensors(), chain.groups.axes
    network, hooks, seen = copy.deepcopy(teacher.backbone), [], []

    def average(group):
        table, count = chain.table(group), chain.rows[group]
        onehot = torch.nn.functional.one_hot(table, count).double()
        mean = onehot @ (onehot / onehot.sum(0)).T  # (N, N)

        def hook(module, inputs, output):
            output = torch.einsum("nm,bmhw->bnhw", mean, output)
            seen.append((table, output))
            return output

        return hook

    tensors = {}
    for name, parameter in teacher.backbone.named_parameters():
        (group,) = axes[f"backbone.{name}"].rows
        if parameter.ndim > 1:
            tensors[name] = links[f"backbone.{name}"][chain.table(group)]
        else:
            tensors[name] = parameter  # the teacher's own, which autograd sees
        if name.endswith("normalization.weight"):
            hooks.append(network.get_submodule(name.removesuffix(".weight")).register_forward_hook(average(group)))
    feature_map = functional_call(network, tensors, (pixels,))
    for hook in hooks:
        hook.remove()
    table = chain.table("stage2")
    first = [int((table == g).nonzero()[0]) for g in range(chain.rows["stage2"])]
    return feature_map[:, first], seen


@pytest.mark.parametrize("layer_type", ["bottleneck", "basic"])
def test_collapsed_student_is_the_published_one_forward_and_backward(layer_type):
    method, (pixels, _) = method_of(layer_type), batch()
    student = method.student.model
    collapsed = functional_call(student, method.student_tensors(), (pixels,)).feature_map
    published, seen = published_student(method, pixels)
    torch.testing.assert_close(collapsed, published, rtol=1e-10, atol=1e-11)
    for table, activations in seen:  # all members of a cluster carry the same map
        for g in table.unique():
            members = activations[:, table == g]
            torch.testing.assert_close(members, members[:, :1].expand_as(members), rtol=0, atol=1e-12)

    weight = torch.randn(collapsed.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    trained = [
        p for name, p in method.named_parameters() if name.startswith(("model.backbone", "chain")) and p.requires_grad
    ]
    ours, theirs = (
        torch.autograd.grad((output * weight).sum(), trained, allow_unused=True) for output in (collapsed, published)
    )
    compared = 0
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine is None) == (other is None)
        if mine is not None:
            torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-10)
            compared += 1
    assert compared > 20


def test_whom_the_students_loss_trains():
    """Chain rows and the teacher's gains and offsets; never the teacher's filters (spec, K)."""
    method, (pixels, pids) = method_of(), batch()
    tensors = {f"model.{name}": value for name, value in method.student_tensors().items()}
    functional_call(method.student, tensors, (Batch(pixel_values=pixels, pids=pids),))["loss"].backward()
    for name, parameter in method.named_parameters():
        touched = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        if name.startswith("model.backbone"):
            assert touched == (parameter.ndim == 1), name
        elif name.startswith("chain.links.backbone") and parameter.ndim > 1:
            assert touched, name
        elif name.startswith("chain.links"):
            assert not touched
            assert not parameter.requires_grad


@torch.no_grad()
@pytest.mark.parametrize("normalise", [False, True])
def test_reference_loss_is_the_distance_to_the_chains_rows(normalise):
    method = method_of(normalise=normalise)
    chain, teacher, total, layers = method.chain, method.model.state_dict(), 0.0, 0
    for name, link in chain.links.tensors().items():
        if name in chain.groups.axes and link.ndim > 1:
            table, layer = chain.table(chain.groups.axes[name].rows[0]), 0.0
            for k, label in enumerate(table.tolist()):
                layer += float((teacher[name][k] - link[label]).square().sum())
            total, layers = total + layer / (len(link) if normalise else 1), layers + 1
    assert float(method.reference_loss()) == pytest.approx(total / (layers if normalise else 1), rel=1e-12)


def test_gradient_of_the_reference_loss():
    """At the start, where rows are means, none for the chain; always minus the sum over the cluster's rows."""
    method = method_of()
    chain = method.chain
    weights = [name for name, link in chain.links.tensors().items() if name in chain.groups.axes and link.ndim > 1]
    for moved in (False, True):
        if moved:
            with torch.no_grad():
                for name in weights:
                    chain.links.tensors()[name].add_(torch.randn_like(chain.links.tensors()[name]))
        method.zero_grad()
        method.reference_loss().backward()
        for name in weights:
            link, table = chain.links.tensors()[name], chain.table(chain.groups.axes[name].rows[0])
            rows = method.model.get_parameter(name).grad
            sums = torch.stack([rows[table == g].sum(0) for g in range(len(link))])
            torch.testing.assert_close(link.grad, -sums, rtol=1e-9, atol=1e-12)
            assert moved or float(link.grad.abs().max()) < 1e-12


def test_reference_loss_vanishes_for_equal_rows_alone():
    method = method_of()
    with torch.no_grad():
        for name, link in method.chain.links.tensors().items():
            if name in method.chain.groups.axes and link.ndim > 1:
                parameter = method.model.get_parameter(name)
                parameter.copy_(link[method.chain.row_index(name)])
    assert float(method.reference_loss()) == 0
    with torch.no_grad():
        method.model.backbone.model.embedder.embedder.convolution.weight[0, 0, 0, 0] += 1e-3
    assert float(method.reference_loss()) == pytest.approx(1e-6, rel=1e-6)


def test_loss_is_the_sum_of_its_parts():
    method, (pixels, pids) = method_of(alpha=0.25, alpha_schedule="ramp", center_weight=5e-4), batch()
    method.set_progress(29, 100, 0.0)
    outputs = method(Batch(pixel_values=pixels, pids=pids))
    expected = outputs["teacher_identity"] + outputs["student_identity"] + 0.25 * 0.30 * outputs["reference"]
    expected = expected + 5e-4 * (outputs["teacher_center"] + outputs["student_center"])
    torch.testing.assert_close(outputs["loss"], expected)
    alone = method_of(teacher_loss=False)(Batch(pixel_values=pixels, pids=pids))
    assert set(alone) == {"loss", "student_identity", "reference"}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_that_asks_for_a_gradient_gets_one(name):
    for options in ({}, {"teacher_loss": False}):
        method, (pixels, pids) = method_of(name, **options), batch()
        method(Batch(pixel_values=pixels, pids=pids))["loss"].backward()
        assert [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None] == []


def test_a_vits_chain_has_vectors_of_its_own():
    """They are copies at the start, trained by the student's loss, and tied to the teacher's by L_ref."""
    method, (pixels, pids) = method_of("vit"), batch()
    links, teacher = method.chain.links.tensors(), method.model.state_dict()
    with torch.no_grad():
        for name in ("backbone.norm.weight", "backbone.blocks.0.attn.qkv.bias"):
            assert torch.equal(links[name], teacher[name])
        before = float(method.reference_loss())
        links["backbone.norm.weight"][2] += 0.5
        links["backbone.blocks.0.attn.qkv.bias"][3] -= 0.25
        assert float(method.reference_loss()) == pytest.approx(before + 0.5**2 + 0.25**2, rel=1e-12)

    tensors = {f"model.{name}": value for name, value in method.student_tensors().items()}
    functional_call(method.student, tensors, (Batch(pixel_values=pixels, pids=pids),))["loss"].backward()
    touched = {name for name, p in method.named_parameters() if p.grad is not None and float(p.grad.abs().sum()) > 0}
    assert "chain.links.backbone.norm.weight" in touched
    # Patch embedding, tokens and positions are the teacher's own; its blocks are not the student's.
    assert {"model.backbone.cls_token", "model.backbone.pos_embed", "model.backbone.patch_embed.proj.weight"} <= touched
    assert not any(name.startswith(("model.backbone.blocks", "model.backbone.norm")) for name in touched)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_narrowest_student_is_the_one_that_was_refined(name, training):
    """After some steps of refinement the expanded student computes what the refined one does (spec, H)."""
    method, (pixels, pids) = method_of(name), batch()
    optimiser = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], lr=0.01)
    for _ in range(3):
        optimiser.zero_grad()
        method(Batch(pixel_values=pixels, pids=pids))["loss"].backward()
        optimiser.step()
    expanded = method.export().expand().train(training)
    method.train(training)
    with torch.no_grad():
        refined = functional_call(method.student.model, method.student_tensors(), (pixels,))
        found = expanded(pixels)
    torch.testing.assert_close(found.feature_map, refined.feature_map, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(found.embeddings, refined.embeddings, rtol=1e-9, atol=1e-10)


def test_refinement_brings_teacher_and_chain_together():
    method, (pixels, pids) = method_of(), batch()
    optimiser = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], lr=0.01)
    before, identity = float(method.reference_loss()), []
    for _ in range(60):
        optimiser.zero_grad()
        outputs = method(Batch(pixel_values=pixels, pids=pids))
        outputs["loss"].backward()
        optimiser.step()
        identity.append(float(outputs["student_identity"].detach()))
    assert float(method.reference_loss()) < 0.05 * before
    assert identity[-1] < 0.5 * identity[0]


def test_a_chain_of_another_teacher_is_refused():
    chain = WeightChain.from_teacher(teacher_of(), 2, clustering="random")
    other = teacher_of()
    with torch.no_grad():
        other.backbone.model.embedder.embedder.convolution.weight.add_(1)
    with pytest.raises(ValueError, match=r"the chain was made from the teacher \w+, this one is"):
        RefineMethod(other, IDS, chain=chain)
    with pytest.raises(ValueError, match="alpha_schedule must be one of constant, ramp"):
        RefineMethod(teacher_of(), IDS, chain=chain, alpha_schedule="cosine")
