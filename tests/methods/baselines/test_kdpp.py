import copy
import math

import pytest
import torch
from torch import nn

from reid_hub import ReIDConfig, ReIDModel
from reid_hub.data.batch import Batch
from reid_hub.losses import distillation_loss, norm_direction_loss
from reid_hub.methods import KDPPMethod, SupervisedMethod
from reid_hub.methods.baselines import class_means
from reid_hub.training import RECIPES, build_optimizer, override

PIDS = torch.tensor([0, 0, 1, 1, 3, 3])


def build(width: int, seed: int, **options) -> ReIDModel:
    torch.manual_seed(seed)
    backbone = {"model_type": "resnet", "embedding_size": 4, "hidden_sizes": [8, width], "layer_type": "basic"}
    return ReIDModel(ReIDConfig(backbone_config={**backbone, "depths": [1, 1]}, image_size=(32, 16), **options))


def method_of(model: ReIDModel, teacher: ReIDModel, **options) -> KDPPMethod:
    torch.manual_seed(7)
    lessons = {"teacher_classifier": torch.randn(4, teacher.embedding_dim), "class_means": torch.randn(4, 12)}
    return KDPPMethod(model, 4, teacher=teacher, **{**lessons, **options})


@pytest.fixture
def pixels():
    return torch.randn(6, 3, 32, 16, generator=torch.Generator().manual_seed(1))


# The two losses


def test_norm_and_direction_at_its_limits():
    direction = torch.nn.functional.normalize(torch.randn(5, 8, dtype=torch.float64), dim=1)
    teacher = 3 * torch.nn.functional.normalize(torch.randn(5, 8, dtype=torch.float64), dim=1)
    for norm, sign, expected in [(3, 1, 0.0), (7, 1, 0.0), (3, -1, 2.0), (7, -1, 2.0), (1.5, 1, 0.5), (0.0, 1, 1.0)]:
        loss = norm_direction_loss(sign * norm * direction, teacher, direction)
        assert loss.item() == pytest.approx(expected, abs=1e-12)
    # Linear in the length below the teacher's, where the slope is the cosine over the teacher's length.
    features = torch.randn(5, 8, dtype=torch.float64)
    features = features / features.norm(dim=1, keepdim=True)
    at = [norm_direction_loss(length * features, teacher, direction).item() for length in (0.5, 1.0, 2.9)]
    slope = -(features * direction).sum(1).mean().item() / 3
    assert (at[1] - at[0]) / 0.5 == pytest.approx(slope)
    assert (at[2] - at[1]) / 1.9 == pytest.approx(slope)
    assert norm_direction_loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.eye(3)[:2]).item() == 1.0


def test_norm_and_direction_is_the_slow_sum():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(6, 5, generator=generator) * torch.rand(6, 1, generator=generator) for _ in "st")
    means = torch.randn(4, 5, generator=generator)
    total = 0.0
    for f_s, f_t, pid in zip(student.tolist(), teacher.tolist(), PIDS.tolist(), strict=True):
        mean = means[pid].tolist()
        dot = sum(a * b for a, b in zip(f_s, mean, strict=True)) / math.hypot(*mean)
        total += 1 - dot / max(math.hypot(*f_s), math.hypot(*f_t))
    directions = means / means.norm(dim=1, keepdim=True)
    assert norm_direction_loss(student, teacher, directions[PIDS]).item() == pytest.approx(total / 6, rel=1e-5)


