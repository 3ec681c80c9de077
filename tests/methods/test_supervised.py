import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reid_hub import ReIDConfig, ReIDForImageClassification, ReIDModel, WeightChain
from reid_hub.data.batch import Batch
from reid_hub.data.views import VIEWS
from reid_hub.losses import batch_hard_triplet_loss, circle_loss
from reid_hub.methods import METHODS, SupervisedMethod
from reid_hub.methods.compression import compress_model
from reid_hub.methods.kdep import TappedTeacher

TINY = {
    "backbone_config": {
        "model_type": "resnet", "embedding_size": 4, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic",
    },
    "image_size": (32, 16),
}  # fmt: skip
PIDS = torch.tensor([0, 0, 1, 1, 3, 3])


@pytest.fixture
def model():
    torch.manual_seed(0)
    return ReIDModel(ReIDConfig(**TINY)).train()


@pytest.fixture
def pixels():
    return torch.randn(6, 3, 32, 16, generator=torch.Generator().manual_seed(1))


class Drawn:
    """Representations of one view, for FD."""

    views, dims, paths = (VIEWS["Up1"],), (5,), []

    def __getitem__(self, indices):
        return [torch.randn(len(indices), 5)]


def needs(name: str, model: ReIDModel) -> dict:
    """What a method cannot do without, beside the model and the number of identities."""
    if name == "oskt":
        return {"chain": WeightChain.from_teacher(model, 2, clustering="random")}
    if name == "kdpp":
        teacher = ReIDModel(ReIDConfig(**TINY))
        return {"teacher": teacher, "teacher_classifier": torch.randn(4, 16), "class_means": torch.randn(4, 16)}
    if name == "std":
        return {"teacher": ReIDModel(ReIDConfig(**TINY))}
    if name == "kdep":
        return {"features": TappedTeacher(ReIDModel(ReIDConfig(**TINY))), "align": "interp"}
    return {"representations": Drawn(), "alpha": 0.0} if name == "fd" else {}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_a_loss_with_its_parts_and_exports_what_is_published_alone(name, model, pixels):
    if name == "compression":
        model = compress_model(model, "slice", 8)
    if name == "classification":
        model = ReIDForImageClassification(ReIDConfig(**TINY, neck="none", num_labels=4))
    method = METHODS[name](model, 4, **needs(name, model))
    outputs = method(Batch(pixel_values=pixels, pids=PIDS, camids=PIDS, indices=PIDS))
    assert outputs["loss"].requires_grad
    assert all(value.ndim == 0 for value in outputs.values())
    exported = {"oskt": WeightChain, "classification": ReIDForImageClassification}
    assert type(method.export()) is exported.get(name, ReIDModel)
    if name != "classification":  # plain cross-entropy has no parts, and is nobody's
        assert len(outputs) > 1
        assert "@" in method.citation
    assert not hasattr(method, "config")  # the Trainer would write its settings into it


def test_loss_is_the_published_sum(model, pixels):
    method = SupervisedMethod(model, 4, label_smoothing=0.1, metric_options={"margin": 0.3}, center_weight=5e-4)
    centers = method.centers.clone()
    reference = copy.deepcopy(model)
    outputs = method(Batch(pixel_values=pixels, pids=PIDS))
    features = reference.pooling(reference.backbone(pixels))
    logits = F.batch_norm(features, None, None, reference.neck.weight, None, True) @ method.classifier.weight.T
    target = F.one_hot(PIDS, 4) * 0.9 + 0.1 / 4
    identity = -(target * logits.log_softmax(1)).sum(1).mean()
    triplet = batch_hard_triplet_loss(features, PIDS, margin=0.3)
    center = (features - centers[PIDS]).square().sum(1).mean()
    torch.testing.assert_close(outputs["identity"], identity)
    torch.testing.assert_close(outputs["triplet"], triplet)
    torch.testing.assert_close(outputs["center"], center)
    torch.testing.assert_close(outputs["loss"], identity + triplet + 5e-4 * center)


def test_classifier_starts_small_and_biased_only_on_request(model):
    plain, biased = SupervisedMethod(model, 500), SupervisedMethod(model, 500, classifier_bias=True)
    assert plain.classifier.bias is None
    assert torch.equal(biased.classifier.bias, torch.zeros(500))
    assert plain.classifier.weight.std().item() == pytest.approx(0.001, rel=0.05)


def test_metric_loss_is_the_named_one_or_none(model, pixels):
    reference = copy.deepcopy(model)
    outputs = SupervisedMethod(model, 4, metric="circle", metric_options={"gamma": 32.0})(
        Batch(pixel_values=pixels, pids=PIDS)
    )
    expected = circle_loss(reference(pixels).features, PIDS, gamma=32.0)
    torch.testing.assert_close(outputs["circle"], expected)
    alone = SupervisedMethod(model, 4, metric=None)(Batch(pixel_values=pixels, pids=PIDS))
    assert set(alone) == {"loss", "identity"}
    assert torch.equal(alone["loss"], alone["identity"])


