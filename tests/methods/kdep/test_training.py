"""The method in a plain loop and in the trainer: what it minimises, what it leaves alone, and what a cache changes."""

import math

import pytest
import torch
from safetensors.torch import load_file
from torchvision.models import resnet18

from reid_hub import ReIDConfig, ReIDModel
from reid_hub.data.augmentation import BatchTransform
from reid_hub.data.batch import Batch
from reid_hub.hub.convert import load_foreign
from reid_hub.methods import KDEPMethod
from reid_hub.methods.kdep import (
    ALIGNMENTS,
    PAIR_WEIGHTS,
    WITHOUT_BASIS,
    Basis,
    CachedFeatures,
    Moments,
    Tap,
    TappedTeacher,
    new_pair,
    write_features,
)
from reid_hub.methods.kdep.tap import left_out
from reid_hub.training import RECIPES, ReIDTrainer, TrainingSubset, build_optimizer, override, training_arguments

from .small import AUGMENTATION, COUNT, SIZE, crops, model, pictures

RECIPE = override(
    RECIPES["kdep-demo"],
    {"batch_size": 10, "schedule.epochs": 3, "schedule.milestones": [1, 2], "learning_rate": 0.05},
)


def basis_of(teacher: TappedTeacher, count: int = 40) -> Basis:
    moments = Moments(teacher.dim)
    moments.add(teacher(torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(0))))
    return Basis.from_moments(moments)


def method(align: str = "svd+pts", student: ReIDModel | None = None, **options) -> KDEPMethod:
    teacher = TappedTeacher(model(6, 8))
    basis = None if align in WITHOUT_BASIS else basis_of(teacher)
    student = model(4, 5, seed=1) if student is None else student
    return KDEPMethod(student, features=teacher, basis=basis, align=align, **options)


def test_loss_by_hand():
    made, x = method(weight=20.0, scale=0.5).train(), torch.randn(6, 3, *SIZE)
    basis, teacher = basis_of(made.features), made.features.model
    with torch.no_grad(), left_out([(teacher.backbone.model.encoder.stages[1].layers[0].activation, 0)]):
        t = teacher.backbone(x).mean((2, 3)).double()
    z = (t - basis.mean) @ basis.vectors[:, :5]
    target = 0.5 * z.sign() * (z.abs() / 0.1) ** (1 / 3)
    with left_out([(made.model.backbone.model.encoder.stages[1].layers[0].activation, 0)]):
        s = made.model.backbone(x).mean((2, 3))
    s = s.detach()
    expected = sum((float(s[b, k]) - float(target[b, k])) ** 2 for b in range(6) for k in range(5)) / 30
    found = made(Batch(pixel_values=x, indices=torch.arange(6)))
    assert found["distance"].item() == pytest.approx(expected, rel=1e-3)
    assert found["loss"].item() == pytest.approx(20 * expected, rel=1e-3)


