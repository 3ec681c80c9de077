"""Learning rates against the published values, and recipes changed by name."""

import math
from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

from reid_hub.methods import METHODS
from reid_hub.registry import lookup
from reid_hub.training import RECIPES, Schedule, build_optimizer, build_scheduler, override, parse_override


def epoch_rate(recipe, epoch, group=None):
    """Rate in the epoch that the papers call `epoch`, counted from 1."""
    return recipe.schedule.rate(epoch - 1, recipe.learning_rate, group)


BOT_VALUES = {1: 3.815e-5, 9: 3.1535e-4, 10: 3.5e-4, 39: 3.5e-4, 40: 3.5e-5, 69: 3.5e-5, 70: 3.5e-6, 90: 3.5e-7}


@pytest.mark.parametrize(("epoch", "rate"), BOT_VALUES.items())
def test_bot_rates_of_the_downstream_recipe(epoch, rate):
    assert epoch_rate(RECIPES["bot"], epoch) == pytest.approx(rate, rel=1e-9)


def test_bot_rates_of_the_published_refinement_table():
    recipe = override(RECIPES["bot"], {"schedule.milestones": [50, 70]})
    table = {1: 3.815e-5, 9: 3.153e-4, 10: 3.5e-4, 49: 3.5e-4, 50: 3.5e-5, 69: 3.5e-5, 70: 3.5e-6, 100: 3.5e-6}
    for epoch, rate in table.items():
        assert epoch_rate(recipe, epoch) == pytest.approx(rate, rel=2e-4), epoch


def test_teacher_steps_at_40_70_130_of_200():
    recipe = RECIPES["bot-teacher"]
    assert recipe.epochs == 200
    rates = [epoch_rate(recipe, epoch) for epoch in (39, 40, 69, 70, 129, 130, 200)]
    assert rates == pytest.approx([3.5e-4, 3.5e-5, 3.5e-5, 3.5e-6, 3.5e-6, 3.5e-7, 3.5e-7])


@pytest.mark.parametrize(
    ("epoch", "rate", "digits"),
    [(1, 4e-6, 1e-9), (11, 2.02e-4, 1e-9), (20, 3.80e-4, 1e-3), (21, 3.73e-4, 2e-3), (61, 2.00e-4, 3e-3),
     (120, 8.7e-7, 1e-2)],
)  # fmt: skip
def test_vit_rates(epoch, rate, digits):
    assert epoch_rate(RECIPES["vit"], epoch) == pytest.approx(rate, rel=digits)


def test_vit_biases_start_and_end_with_the_weights_and_run_at_twice_their_rate():
    recipe = RECIPES["vit"]
    assert epoch_rate(recipe, 1, 8e-4) == epoch_rate(recipe, 1)
    for t in (10, 30, 119):
        expected = (
            4e-6 + t * (8e-4 - 4e-6) / 20 if t < 20 else 8e-7 + (8e-4 - 8e-7) * (1 + math.cos(math.pi * t / 120)) / 2
        )
        assert epoch_rate(recipe, t + 1, 8e-4) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("epoch", "rate"), [(5, 0.00797), (60, 0.00401), (120, 1.6e-5)])
def test_transreid_rates(epoch, rate):
    assert epoch_rate(RECIPES["transreid"], epoch) == pytest.approx(rate, rel=2e-3)


def test_transreid_warm_up_formula():
    for t in range(1, 5):
        assert epoch_rate(RECIPES["transreid"], t) == pytest.approx(0.01 * 0.008 + t * 0.99 * 0.008 / 5, rel=1e-12)


