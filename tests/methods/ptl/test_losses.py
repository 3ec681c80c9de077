"""What PTL, MGN and the distillation minimise, written once more by hand."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reid_hub import ReIDConfig, ReIDModel
from reid_hub.data.batch import Batch
from reid_hub.losses import absolute_feature_loss
from reid_hub.methods import PTLMethod, STDMethod

TINY = {
    "backbone_config": {
        "model_type": "resnet", "embedding_size": 4, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic",
    },
    "image_size": (32, 16),
    "neck": "none",
}  # fmt: skip
PIDS = torch.tensor([0, 0, 1, 1, 3, 3])


def tiny(seed: int = 0, **changes) -> ReIDModel:
    torch.manual_seed(seed)
    return ReIDModel(ReIDConfig(**{**TINY, **changes})).train()


@pytest.fixture
def pixels():
    return torch.randn(6, 3, 32, 16, generator=torch.Generator().manual_seed(1))


def test_three_fully_connected_layers_classify_without_smoothing(pixels):
    method = PTLMethod(tiny(), 5, hidden=(7, 6))
    shapes = [tuple(tensor.shape) for name, tensor in method.named_parameters() if not name.startswith("model.")]
    assert shapes == [(5, 6), (5,), (7, 16), (7,), (6, 7), (6,)]
    reference, state = copy.deepcopy(method.model), method.training_state()
    outputs = method(Batch(pixel_values=pixels, pids=PIDS))
    x = reference(pixels).features
    for name in ("hidden.0", "hidden.2"):
        x = (x @ state[f"{name}.weight"].T + state[f"{name}.bias"]).clamp(min=0)
    x = x @ state["classifier.weight"].T + state["classifier.bias"]
    by_hand = -(x.softmax(1)[range(6), PIDS]).log().mean()
    torch.testing.assert_close(outputs["loss"], by_hand)
    assert outputs.keys() == {"loss", "identity"}


def test_layers_start_as_in_the_released_code():
    method = PTLMethod(tiny(), 400, hidden=(300, 500))
    layers = [(layer, layer.in_features) for layer in (method.hidden[0], method.hidden[2], method.classifier)]
    for side, counted in (({"cell": "v1"}, "in_features"), (None, "out_features")):  # MGN with a side network, alone
        layer = PTLMethod(tiny(side=side), 2000, hidden=()).classifier
        layers.append((layer, getattr(layer, counted)))
    for layer, fan in layers:
        assert layer.weight.std().item() == pytest.approx((2 / fan) ** 0.5, rel=0.05)
        assert not layer.bias.any()


@pytest.mark.parametrize("weight", [1.0, 2.0])
def test_mgn_takes_means_of_eight_classifications_and_of_three_triplets(weight):
    """By loops: batch-hard triplets of margin 1.2 between vectors as they are, of the three global parts alone."""
    generator = torch.Generator().manual_seed(2)
    model = tiny()
    model.part_dims, model.embedding_dim = (4,) * 8, 32  # as MGN's vector, eight times smaller
    options = {"hidden": (), "per_part": True, "metric": "triplet", "metric_options": {"margin": 1.2}}
    method = PTLMethod(model, 4, **options, metric_parts=3, identity_weight=weight)
    features = torch.randn(6, 32, generator=generator)
    outputs = method.losses(SimpleNamespace(embeddings=features, features=features), PIDS)
    parts = [features[:, 4 * number : 4 * number + 4] for number in range(8)]
    entropy = [F.cross_entropy(fc(part), PIDS) for fc, part in zip(method.classifier, parts, strict=True)]
    hinges = []
    for part in parts[:3]:
        for i in range(6):
            apart = [(part[i] - part[j]).pow(2).sum().sqrt() for j in range(6)]
            farthest = max(apart[j] for j in range(6) if PIDS[j] == PIDS[i] and j != i)
            nearest = min(apart[j] for j in range(6) if PIDS[j] != PIDS[i])
            hinges.append(max(0.0, (1.2 + farthest - nearest).item()))
    by_hand = sum(hinges) / 18 + weight * torch.stack(entropy).mean().item()
    assert outputs["loss"].item() == pytest.approx(by_hand, rel=1e-5)
    assert outputs["triplet"].item() == pytest.approx(sum(hinges) / 18, rel=1e-5)


@pytest.mark.parametrize("lam", [0.3, 0.8, 1.0])
def test_distillation_is_the_weighted_sum_of_equation_4(pixels, lam):
    student, teacher = tiny(), tiny(seed=1)
    method = STDMethod(copy.deepcopy(student), 4, teacher=teacher, lam=lam)
    torch.testing.assert_close(method.teacher.model.state_dict(), teacher.state_dict(), rtol=0, atol=0)
    outputs = method(Batch(pixel_values=pixels, pids=PIDS))
    f_s, f_t = student(pixels).features, teacher.eval()(pixels).features
    difference = sum(abs(a - b) for a, b in zip(f_s.flatten().tolist(), f_t.flatten().tolist(), strict=True)) / 96
    entropy = F.cross_entropy(method.classifier(method.hidden(f_s)), PIDS)
    assert outputs["feature"].item() == pytest.approx(difference, rel=1e-5)
    assert outputs["loss"].item() == pytest.approx((1 - lam) * entropy.item() + lam * difference, rel=1e-5)


def test_lam_0_is_the_baseline_and_asks_no_teacher(pixels):
    class Silent(nn.Module):
        def forward(self, *args):
            raise AssertionError("asked")

    made = []
    for make, options in ((PTLMethod, {}), (STDMethod, {"lam": 0.0, "teacher": None}),
                          (STDMethod, {"lam": 0.0, "teacher": Silent()})):  # fmt: skip
        method = make(tiny(), 4, **options)
        method(Batch(pixel_values=pixels, pids=PIDS))["loss"].backward()
        made.append({name: parameter.grad for name, parameter in method.named_parameters()})
    for other in made[1:]:
        for name in made[0]:
            assert torch.equal(made[0][name], other[name]), name


def test_a_student_that_says_what_its_teacher_says_has_no_loss_at_lam_1(pixels):
    method = STDMethod(tiny(), 4, teacher=tiny(), lam=1.0)
    method.model.eval()
    outputs = method(Batch(pixel_values=pixels, pids=PIDS))
    assert outputs["loss"].item() == outputs["feature"].item() == 0
    assert outputs["identity"].item() > 0


def test_a_step_leaves_the_teacher_alone_and_out_of_the_state(pixels):
    teacher = tiny(seed=1)
    method = STDMethod(tiny(), 4, teacher=teacher)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    optimiser = torch.optim.SGD(method.parameters(), lr=0.1)
    method.train()
    for _ in range(2):
        method(Batch(pixel_values=pixels, pids=PIDS))["loss"].backward()
        optimiser.step()
    assert teacher.training  # the one that was given is left in its mode; the method has its own, in evaluation
    assert not method.teacher.model.training
    for name, tensor in method.teacher.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
        assert torch.equal(teacher.state_dict()[name], before[name]), name
    assert all(parameter.grad is None for parameter in method.teacher.model.parameters())
    own = {name for name, _ in method.named_parameters()}
    assert own == {name for name, _ in PTLMethod(tiny(), 4).named_parameters()}
    assert method.state_dict().keys() == PTLMethod(tiny(), 4).state_dict().keys()


def test_the_teacher_goes_where_the_student_goes():
    method = STDMethod(tiny(), 4, teacher=tiny(seed=1)).double()
    assert method.teacher.model.dtype == torch.float64


def test_gradients_of_the_feature_loss_are_signs_and_stay_with_the_student():
    student = torch.tensor([[1.0, -2.0], [0.5, 3.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, 0.0], [1.0, 1.0]], requires_grad=True)
    loss = absolute_feature_loss(student, teacher)
    assert loss.item() == (1 + 2 + 0.5 + 2) / 4
    loss.backward()
    assert student.grad.tolist() == [[0.25, -0.25], [-0.25, 0.25]]
    assert teacher.grad is None
    half = absolute_feature_loss(student.detach().bfloat16(), teacher.detach().bfloat16())
    assert half.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lam": 1.2, "teacher": tiny()}, "from 0 .no teacher. to 1"),
        ({"lam": -0.1, "teacher": tiny()}, "from 0 .no teacher. to 1"),
        ({"lam": 0.5, "teacher": None}, "give a teacher, or lam=0"),
        ({"teacher": tiny(head="linear", embedding_dim=9)}, "features have 9 numbers, the student's 16"),
        ({"teacher": tiny(image_size=(48, 16))}, r"image_size is \[48, 16\] and \[32, 16\]"),
        ({"teacher": tiny(image_mean=(0.5, 0.5, 0.5))}, "image_mean"),
        ({"teacher": None, "lam": 0.0, "identity_weight": -1.0}, "identity_weight must be at least 0"),
    ],
)
def test_what_cannot_be_distilled_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        STDMethod(tiny(), 4, **options)


def test_parts_have_no_hidden_layers():
    model = tiny()
    model.part_dims = (8, 8)
    for per_part in (True, False):
        with pytest.raises(ValueError, match="each of 2 parts has a classifier of its own, without hidden layers"):
            PTLMethod(model, 4, per_part=per_part)


@pytest.mark.parametrize("count", [0, -1])
def test_a_metric_loss_compares_at_least_one_part(count):
    with pytest.raises(ValueError, match="metric_parts must be at least 1"):
        PTLMethod(tiny(), 4, metric="triplet", metric_parts=count)