def test_gradient_goes_through_the_maximum_to_the_student_only():
    """Longer than the teacher: length gains nothing, so the gradient is across the feature. Shorter: -e / |f_t|."""
    direction = torch.tensor([[0.6, 0.8]], dtype=torch.float64)
    teacher = torch.tensor([[0.0, 2.0]], dtype=torch.float64, requires_grad=True)
    longer = torch.tensor([[3.0, 0.0]], dtype=torch.float64, requires_grad=True)
    norm_direction_loss(longer, teacher, direction).backward()
    assert (longer.grad * longer).sum().item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(longer.grad, torch.tensor([[0.0, -0.8 / 3]], dtype=torch.float64))
    shorter = torch.tensor([[1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    norm_direction_loss(shorter, teacher, direction).backward()
    torch.testing.assert_close(shorter.grad, -direction / 2)
    assert teacher.grad is None


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distillation_is_the_slow_divergence(temperature):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(3, 5, generator=generator, dtype=torch.float64) for _ in "st")
    total = 0.0
    for z_s, z_t in zip(student.tolist(), teacher.tolist(), strict=True):
        p, q = ([math.exp(z / temperature) for z in row] for row in (z_t, z_s))
        p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    loss = distillation_loss(student, teacher, temperature)
    assert loss.item() == pytest.approx(temperature**2 * total / 3)
    assert distillation_loss(teacher + 3, teacher).item() == pytest.approx(0, abs=1e-12)


# The method


@pytest.mark.parametrize("retrieve", ["neck", "features"])
def test_loss_is_the_published_sum(pixels, retrieve):
    model, teacher = build(12, 0), build(12, 1, retrieve=retrieve).eval()
    teacher.neck.running_mean.normal_()
    method = method_of(model, teacher, kd_weight=0.5, nd_weight=2.0, temperature=4.0)
    plain = SupervisedMethod(copy.deepcopy(model), 4)
    plain.classifier.load_state_dict(method.classifier.state_dict())
    outputs, base = method(Batch(pixel_values=pixels, pids=PIDS)), plain(Batch(pixel_values=pixels, pids=PIDS))
    with torch.no_grad():
        taught = teacher.pooling(teacher.backbone(pixels))
        centred = (taught - teacher.neck.running_mean) / (teacher.neck.running_var + 1e-5).sqrt()
        logits = method.teacher_classifier @ centred.T
    student = copy.deepcopy(plain.model)(pixels)
    directions = method.directions[PIDS]
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(6))
    kd = distillation_loss(student.embeddings @ method.classifier.weight.T, logits.T, 4.0)
    nd = norm_direction_loss(student.features, taught, directions)
    torch.testing.assert_close(outputs["kd"], kd)
    torch.testing.assert_close(outputs["nd"], nd)
    torch.testing.assert_close(outputs["loss"], base["loss"] + 0.5 * kd + 2.0 * nd)


def test_teacher_is_frozen_untouched_and_nowhere_in_the_state(pixels):
    model, teacher = build(8, 0), build(12, 1)
    before = copy.deepcopy(teacher.state_dict())
    method = method_of(model, teacher).train()
    assert teacher.training  # what was given stays as it was
    assert not any(module.training for module in method.teacher.model.modules())
    optimiser = build_optimizer(method, "sgd", lr=0.5, weight_decay=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        method(Batch(pixel_values=pixels, pids=PIDS))["loss"].backward()
        optimiser.step()
    for name, tensor in method.teacher.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
        assert torch.equal(teacher.state_dict()[name], before[name]), name
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.model.parameters())
    assert not [name for name in method.state_dict() if "teacher" in name]
    assert set(method.training_state()) == {"classifier.weight", *(n for n in method.state_dict() if "projector" in n)}
    assert method.double().teacher.model.dtype == torch.float64


def test_projector_stands_only_between_features_of_different_length(pixels):
    assert isinstance(method_of(build(12, 0), build(12, 1)).projector, nn.Identity)
    method = method_of(build(8, 0), build(12, 1))
    norm, dropout, linear = method.projector
    assert (type(norm), dropout.p, linear.weight.shape) == (nn.BatchNorm1d, 0.5, (12, 8))
    weights = torch.cat([linear.weight.flatten(), linear.bias])
    assert 0.005 < weights.std().item() < 0.02
    assert not [name for name in method.export().state_dict() if "projector" in name]
    # Logits and the metric loss come from the feature itself: without ND the projector has no gradient.
    method.nd_weight = 0.0
    method(Batch(pixel_values=pixels, pids=PIDS))["loss"].backward()
    assert not linear.weight.grad.any()


def test_each_lesson_can_be_left_out(pixels):
    model, teacher = build(12, 0), build(12, 1)
    assert "kd" not in method_of(model, teacher, teacher_classifier=None)(Batch(pixel_values=pixels, pids=PIDS))
    assert "nd" not in method_of(model, teacher, class_means=None)(Batch(pixel_values=pixels, pids=PIDS))
    with pytest.raises(ValueError, match="the teacher teaches nothing"):
        method_of(model, teacher, class_means=None, teacher_classifier=None)
    with pytest.raises(ValueError, match=r"class_means must be \(4, 12\).*got \(5, 12\)"):
        method_of(model, teacher, class_means=torch.randn(5, 12))


def test_classifiers_of_parts_are_not_compared_with_the_one_of_a_teacher():
    msinet = {"model_type": "reid_msinet", "channels": [16, 64, 64, 64]}
    model = ReIDModel(ReIDConfig.from_variant("msinet-x0.25", backbone_config=msinet, image_size=(64, 32)))
    with pytest.raises(ValueError, match="leave per_part False"):
        method_of(model, build(12, 1), per_part=True)
    assert isinstance(method_of(model, build(12, 1), teacher_classifier=None, per_part=True).classifier, nn.ModuleList)


def test_warm_up_weights_the_logits_by_whole_epochs(pixels):
    method = method_of(build(12, 0), build(12, 1), kd_warmup_epochs=20).eval()
    share = []
    for epoch in (0.0, 0.9, 1.0, 5.5, 20.0, 300.0):
        method.set_progress(0, 100, epoch)
        outputs = method(Batch(pixel_values=pixels, pids=PIDS))
        rest = outputs["identity"] + outputs["triplet"] + outputs["nd"]
        share.append(((outputs["loss"] - rest) / outputs["kd"]).item())
    assert share == pytest.approx([0, 0, 0.05, 0.25, 1, 1], abs=1e-5)
    method = method_of(build(12, 0), build(12, 1)).eval()
    outputs = method(Batch(pixel_values=pixels, pids=PIDS))
    torch.testing.assert_close(outputs["loss"], sum(outputs[part] for part in ("identity", "triplet", "kd", "nd")))


def test_class_means_are_plain_means():
    features = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    pids = torch.tensor([2, 0, 1, 0, 2, 2, 0])
    means = class_means(features, pids, 3)
    assert means.dtype == torch.float64
    for pid in range(3):
        rows = [features[i].double() for i in range(7) if pids[i] == pid]
        torch.testing.assert_close(means[pid], sum(rows) / len(rows))
    with pytest.raises(ValueError, match="at least one image of each of the 4 identities"):
        class_means(features, pids, 4)
    with pytest.raises(ValueError, match="got 3 identities, the highest 2"):
        class_means(features, pids, 2)


def test_recipes_take_its_options_and_those_of_what_it_extends():
    changes = {"method": "kdpp", "options.temperature": 4.0, "options.label_smoothing": 0.0}
    assert override(RECIPES["bot"], changes).options["temperature"] == 4.0
    with pytest.raises(ValueError, match="did you mean 'nd_weight'"):
        override(RECIPES["bot"], {"method": "kdpp", "options.nd_wight": 4.0})
