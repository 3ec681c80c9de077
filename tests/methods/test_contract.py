"""Every method of METHODS: built by name from what a run knows, trained by a step, exported."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from accelerate.utils import send_to_device
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import default_collate

from reid_hub import ReIDConfig, ReIDForImageClassification, ReIDModel, WeightChain
from reid_hub.data.batch import Batch
from reid_hub.data.views import VIEWS
from reid_hub.errors import ReIDError
from reid_hub.methods import METHODS, Method, RunContext, SupervisedMethod
from reid_hub.methods.compression import compress_model, principal_directions
from reid_hub.methods.kdep import TappedTeacher, new_pair
from reid_hub.methods.state import write_state

SIZE, PIDS = (64, 32), torch.tensor([0, 0, 1, 1, 3, 3])
BACKBONE = {"model_type": "resnet", "embedding_size": 4, "hidden_sizes": [8, 16], "depths": [1, 1]}
SUBSET = SimpleNamespace(pids=np.array([0, 0, 1, 1, 2, 2, 3, 3]), identities=np.array([5, 9, 12, 13]))


def tiny(seed: int = 0, **config) -> ReIDModel:
    torch.manual_seed(seed)
    return ReIDModel(ReIDConfig(**_config(**config)))


def _config(**config) -> dict:
    return {"backbone_config": {**BACKBONE, "layer_type": "basic"}, "image_size": SIZE, **config}


def images(count: int = 6) -> torch.Tensor:
    return torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(1))


def embed(model: ReIDModel, retrieve: str | None = None) -> torch.Tensor:
    with torch.no_grad():
        return copy.deepcopy(model).eval()(images(len(SUBSET.pids)), retrieve=retrieve).embeddings


class Drawn:
    """Representations of one view, for FD."""

    views, dims, paths, identities = (VIEWS["Up1"],), (5,), [], [5, 9, 12, 13]

    def __getitem__(self, indices):
        return [torch.randn(len(indices), 5)]


class Crops:
    """Features of drawn images, for a new pair of KDEP."""

    def __init__(self, teacher: TappedTeacher):
        self.teacher = teacher

    def __len__(self):
        return 6

    def represent(self, rows, round=0):
        return self.teacher(images()[rows])


def context(name: str) -> RunContext:
    """What a run of each method knows."""
    model, options, parts = tiny(), {}, {}
    if name == "classification":
        model = ReIDForImageClassification(ReIDConfig(**_config(neck="none", num_labels=4)))
    elif name == "compression":
        parts = {"compress": lambda base, embeddings: compress_model(base, "low_rank", 3)}
    elif name == "fd":
        parts = {"representations": Drawn()}
    elif name == "kdep":
        features = TappedTeacher(tiny(1))
        parts, options = {"features": features, "crops": Crops(features)}, {"align": "interp"}
    elif name in ("kdpp", "std"):
        parts = {"teacher": tiny(1)}
    elif name == "oskt":
        parts = {"chain": WeightChain.from_teacher(model, 2, clustering="random")}
    return RunContext(model=model, subset=SUBSET, options=options, parts=parts, embed=embed)


def built(run: RunContext, name: str) -> Method:
    torch.manual_seed(7)
    return METHODS[name].from_run(run)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_built_by_name_trains_and_exports(name, tmp_path):
    run = context(name)
    method = built(run, name).train()
    assert isinstance(method, METHODS[name])
    before = {key: tensor.detach().clone() for key, tensor in method.model.named_parameters()}
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    method.start_epoch(0)
    method.set_progress(0, 10, 0.0)
    outputs = method(Batch(pixel_values=images(), pids=PIDS, indices=torch.arange(6)))
    outputs["loss"].backward()
    optimizer.step()
    assert torch.isfinite(outputs["loss"])
    assert any(not torch.equal(before[key], tensor) for key, tensor in method.model.named_parameters())
    exported = method.export()
    exported.save_pretrained(tmp_path)
    again = type(exported).from_pretrained(tmp_path)
    assert again.state_dict().keys() == exported.state_dict().keys()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("compression", "not compressed: use `reid-hub compress`"),
        ("fd", "give `representations`, which `reid-hub distill fd` makes"),
        ("kdep", "needs `features`, and the run has none: use `reid-hub pretrain`"),
        ("kdpp", "needs `teacher`, and the run has none: use `reid-hub distill kdpp`"),
        ("oskt", "needs `chain`, and the run has none: use `reid-hub refine`"),
        ("std", "`teacher` is required when lam > 0: .*`reid-hub train --recipe ptl`"),
    ],
)
def test_a_missing_part_is_named_with_the_command_that_makes_it(name, message):
    with pytest.raises(ReIDError, match=message) as caught:
        METHODS[name].from_run(RunContext(model=tiny(), subset=SUBSET))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["supervised", "ptl", "fd", "oskt", "std", "kdpp"])
def test_the_classifier_of_the_source_goes_on(name, tmp_path):
    log, run = [], context(name)
    fresh = built(run, name).state_dict()
    classifier = {key: torch.randn_like(value) for key, value in fresh.items() if key.startswith("classifier.")}
    write_state(tmp_path, {**classifier, "other": torch.ones(2)}, SUBSET.identities)
    run = replace(run, source=tmp_path, log=log.append)
    started = built(run, name).state_dict()
    assert classifier
    for key, value in fresh.items():
        assert torch.equal(started[key], classifier.get(key, value)), key
    assert f"this recipe has another classifier than {tmp_path}: other of it are not used" in log


def test_a_source_of_other_people_is_refused_and_one_without_classifier_said(tmp_path):
    write_state(tmp_path, {"classifier.weight": torch.randn(4, 16)}, [1, 2, 3, 4])
    with pytest.raises(ReIDError, match="trained on other identities"):
        SupervisedMethod.from_run(RunContext(model=tiny(), subset=SUBSET, source=tmp_path))
    log = []
    SupervisedMethod.from_run(RunContext(model=tiny(), subset=SUBSET, source=tmp_path / "none", log=log.append))
    assert log == [f"{tmp_path / 'none'} has no classifier beside it: it starts from random weights"]


def test_teachers_of_other_people_are_refused():
    class Others(Drawn):
        identities = (5, 9, 12)

    with pytest.raises(ReIDError, match="trained on 3 identities, the student is to be on 4"):
        METHODS["fd"].from_run(RunContext(model=tiny(), subset=SUBSET, parts={"representations": Others()}))


def test_kdpp_averages_features_and_reads_the_teachers_classifier(tmp_path):
    teacher = tiny(1, retrieve="neck").eval()
    teacher.neck.running_mean.fill_(3.0)
    with torch.no_grad():
        features = teacher(images(8)).features
    expected = torch.stack([features[2 * pid : 2 * pid + 2].mean(0) for pid in range(4)])
    teacher.save_pretrained(tmp_path)
    weight = torch.randn(4, 16)
    write_state(tmp_path, {"classifier.weight": weight}, SUBSET.identities)
    loaded = ReIDModel.from_pretrained(tmp_path)
    method = METHODS["kdpp"].from_run(RunContext(model=tiny(), subset=SUBSET, parts={"teacher": loaded}, embed=embed))
    torch.testing.assert_close(method.directions, torch.nn.functional.normalize(expected, dim=1))
    assert torch.equal(method.teacher_classifier, weight)
    assert loaded.config.retrieve == "neck"


def test_kdep_scales_the_targets_of_a_new_pair_only():
    run = context("kdep")
    weight, scale = new_pair(built(run, "kdep").alignment(run.parts["features"](images())))
    new = built(run, "kdep")
    assert (new.weight, new.scale) == pytest.approx((weight, scale))
    given = built(replace(run, options={**run.options, "weight": 3.0}), "kdep")
    assert (given.weight, given.scale) == (3.0, 1.0)


def test_a_compressed_model_starts_from_the_principal_directions_and_its_source(tmp_path):
    weight = torch.randn(4, 16)
    write_state(tmp_path, {"classifier.weight": weight}, SUBSET.identities)
    run = replace(context("compression"), source=tmp_path)
    method = built(run, "compression")
    expected = principal_directions(embed(run.model), 3).float()
    torch.testing.assert_close(method.model.compression.weight.detach(), expected)
    assert torch.equal(method.classifier.weight, weight)
    at_random = built(replace(run, parts={**run.parts, "start": "random"}), "compression")
    assert not torch.equal(at_random.classifier.weight, weight)


def test_a_batch_survives_what_loaders_and_launchers_do_to_it(tmp_path):
    """Moved by accelerate and by the Trainer's way through DistributedDataParallel, the loss keeps its bits."""
    method = built(context("fd"), "fd").eval()
    boxes = torch.full((6, 4), -1)
    batch = Batch(pixel_values=images(), pids=PIDS, camids=PIDS, indices=torch.arange(6), erased_boxes=boxes)
    moved = send_to_device(default_collate([batch]), "cpu")
    moved = {name: tensor[0] for name, tensor in moved.items()}
    assert moved.keys() == batch.keys()
    torch.manual_seed(0)
    expected = method(batch)["loss"]
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    try:
        torch.manual_seed(0)
        assert torch.equal(DistributedDataParallel(method)(moved)["loss"], expected)
    finally:
        dist.destroy_process_group()
