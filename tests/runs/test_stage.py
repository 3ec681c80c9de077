"""Which settings count as the same run: each kind of stage, with equal and with different settings."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from reid_hub import ReIDConfig, ReIDModel, WeightChain
from reid_hub.errors import ReIDError
from reid_hub.records import RUN_FILE, RunRecord, canonical, differences
from reid_hub.runs.baselines import KDPPSettings, SparseSettings, TrainKDPP, TrainSparse
from reid_hub.runs.classify import Classify, ClassifySettings
from reid_hub.runs.compress import CompressSettings, TrainCompressed
from reid_hub.runs.fd import FDSettings, TrainFDStudent
from reid_hub.runs.kdep import Pretrain, PretrainSettings
from reid_hub.runs.options import Pairs
from reid_hub.runs.ptl import STDSettings, TrainSTD
from reid_hub.runs.refine import Refine, RefineSettings
from reid_hub.runs.settings import TrainSettings
from reid_hub.runs.stage import Stage
from reid_hub.runs.train import Train
from reid_hub.training import RECIPES

TINY = {"model_type": "resnet", "embedding_size": 4, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
DRAWN = {"data_option": {"num_train_ids": 4, "num_test_ids": 2, "images_per_id": 8, "num_distractors": 0}}
SHAPES = {"data": "shapes", "data_option": {"train_per_class": 4, "test_per_class": 2}}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    ReIDModel(ReIDConfig(backbone_config=TINY, image_size=(32, 16))).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def stages(model) -> dict:
    """A function from options to a stage, of each kind that resumes, without anything trained."""
    small = {"model": model, **DRAWN}

    def student(**options):
        return TrainFDStudent(FDSettings.of(**{**small, "set": {"options.alpha": 0, "options.beta": 0}, **options}))

    def compressed(**options):
        settings = CompressSettings.of(**{**small, **options}).at(4)
        return TrainCompressed(settings.but(out=options["out"]), cut=lambda base, embeddings: base)

    def std(**options):
        settings = STDSettings.of(**{**small, **options})
        return TrainSTD(settings.but(set={"options.lam": 0.0, **settings.recipe.set}))

    return {
        "train": lambda **options: Train(TrainSettings.of(**{**small, **options})),
        "refine": lambda **options: Refine(RefineSettings.of(**{**small, "width": 2, **options})),
        "sparse": lambda **options: TrainSparse(SparseSettings.of(**{**small, **options})),
        "kdpp": lambda **options: TrainKDPP(KDPPSettings.of(**{**small, "teacher": model, **options})),
        "fd": student,
        "std": std,
        "compress": compressed,
        "pretrain": lambda **options: Pretrain(
            PretrainSettings.of(**{**small, "teacher": model, "align": "interp", "set": {"batch_size": 8}, **options})
        ),
        "classify": lambda **options: Classify(ClassifySettings.of(**{"model": "res18-x0.25", **SHAPES, **options})),
    }


KINDS = ["train", "refine", "sparse", "kdpp", "fd", "std", "compress", "pretrain", "classify"]


def finish(stage: Stage) -> None:
    """Leave a folder as a finished stage would, without its work."""
    stage.record.finished(**stage.facts(None)).write(stage.folder)


def spellings(recipe) -> list[tuple[dict, dict]]:
    """Pairs of options with the same meaning."""
    rate, flip = recipe.learning_rate, recipe.augmentation.flip
    return [
        ({"epochs": 3}, {"arg": {"num_train_epochs": 3}}),
        ({"epochs": 3}, {"epochs": 3.0}),
        ({"epochs": recipe.epochs}, {}),
        ({"seed": 7}, {"arg": ["seed=7"]}),
        ({"set": {"learning_rate": 0.5}}, {"arg": {"learning_rate": 0.5}}),
        ({"set": {"weight_decay": 0.25}}, {"arg": {"weight_decay": 0.25}}),
        ({"set": {"batch_size": 16}}, {"arg": {"per_device_train_batch_size": 16}}),
        ({"set": ["learning_rate=0.5"]}, {"set": {"learning_rate": 0.5}}),
        ({"set": {"learning_rate": rate, "augmentation.flip": flip}}, {}),
        ({"set": {"schedule.milestones": [1, 2]}}, {"set": {"schedule.milestones": (1, 2)}}),
        ({"arg": {"max_grad_norm": 0.0}}, {}),
        ({"arg": {"gradient_accumulation_steps": 1, "logging_steps": 5, "dataloader_num_workers": 0}}, {}),
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_another_spelling_is_the_same_run(kind, stages, tmp_path):
    recipe = stages[kind](out=tmp_path).recipe
    for number, (first, second) in enumerate(spellings(recipe)):
        # Options of the stage's own `set` stay, or the runs would differ in them.
        own = dict(stages[kind](out=tmp_path).settings.recipe.set)
        if "per_device_train_batch_size" in second.get("arg", {}):
            own.pop("batch_size", None)
        made = []
        for options in (first, second):
            options = {**options, "set": {**own, **Pairs(options.get("set", {}))}}
            made.append(stages[kind](**{**options, "resume": True, "out": tmp_path / str(number)}))
        finish(made[0])
        assert made[1].done(), (first, second)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"epochs": 5}, "epochs was"),
        ({"arg": {"num_train_epochs": 5}}, "epochs was"),
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"arg": {"seed": 1}}, "seed was 0 and is 1"),
        ({"arg": {"learning_rate": 9.0}}, "learning_rate was .* and is 9.0"),
        ({"arg": {"gradient_accumulation_steps": 2}}, "arguments.gradient_accumulation_steps was None and is 2"),
        ({"arg": {"max_grad_norm": 1.0}}, "arguments.max_grad_norm was None and is 1.0"),
        ({"dataset_name": "others"}, "dataset was .* and is 'others'"),
        ({"image_size": [48, 24]}, r"image_size was .* and is \[48, 24\]"),
    ],
)
def test_another_run_is_refused_by_what_differs(kind, change, named, stages, tmp_path):
    finish(stages[kind](out=tmp_path))
    with pytest.raises(ReIDError, match=named):
        stages[kind](out=tmp_path, resume=True, **change).run()


def test_settings_of_a_single_kind_of_stage_are_compared_too(stages, tmp_path):
    for kind, change, named in (
        ("train", {"keep_ids": 0.5}, "keep_ids was 1.0 and is 0.5"),
        ("refine", {"width": 3}, "chain.width was 2 and is 3"),
        ("refine", {"clustering": "random"}, "chain.clustering was 'ward' and is 'random'"),
        ("sparse", {"reg": 0.5}, "sparsity.reg was 0.0001 and is 0.5"),
        ("kdpp", {"option": {"kd_weight": 3}}, "kdpp.kd_weight was None and is 3"),
        ("compress", {"start": "random"}, "compression.start was 'pca' and is 'random'"),
        ("pretrain", {"align": "cs.var"}, "align was 'interp' and is 'cs.var'"),
        ("classify", {"keep": 0.5}, "keep was 1.0 and is 0.5"),
    ):
        folder = tmp_path / f"{kind}-{next(iter(change))}"
        finish(stages[kind](out=folder))
        with pytest.raises(ReIDError, match=named):
            stages[kind](out=folder, resume=True, **change).done()


def test_another_model_under_the_same_name_is_refused(model, tmp_path):
    first, second = tmp_path / "first" / "model", tmp_path / "second" / "model"
    for seed, folder in enumerate((first, second)):
        torch.manual_seed(seed)
        ReIDModel(ReIDConfig(backbone_config=TINY, image_size=(32, 16))).save_pretrained(folder)
    finish(Train(TrainSettings.of(out=tmp_path / "out", model=first, **DRAWN)))
    assert Train(TrainSettings.of(out=tmp_path / "out", model=first, **DRAWN)).done()
    with pytest.raises(ReIDError, match="start_weights was"):
        Train(TrainSettings.of(out=tmp_path / "out", model=second, **DRAWN)).done()


def test_a_data_set_s_default_option_says_nothing(model, tmp_path):
    finish(Train(TrainSettings.of(out=tmp_path, model=model)))
    assert Train(TrainSettings.of(out=tmp_path, model=model, data_option={"seed": 0})).done()
    assert not Train(TrainSettings.of(out=tmp_path / "new", model=model)).done()


def test_the_size_of_the_model_is_the_size_that_is_meant(model, tmp_path):
    finish(Train(TrainSettings.of(out=tmp_path, model=model)))
    assert Train(TrainSettings.of(out=tmp_path, model=model, image_size=(32, 16))).done()
    finish(Train(TrainSettings.of(out=tmp_path / "variant", image_size=(64, 32))))
    assert Train(TrainSettings.of(out=tmp_path / "variant", set={"config.image_size": [64, 32]})).done()


@dataclass
class Count(Stage[int]):
    """Counts how often it was made, in a file."""

    folder_: Path
    number: int = 0
    again: bool = True

    kind = "count"
    folder = property(lambda self: self.folder_)
    resume = property(lambda self: self.again)

    def key(self):
        return {"number": self.number}

    def make(self):
        self.begin()
        path = self.folder / "made"
        path.write_text(path.read_text() + "x" if path.exists() else "x")
        if self.number < 0:
            raise RuntimeError("interrupted")
        return self.result()

    def result(self):
        return len((self.folder / "made").read_text())


def test_a_stage_is_made_once_continued_and_refused(tmp_path):
    assert [Count(tmp_path).run(), Count(tmp_path).run()] == [1, 1]
    assert RunRecord.read(tmp_path).done
    with pytest.raises(ReIDError, match="number was 0 and is 1"):
        Count(tmp_path, 1).run()
    assert Count(tmp_path, again=False).run() == 2
    begun = tmp_path / "begun"
    begun.mkdir()
    for times in (1, 2):
        with pytest.raises(RuntimeError, match="interrupted"):
            Count(begun, -1).run()
        assert not RunRecord.read(begun).done
        assert len((begun / "made").read_text()) == times
    with pytest.raises(ReIDError, match="number was -1 and is 0"):
        Count(begun).run()


def test_a_record_comes_back_as_it_was_written(tmp_path):
    record = RunRecord("train", {"size": (2, 3), "rate": np.float32(0.5), "path": tmp_path}, found={"weight": 1.5})
    record.write(tmp_path)
    back = RunRecord.read(tmp_path)
    assert back == RunRecord("train", {"size": [2, 3], "rate": 0.5, "path": tmp_path.name}, found={"weight": 1.5})
    assert str(tmp_path.parent) not in (tmp_path / RUN_FILE).read_text()
    back.check(replace(record, done=True), tmp_path)
    (tmp_path / RUN_FILE).write_text("{")
    with pytest.raises(ReIDError, match=r"run\.json is damaged"):
        RunRecord.read(tmp_path)
    assert RunRecord.read(tmp_path / "nothing") is None


def test_differences_are_those_of_a_loop_over_flattened_values():
    def flat(value, name=""):
        if isinstance(value, dict):
            return {k: v for key, item in value.items() for k, v in flat(item, f"{name}.{key}").items()}
        return {name[1:]: value}

    before = {"a": 1, "b": {"c": [1, 2], "d": None}, "e": "x"}
    now = {"a": 1.0, "b": {"c": (1, 3), "f": True}, "e": "y", "g": 0}
    first, second = flat(json.loads(json.dumps(before))), flat(json.loads(json.dumps(now)))
    names = [name for name in {**first, **second} if first.get(name) != second.get(name)]
    expected = {f"{name} was {first.get(name)!r} and is {second.get(name)!r}" for name in names}
    assert set(differences(before, now)) == expected
    assert len(expected) == 4
    assert differences(now, canonical(now)) == []


def test_every_training_recipe_can_be_resolved_and_compared():
    for name in RECIPES:
        settings = TrainSettings.of(recipe=name)
        assert settings.recipe.resolved == RECIPES[name]
        assert json.loads(json.dumps(canonical(settings.recipe.resolved)))["source"] == RECIPES[name].source


def test_a_chain_s_own_settings_fit_it(model, tmp_path):
    """The clustered chain that lies in a folder is compared like everything else."""
    opened = ReIDModel.from_pretrained(model)
    WeightChain.from_teacher(opened, 2).save_pretrained(tmp_path / "clustered")
    settings = RefineSettings.of(model=model, out=tmp_path, resume=True, width=2)
    assert Refine(settings).clustered(opened).config.clustering == "ward"
    with pytest.raises(ReIDError, match="width was 2 and is 3"):
        Refine(settings.but(width=3)).clustered(opened)
