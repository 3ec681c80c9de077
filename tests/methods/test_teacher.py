"""The frozen teacher: what it is shown, what it keeps, and where it is not found."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reid_hub import ReIDConfig, ReIDModel
from reid_hub.methods import KDEPMethod, KDPPMethod, Method, STDMethod
from reid_hub.methods.kdep import TappedTeacher
from reid_hub.methods.teacher import FrozenTeacher

BACKBONE = {"model_type": "resnet", "embedding_size": 4, "hidden_sizes": [8, 16], "depths": [1, 1]}


def tiny(seed: int = 0, **config) -> ReIDModel:
    torch.manual_seed(seed)
    model = ReIDModel(
        ReIDConfig(backbone_config={**BACKBONE, "layer_type": "basic"}, **{"image_size": (32, 16), **config})
    )
    for name, buffer in model.named_buffers():
        if "running" in name:
            nn.init.uniform_(buffer, 0.5, 1.5)
    return model


def images(height: int = 32, width: int = 16) -> torch.Tensor:
    return torch.randn(4, 3, height, width, generator=torch.Generator().manual_seed(1))


def beside(name: str) -> tuple[Method, FrozenTeacher]:
    """A method with a teacher, and the teacher."""
    if name == "kdep":
        method = KDEPMethod(tiny(), features=TappedTeacher(tiny(1)), align="interp")
        return method, method.features
    if name == "std":
        method = STDMethod(tiny(), 4, teacher=tiny(1))
    else:
        method = KDPPMethod(tiny(), 4, teacher=tiny(1), teacher_classifier=torch.randn(4, 16), class_means=None)
    return method, method.teacher


def test_it_is_shown_the_students_images_in_its_own_normalisation_and_size():
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    model = tiny(image_size=(48, 24), image_mean=[0.5] * 3, image_std=[0.25] * 3)
    said = FrozenTeacher(model, mean=mean, std=std)(images())
    pixels = images() * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
    own = F.interpolate((pixels - 0.5) / 0.25, (48, 24), mode="bilinear", antialias=True)
    with torch.no_grad():
        torch.testing.assert_close(said.features, model(own).features, rtol=1e-4, atol=1e-5)


def test_it_answers_the_same_in_every_mode_and_precision_of_the_student():
    teacher = FrozenTeacher(tiny())
    with torch.no_grad():
        expected = copy.deepcopy(teacher.model).eval()(images()).features
    parent = nn.ModuleList([teacher]).train()
    assert not teacher.model.training
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(teacher(images()).features, expected)
        assert torch.equal(teacher(images().bfloat16().float()).features.float(), teacher(images().bfloat16()).features)
    teacher.model.train()  # somebody else's doing, which it leaves as it is
    assert torch.equal(teacher(images()).features, expected)
    assert teacher.model.training
    assert not expected.requires_grad
    assert not list(parent.parameters())


@pytest.mark.parametrize("name", ["kdep", "kdpp", "std"])
def test_it_moves_with_its_method_and_is_in_nothing_that_is_trained_or_saved(name):
    method, teacher = beside(name)
    inside = {id(tensor) for tensor in (*teacher.model.parameters(), *teacher.model.buffers())}
    assert inside.isdisjoint(map(id, (*method.parameters(), *method.buffers(), *method.state_dict().values())))
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    before = {key: tensor.clone() for key, tensor in teacher.model.state_dict().items()}
    method.to("meta")
    assert teacher.model.device.type == "meta"
    method, teacher = beside(name)
    assert method.double() is method
    assert teacher.model.dtype == torch.float64
    other = copy.deepcopy(method)
    assert (other.features if name == "kdep" else other.teacher).model is not teacher.model
    for key, tensor in teacher.model.state_dict().items():
        torch.testing.assert_close(tensor, before[key], check_dtype=False, rtol=0, atol=0)