@pytest.mark.parametrize(("name", "epochs", "step"), [("fd", 80, 20), ("fd-teacher", 80, 20), ("fd-student", 50, 15)])
def test_fd_halves_every_twenty_or_fifteen_epochs(name, epochs, step):
    recipe = RECIPES[name]
    assert (recipe.epochs, recipe.batch_size, recipe.optimizer, recipe.weight_decay) == (epochs, 32, "sgd", 5e-4)
    for e in range(epochs):
        assert recipe.schedule.rate(e, recipe.learning_rate) == pytest.approx(0.0025 * 0.5 ** (e // step))


def test_fd_augments_its_stages_as_table_2_says():
    """flip, erasing: all; crop: not the final student; colour and rotation: teachers of parts only."""
    table = {"fd-teacher": "flip erasing crop colour rotation", "fd": "flip erasing crop", "fd-student": "flip erasing"}
    for name, expected in table.items():
        a = RECIPES[name].augmentation
        colour = a.brightness == a.contrast == a.saturation == 0.2
        on = {"flip": a.flip == 0.5, "erasing": a.erasing == 0.5, "crop": a.crop_scale == 9 / 8, "colour": colour}
        assert [key for key, value in {**on, "rotation": a.rotation == 10}.items() if value] == expected.split()
        assert (a.pad, a.erasing_area, a.erasing_aspect, a.erasing_fill) == (0, (0.02, 0.4), (0.3, 3.33), "zero")


def test_ptl_divides_by_ten_every_ten_epochs_and_mgn_at_320_360_and_400():
    for name, epochs, base, steps in (("ptl", 50, 0.01, (10, 20, 30, 40)), ("ptl-mgn", 450, 2e-4, (320, 360, 400))):
        recipe = RECIPES[name]
        assert recipe.epochs == epochs
        for e in range(epochs):
            expected = base * 0.1 ** len([step for step in steps if e >= step])
            assert recipe.schedule.rate(e, recipe.learning_rate) == pytest.approx(expected)
    assert replace(RECIPES["std"], source="", method="", options={}) == replace(
        RECIPES["ptl"], source="", method="", options={}
    )


MSINET_VALUES = {0: 6.5e-4, 1: 7.085e-3, 5: 0.032825, 9: 0.058565, 10: 0.065, 149: 0.065, 150: 6.5e-3, 224: 6.5e-3,
                 225: 6.5e-4, 299: 6.5e-4, 300: 6.5e-5, 349: 6.5e-5}  # fmt: skip


@pytest.mark.parametrize(("epoch", "rate"), MSINET_VALUES.items())
def test_msinet_rates(epoch, rate):
    """Counted from 0: the published loop steps its scheduler behind each epoch."""
    assert RECIPES["msinet"].schedule.rate(epoch, 0.065) == pytest.approx(rate, rel=1e-9)
    assert RECIPES["msinet"].learning_rate == 0.065


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("steps_per_epoch", [1, 7])
def test_a_run_of_the_recipes_own_length_has_the_published_rate_in_every_step(name, steps_per_epoch):
    recipe = RECIPES[name]
    total = recipe.epochs * steps_per_epoch
    for step in range(total):
        expected = recipe.schedule.rate(step // steps_per_epoch, recipe.learning_rate)
        assert recipe.schedule.rate_at(step, total, recipe.learning_rate) == expected


def test_a_shorter_run_keeps_the_proportions():
    schedule, total = RECIPES["bot"].schedule, 20 * 50  # 20 epochs of 50 steps instead of 100 epochs
    rates = [schedule.rate_at(step, total, 1.0) for step in range(total)]
    assert rates.index(1.0) == 0.09 * total  # after nine hundredths of warm-up: the formula counts from 1
    assert sum(rate == pytest.approx(1.0) for rate in rates) == 0.30 * total
    assert rates[-1] == pytest.approx(1e-3)
    assert schedule.rate_at(total, total, 1.0) == rates[-1]  # the scheduler asks once more after the last step


def test_schedules_refuse_what_they_do_not_know():
    with pytest.raises(ValueError, match="'step' or 'cosine'"):
        Schedule("linear", epochs=3)
    with pytest.raises(ValueError, match="at least one epoch"):
        Schedule("step", epochs=0)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_names_what_exists_and_survives_json(name):
    recipe = RECIPES[name]
    lookup(METHODS, recipe.method, "method")
    assert override(recipe, {}) == recipe
    assert asdict(recipe)["schedule"]["epochs"] == recipe.epochs
    assert recipe.source


def test_overrides_reach_every_depth_and_leave_the_table_alone():
    before = asdict(RECIPES["bot"])
    recipe = override(
        RECIPES["bot"],
        {"learning_rate": 1e-3, "schedule.gamma": 0.5, "augmentation.flip": 0.0, "options.center_weight": 0.0,
         "options.metric_options.margin": None, "optimizer_options.amsgrad": True,
         "augmentation.erasing_area": [0.1, 0.2]},
    )  # fmt: skip
    assert recipe.learning_rate == 1e-3
    assert recipe.schedule == replace(RECIPES["bot"].schedule, gamma=0.5)
    assert recipe.augmentation == replace(RECIPES["bot"].augmentation, flip=0.0, erasing_area=(0.1, 0.2))
    assert recipe.options["metric_options"] == {"margin": None, "hard_factor": 0.2}
    assert recipe.options["center_weight"] == 0.0
    assert recipe.optimizer_options == {"amsgrad": True}
    assert asdict(RECIPES["bot"]) == before


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("learning_rat", 1.0, "did you mean 'learning_rate'"),
        ("schedule.gama", 1.0, "did you mean 'gamma'"),
        ("augmentation.flipp", 1.0, "did you mean 'flip'"),
        ("options.label_smoting", 0.1, "did you mean 'label_smoothing'"),
        ("optimizer_options.amsgrd", True, "did you mean 'amsgrad'"),
        ("optimizer", "adams", "did you mean 'adam'"),
        ("method", "supervise", "did you mean 'supervised'"),
        ("learning_rate", "fast", "must be like"),
        ("batch_size", 31.5, "must be like"),
        ("batch_size", 30, "divisible"),
        ("learning_rate.x", 1, "nothing below"),
        ("augmentation.flip", 7, "probability"),
        ("sampler", "random", "one of identity, identity_once, shuffle"),
    ],
)
def test_a_wrong_override_stops_with_a_hint(name, value, message):
    with pytest.raises(ValueError, match=message):
        override(RECIPES["bot"], {name: value})


def test_overrides_are_read_from_text():
    assert parse_override("schedule.milestones=[30, 60]") == ("schedule.milestones", [30, 60])
    assert parse_override("options.metric=circle") == ("options.metric", "circle")
    assert parse_override("options.metric=null") == ("options.metric", None)
    with pytest.raises(ValueError, match="name=value"):
        parse_override("learning_rate")


def test_biases_are_a_group_with_their_own_rate_and_frozen_parameters_are_left_out():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    model[2].requires_grad_(False)
    optimiser = build_optimizer(model, "sgd", lr=0.1, weight_decay=0.5, bias_lr_factor=2.0, options={"momentum": 0.9})
    weights, biases = optimiser.param_groups
    assert [p.shape for p in weights["params"]] == [(3, 2), (3,)]
    assert [p.shape for p in biases["params"]] == [(3,), (3,)]
    assert (weights["lr"], biases["lr"]) == (0.1, 0.2)
    assert weights["weight_decay"] == biases["weight_decay"] == 0.5
    assert weights["momentum"] == 0.9


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_weight_decay_is_coupled(name):
    """With no gradient but that of the decay, one step equals one on the loss decay / 2 * w^2 without decay."""
    decayed, plain = nn.Parameter(torch.tensor([2.0])), nn.Parameter(torch.tensor([2.0]))
    first = build_optimizer(nn.ParameterList([decayed]), name, lr=0.1, weight_decay=0.5)
    second = build_optimizer(nn.ParameterList([plain]), name, lr=0.1, weight_decay=0.0)
    decayed.grad = torch.zeros(1)
    plain.grad = 0.5 * plain.detach()
    first.step()
    second.step()
    assert torch.equal(decayed, plain)


def test_the_scheduler_gives_every_group_its_published_rate():
    recipe = RECIPES["vit"]
    model, total = nn.Linear(2, 3), 120 * 3
    options = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay, "bias_lr_factor": 2.0}
    optimiser = build_optimizer(model, recipe.optimizer, **options, options=recipe.optimizer_options)
    scheduler = build_scheduler(optimiser, recipe.schedule, total, recipe.learning_rate)
    for step in range(total):
        weights, biases = (group["lr"] for group in optimiser.param_groups)
        assert weights == pytest.approx(epoch_rate(recipe, step // 3 + 1), rel=1e-12)
        assert biases == pytest.approx(epoch_rate(recipe, step // 3 + 1, 8e-4), rel=1e-12)
        optimiser.step()
        scheduler.step()


def test_a_model_without_trainable_parameters_is_refused():
    with pytest.raises(ValueError, match="nothing to train"):
        build_optimizer(nn.Linear(2, 2).requires_grad_(False), "adam", lr=0.1, weight_decay=0.0)