@pytest.mark.parametrize("align", ALIGNMENTS)
def test_only_the_trunk_learns_and_every_alignment_teaches_it(align):
    """Nothing reaches teacher and basis; what the student has behind its trunk keeps its bits."""
    made = method(align, model(4, 5, seed=1, head="linear", embedding_dim=7)).train()
    made.weight = 0.3
    teacher = made.features.model
    fixed = {
        "teacher": teacher.state_dict(), "alignment": dict(made.alignment.named_buffers()),
        "head": made.model.head.state_dict(), "neck": made.model.neck.state_dict(),
    }  # fmt: skip
    norms = {name for name in fixed["alignment"] if name.startswith("adaptor.")}
    before = {part: {name: tensor.clone() for name, tensor in state.items()} for part, state in fixed.items()}
    optimiser = torch.optim.SGD(made.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    x, losses = torch.randn(16, 3, *SIZE, generator=torch.Generator().manual_seed(0)), []
    for _ in range(25):
        optimiser.zero_grad()
        loss = made(Batch(pixel_values=x, indices=torch.arange(16)))["loss"]
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    for part, state in fixed.items():
        for name, tensor in state.items():
            assert name in norms or torch.equal(tensor, before[part][name]), (part, name)
    assert not teacher.training
    assert made.model.training
    assert all(parameter.grad is None for parameter in teacher.parameters())
    moved = {name for name, p in made.named_parameters() if p.grad is not None}
    assert moved == {name for name, _ in made.named_parameters() if name.startswith(("model.backbone", "alignment."))}


def test_neither_teacher_nor_basis_is_in_a_checkpoint():
    made = method()
    assert all(name.startswith("model.") for name in made.state_dict())
    adaptors = method("pre-relu").training_state()
    assert {name.split(".")[1] for name in adaptors} == {"adaptor"}
    assert not any("adaptor" in name for name in made.export().state_dict())


def test_weights_of_pairs_and_budgets():
    published = {"sp-res50": 20, "ms-res50": 3, "swsl-res50": 1, "meal-v2-res50": 1, "swin-b": 3}
    assert {f"{teacher}/res18": weight for teacher, weight in published.items()} | {
        "ms-res50/mobilenetv2": 3
    } == PAIR_WEIGHTS
    targets = torch.randn(500, 7, generator=torch.Generator().manual_seed(0)) * 3
    weight, scale = new_pair(targets)
    assert weight * float(((scale * targets) ** 2).mean()) == pytest.approx(math.log(1000))
    assert (weight, scale) == pytest.approx((math.log(1000), 1 / 3), rel=0.02)
    with pytest.raises(ValueError, match="all 0"):
        new_pair(torch.zeros(3, 2))
    imagenet, tenth, recipe = 1_281_167, 128_000, RECIPES["kdep"]
    budgets = {(tenth, 90): 5e-4, (tenth, 180): 4e-4, (imagenet, 9): 5e-4, (imagenet, 18): 4e-4, (imagenet, 90): 1e-4}
    assert {budget: recipe.decay_for(budget[0] * budget[1]) for budget in budgets} == budgets
    assert recipe.decay_for(tenth * 900) == 1e-4
    rates = [recipe.schedule.rate(epoch, recipe.learning_rate) for epoch in (0, 29, 30, 59, 60, 89)]
    assert rates == pytest.approx([0.3, 0.3, 0.03, 0.03, 0.003, 0.003])


def test_the_published_recipe():
    """Spec section 4: batch, rate, momentum, schedule, crops, and the colours of the code."""
    recipe = RECIPES["kdep"]
    assert (recipe.batch_size, recipe.learning_rate, recipe.sampler) == (512, 0.3, "shuffle")
    optimizer = build_optimizer(
        torch.nn.Linear(2, 2), recipe.optimizer, lr=0.3, weight_decay=5e-4, options=recipe.optimizer_options
    )
    assert isinstance(optimizer, torch.optim.SGD)
    assert (optimizer.defaults["momentum"], optimizer.defaults["nesterov"]) == (0.9, False)
    assert (recipe.schedule.epochs, recipe.schedule.warmup_epochs, recipe.schedule.milestones) == (90, 0, (30, 60))
    drawn = recipe.augmentation
    assert (drawn.resized_area, drawn.lighting, drawn.erasing, drawn.pad) == ((0.08, 1.0), 0.05, 0.0, 0)
    assert (drawn.brightness, drawn.contrast, drawn.saturation) == (0.1, 0.1, 0.1)
    assert (recipe.config["image_size"], recipe.config["resize_shortest"]) == ((224, 224), 256)
    assert recipe.options == {"align": "svd+pts", "temperature": 0.1, "power": 3}


def test_the_average_of_a_map_in_half_precision_is_one_of_whole_precision():
    made, last = method("interp"), torch.rand(2, 5, 16, 8).bfloat16() + 10
    expected = last.double().mean((2, 3))
    assert torch.allclose(made.alignment.compared(Tap(made.model), last).double(), expected, atol=1e-5)


def test_temperature_and_power_are_those_of_the_targets():
    plain, x = method(), torch.randn(6, 3, *SIZE)
    t = plain.features(x).double()
    basis = basis_of(plain.features)
    z = (t - basis.mean) @ basis.vectors[:, :5]
    made = method(temperature=0.2, power=2).eval()
    expected = z.sign() * (z.abs() / 0.2) ** 0.5
    s = Tap(made.model)(x)
    found = made(Batch(pixel_values=x, indices=torch.arange(6)))["distance"]
    assert found.item() == pytest.approx(float((s.double() - expected).square().mean()), rel=1e-3)


def test_a_trained_student_is_the_plain_network_of_torchvision(tmp_path):
    """Spec invariant 12: loaded strictly, its classifier excepted, with the ReLU back in its place."""
    source, plain = crops(tmp_path), resnet18()
    student = ReIDModel(ReIDConfig.from_variant("res18", image_size=SIZE, last_stride=None))
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    train(tmp_path / "made", source, source.teacher, student, align="pre-relu")
    trained = ReIDModel.from_pretrained(tmp_path / "made").eval()
    assert any(not torch.equal(before[name], tensor) for name, tensor in trained.state_dict().items())
    # Which tensor is which: every one of the plain network is filled with a number of its own, and looked for in ours.
    numbered, marked = ReIDModel(trained.config), dict(enumerate(plain.state_dict()))
    load_foreign(numbered, {name: torch.full_like(plain.state_dict()[name], n) for n, name in marked.items()})
    ours = {
        marked[int(tensor.flatten()[0])]: trained.backbone.state_dict()[name]
        for name, tensor in numbered.backbone.state_dict().items()
    }
    assert plain.state_dict().keys() - ours.keys() == {"fc.weight", "fc.bias"}
    plain.load_state_dict({**ours, "fc.weight": plain.fc.weight, "fc.bias": plain.fc.bias}, strict=True)
    plain.fc, x = torch.nn.Identity(), torch.randn(2, 3, 64, 64)
    assert torch.allclose(plain.eval()(x), trained.backbone(x).mean((2, 3)), atol=1e-5)


def test_unsuitable_students_are_refused():
    with pytest.raises(ValueError, match="student's feature has 9 channels, the teacher's only 8"):
        method(student=model(4, 9))
    with pytest.raises(ValueError, match="this one has tokens"):
        method("pre-relu", ReIDModel(ReIDConfig.from_variant("vit-s-s1", image_size=SIZE)))
    with pytest.raises(ValueError, match="weight of the loss must be above 0"):
        method(weight=0.0)
    with pytest.raises(ValueError, match="scale of the targets must be above 0"):
        method(scale=-1.0)

    class Clipped(torch.nn.Module):
        def __init__(self, backbone):
            super().__init__()
            self.backbone, self.out_channels = backbone, backbone.out_channels

        def forward(self, x):
            return self.backbone(x).clamp(min=0) + 0.1

    student = model(4, 5)
    student.backbone = Clipped(student.backbone)
    with pytest.raises(ValueError, match="never negative"):
        method(student=student)
    assert method("post-relu", student)


def test_a_crop_is_a_function_of_seed_picture_and_round():
    transform = BatchTransform(AUGMENTATION, (0.5,) * 3, (0.5,) * 3)
    pixels = torch.randint(0, 256, (8, 3, *SIZE), dtype=torch.uint8)
    rows, drawn = torch.arange(8), {"seed": 1, "by_position": False}
    first = transform(pixels, rows, step=0, **drawn)
    order = torch.tensor([5, 2, 7, 0, 1, 3, 6, 4])
    assert torch.equal(transform(pixels[order], rows[order], step=0, **drawn), first[order])
    assert not torch.equal(transform(pixels, rows, step=1, **drawn), first)
    assert not torch.equal(transform(pixels, rows, step=0, seed=1)[1:], first[1:])


def train(folder, source, features, student=None, align="svd+pts"):
    student = model(4, 5, seed=1) if student is None else student
    made = KDEPMethod(student, features=features, basis=basis_of(source.teacher), weight=0.3, align=align)
    arguments = {"use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "seed": source.seed}
    subset = TrainingSubset(source.images, torch.arange(COUNT).numpy())
    trainer = ReIDTrainer(made, RECIPE, training_arguments(RECIPE, folder, **arguments), subset)
    trainer.transform = BatchTransform(AUGMENTATION, student.config.image_mean, student.config.image_std)
    trainer.train()
    trainer.save_model()
    return load_file(folder / "model.safetensors")


def test_cached_features_teach_what_the_teacher_says(tmp_path):
    """Two crops of each picture over three epochs give the same weights as asking for the same crops."""
    source = crops(tmp_path)
    write_features(tmp_path / "features", source, 2, shard_size=20, batch_size=7, progress=False)
    paths = source.images.dataset["path"][:]
    cached = CachedFeatures(tmp_path / "features", 2, paths, source.mark())
    asked = TappedTeacher(source.teacher.model)
    asked.crops = 2  # the same crops, without the cache
    online = train(tmp_path / "online", source, asked)
    offline = train(tmp_path / "offline", source, cached)
    for name, tensor in online.items():
        assert torch.allclose(tensor, offline[name], rtol=1e-3, atol=1e-5), name
    fresh = train(tmp_path / "fresh", source, source.teacher)
    assert any(not torch.allclose(tensor, fresh[name], rtol=1e-2) for name, tensor in online.items())


def test_a_cache_of_something_else_is_refused(tmp_path):
    source = crops(tmp_path)
    write_features(tmp_path / "features", source, 1, progress=False)
    paths = source.images.dataset["path"][:]
    others = {"teacher": "x"}, {"seed": 4}, {"augmentation": {}}, {"relu": True}
    for other in others:
        with pytest.raises(ValueError, match=f"belongs to another run: {next(iter(other))}"):
            CachedFeatures(tmp_path / "features", 1, paths, {**source.mark(), **other})
    with pytest.raises(FileNotFoundError, match="no representations"):
        CachedFeatures(tmp_path / "features", 2, paths, source.mark())
    with pytest.raises(ValueError, match="nothing on 1 of 51 images"):
        CachedFeatures(tmp_path / "features", 1, [*paths, "new.png"], source.mark())
    assert len(pictures(tmp_path / "pictures")) == COUNT


def test_restored_relu(tmp_path):
    """A pre-trained student is the plain network, and ends in its ReLU again."""
    source = crops(tmp_path)
    student = model(4, 5, seed=1)
    train(tmp_path / "made", source, source.teacher, student)
    loaded = ReIDModel.from_pretrained(tmp_path / "made").eval()
    x = torch.randn(4, 3, *SIZE)
    assert loaded.state_dict().keys() == model(4, 5).state_dict().keys()
    assert (loaded.backbone(x) >= 0).all()
    assert torch.equal(loaded(x).features, Tap(loaded).last(x).relu().mean((2, 3)))
    assert all(parameter.requires_grad for parameter in loaded.parameters())