def test_each_part_of_a_vector_has_a_classifier_and_losses_of_its_own():
    msinet = {"model_type": "reid_msinet", "channels": [16, 64, 64, 64]}
    torch.manual_seed(0)
    model = ReIDModel(ReIDConfig.from_variant("msinet-x0.25", backbone_config=msinet)).double().train()
    reference, pixels = copy.deepcopy(model), torch.randn(6, 3, 64, 32, dtype=torch.float64)
    options = {"metric_options": {"margin": 0.3, "normalise": True}, "classifier_bias": True, "center_weight": 5e-4}
    method = SupervisedMethod(model, 4, per_part=True, **options).double()
    for classifier in method.classifier:
        nn.init.normal_(classifier.weight)
        nn.init.normal_(classifier.bias)
    centers = method.centers.clone()
    outputs, output = method(Batch(pixel_values=pixels, pids=PIDS)), reference(pixels)
    identity = triplet = center = 0
    for classifier, part in zip(method.classifier, (slice(0, 64), slice(64, 320)), strict=True):
        logits = output.embeddings[:, part] @ classifier.weight.T + classifier.bias
        identity = identity + F.cross_entropy(logits, PIDS, label_smoothing=0.1)
        unit = output.features[:, part] / output.features[:, part].norm(dim=1, keepdim=True)
        triplet = triplet + batch_hard_triplet_loss(unit, PIDS, margin=0.3)
        center = center + (output.features[:, part] - centers[PIDS][:, part]).square().sum(1).mean()
    torch.testing.assert_close(outputs["identity"], identity)
    torch.testing.assert_close(outputs["triplet"], triplet)
    torch.testing.assert_close(outputs["center"], center)
    torch.testing.assert_close(outputs["loss"], identity + triplet + 5e-4 * center)


def test_a_vector_of_one_part_is_trained_as_without_parts(model, pixels):
    losses = []
    for per_part in (False, True):
        torch.manual_seed(3)
        method = SupervisedMethod(copy.deepcopy(model), 4, per_part=per_part)
        losses.append(method(Batch(pixel_values=pixels, pids=PIDS))["loss"])
        assert set(method.training_state()) == {"classifier.weight"}
    assert torch.equal(*losses)


def test_centers_follow_sgd_on_the_unweighted_center_loss_over_training(model, pixels):
    method = SupervisedMethod(model, 4, center_weight=5e-4)
    centers = nn.Parameter(method.centers.clone())
    center_sgd = torch.optim.SGD([centers], lr=0.5)
    optimiser = torch.optim.SGD(method.parameters(), lr=0.1)
    for step in range(4):
        batch = pixels.roll(step, 0)
        features = copy.deepcopy(method.model)(batch).features.detach()
        center_sgd.zero_grad()
        (features - centers[PIDS]).square().sum(1).mean().backward()
        center_sgd.step()
        optimiser.zero_grad()
        method(Batch(pixel_values=batch, pids=PIDS))["loss"].backward()
        optimiser.step()
        torch.testing.assert_close(method.centers, centers.detach(), rtol=1e-5, atol=1e-6)
    assert "centers" in method.state_dict()
    assert "centers" not in dict(method.named_parameters())


def test_evaluation_leaves_the_training_state_alone(model, pixels):
    method = SupervisedMethod(model, 4, center_weight=5e-4).eval()
    before = copy.deepcopy(method.state_dict())
    method(Batch(pixel_values=pixels, pids=PIDS))
    method.export()(pixels)
    for name, tensor in method.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_bfloat16_autocast_trains_and_keeps_the_losses_in_float32(model, pixels):
    method = SupervisedMethod(model, 4, center_weight=5e-4)
    exact = copy.deepcopy(method)(Batch(pixel_values=pixels, pids=PIDS))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = method(Batch(pixel_values=pixels, pids=PIDS))
    outputs["loss"].backward()
    assert all(torch.isfinite(p.grad).all() for p in method.parameters())
    assert method.centers.dtype == torch.float32
    for name, value in outputs.items():
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(exact[name].item(), rel=0.1), name


def test_wrong_options_stop_at_once(model):
    with pytest.raises(ValueError, match="did you mean 'triplet'"):
        SupervisedMethod(model, 4, metric="triple")
    with pytest.raises(ValueError, match="did you mean 'margin'"):
        SupervisedMethod(model, 4, metric_options={"margn": 1})
    with pytest.raises(ValueError, match="at least 2 identities"):
        SupervisedMethod(model, 1)
