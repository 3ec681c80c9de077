"""Private interfaces of libraries: each entry of reid_hub.compat works as described, and nothing else uses one."""

import ast
import importlib
import inspect
import pkgutil
import textwrap
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import SequentialSampler
from transformers import AutoBackbone, Trainer, TrainingArguments

import reid_hub
from reid_hub import ReIDConfig, compat
from reid_hub.compat.trainer import TrainerHooks, use_one_gpu
from reid_hub.models import ReIDBackbone

PACKAGE = Path(reid_hub.__file__).parent
# Made for subclasses: transformers and datasets document them. `_replace` is a named tuple's public method.
EXTENSION_POINTS = {
    "_auto_class",
    "_generate_examples",
    "_init_weights",
    "_keys_to_ignore_on_load_unexpected",
    "_split_generators",
}
PUBLIC = {"_replace"}
SOURCES = [path for path in PACKAGE.rglob("*.py") if "compat" not in path.relative_to(PACKAGE).parts]


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def private_reads(paths) -> list[str]:
    """Private names that files read of an object, import, or look up by a string, and that they nowhere make."""
    nodes = [(path, node) for path in paths for node in ast.walk(ast.parse(path.read_text()))]
    ours = {node.name for _, node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    ours |= {node.id for _, node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    ours |= {  # self._name = ...
        node.attr
        for _, node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self"
    }

    def names(node) -> list[str]:
        if isinstance(node, ast.Attribute):
            return [node.attr]
        if isinstance(node, ast.ImportFrom):
            return [alias.name for alias in node.names]
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"getattr", "hasattr", "setattr"}:
            return [node.args[1].value] if isinstance(getattr(node.args[1], "value", None), str) else []
        return []

    found = [(path, node.lineno, name) for path, node in nodes for name in names(node) if is_private(name)]
    return [f"{path.name}:{line} {name}" for path, line, name in found if name not in ours | PUBLIC]


def private_overrides(module) -> list[str]:
    """Private names that the classes of a module write down and that a library's class among their bases has too."""
    found = []
    for kind in vars(module).values():
        if inspect.isclass(kind) and kind.__module__ == module.__name__:
            (written,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
            names = {node.name for node in written.body if isinstance(node, ast.FunctionDef)}
            names |= {node.id for node in ast.walk(written) if isinstance(node, ast.Name)} & set(vars(kind))
            libraries = [base for base in kind.__mro__ if not base.__module__.startswith("reid_hub")]
            found += [
                f"{module.__name__}.{kind.__name__}.{name}"
                for name in names
                if is_private(name) and name not in EXTENSION_POINTS and any(name in vars(base) for base in libraries)
            ]
    return found


def test_no_private_name_of_a_library_is_read_anywhere_else():
    assert private_reads(SOURCES) == []
    assert any(line.endswith("_int_mm") for line in private_reads([PACKAGE / "compat" / "__init__.py"]))


def test_no_private_method_of_a_library_is_overridden_anywhere_else():
    names = [found.name for found in pkgutil.walk_packages([str(PACKAGE)], "reid_hub.")]
    elsewhere = [name for name in names if not name.startswith("reid_hub.compat") and not name.endswith("__main__")]
    assert [found for name in elsewhere for found in private_overrides(importlib.import_module(name))] == []
    hooks = private_overrides(importlib.import_module("reid_hub.compat.trainer"))
    assert "reid_hub.compat.trainer.TrainerHooks._save_checkpoint" in hooks


# torch


def test_int8_matmul():
    random = np.random.default_rng(0)
    left, right = (random.integers(-60, 61, size, dtype=np.int8) for size in ((32, 64), (64, 16)))
    assert compat.has_int8_matmul()
    product = compat.int8_matmul(torch.from_numpy(left), torch.from_numpy(right))
    assert product.dtype == torch.int32
    np.testing.assert_array_equal(product.numpy(), left.astype(np.int64) @ right.astype(np.int64))


def test_with_companions():
    class Student(compat.WithCompanions):
        def __init__(self):
            super().__init__()
            self.own, self.taken = nn.Linear(2, 2), (nn.Linear(2, 2), nn.BatchNorm1d(2).eval())

        def companions(self):
            return self.taken

    student = Student()
    assert set(student.state_dict()) == {"own.weight", "own.bias"}
    for move in (lambda: student.double(), lambda: student.to("meta"), lambda: nn.Sequential(student).bfloat16()):
        move()
        expected = {(tensor.dtype, tensor.device) for tensor in student.own.parameters()}
        for module in student.taken:
            assert {(tensor.dtype, tensor.device) for tensor in module.parameters()} == expected
    student.train()
    assert not student.taken[1].training


# datasets


def test_fingerprint():
    first = datasets.Dataset.from_dict({"a": [1, 2, 3]})
    assert compat.fingerprint(first) == compat.fingerprint(datasets.Dataset.from_dict({"a": [1, 2, 3]}))
    others = [datasets.Dataset.from_dict({"a": [1, 2, 4]}), first.select([0, 2]), first.rename_column("a", "b")]
    found = {compat.fingerprint(other) for other in (first, *others)}
    assert len(found) == 4
    assert all(set(name) <= set("0123456789abcdef") for name in found)


def test_resolve_features():
    stream = datasets.IterableDataset.from_generator(lambda: iter([{"a": 1, "b": "x"}]))
    assert stream.features is None
    resolved = compat.resolve_features(stream)
    assert resolved.features == {"a": datasets.Value("int64"), "b": datasets.Value("string")}
    assert list(resolved) == [{"a": 1, "b": "x"}]


# transformers


def test_register_backbone():
    class Configuration(ReIDConfig):
        model_type = "registered-by-test-compat"

    with pytest.raises(ValueError, match="Unrecognized configuration class"):
        AutoBackbone.from_config(Configuration())
    compat.register_backbone(Configuration, ReIDBackbone)
    assert isinstance(AutoBackbone.from_config(Configuration.from_variant("res18-x0.25")), ReIDBackbone)


def test_use_one_gpu(tmp_path, monkeypatch):
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    assert args.n_gpu == 0
    use_one_gpu(args)
    assert args.n_gpu == 0
    args._n_gpu = 4
    assert args.n_gpu == 4
    use_one_gpu(args)
    assert args.n_gpu == 1
    assert args.train_batch_size == args.per_device_train_batch_size


class Recorded(TrainerHooks):
    """Records the hooks that the Trainer calls, with their arguments."""

    def __init__(self, *args, **kwargs):
        self.called, self.metrics = [], iter([0.5, 0.25, 0.75, 0.5])
        super().__init__(*args, **kwargs)

    def train_sampler(self, dataset):
        self.called.append("train_sampler")
        return SequentialSampler(dataset)

    def prepare_batch(self, inputs):
        self.called.append(f"prepare_batch {inputs['x'].flatten().tolist()}")
        return super().prepare_batch(inputs)

    def make_scheduler(self, num_training_steps, optimizer):
        self.called.append(f"make_scheduler {num_training_steps}")
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)

    def evaluate(self, *args, **kwargs):
        metrics = {"eval_score": next(self.metrics)}
        self.called.append("evaluate")
        return metrics

    def write_export(self, folder):
        self.called.append(f"write_export {folder.name}")

    def write_checkpoint(self, folder):
        self.called.append(f"write_checkpoint {folder.parent.name}/{folder.name}")
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.model.state_dict(), folder / "pytorch_model.bin")

    def on_best(self):
        self.called.append("on_best")

    def before_resume(self, checkpoint):
        self.called.append(f"before_resume {Path(checkpoint).name}")

    def check_loaded(self, missing, unexpected):
        self.called.append(f"check_loaded {missing} {unexpected}")

    def checkpoint_parent(self):
        return super().checkpoint_parent() / "parent"

    def save_checkpoint(self, save):
        self.called.append("save_checkpoint")
        super().save_checkpoint(save)
        self.called.append(f"saved {sorted(path.name for path in self.checkpoint_parent().iterdir())}")


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return {"loss": ((x * self.weight - 1) ** 2).mean()}


@pytest.fixture
def trainer(tmp_path):
    def make(**changes):
        arguments = {
            "num_train_epochs": 2, "eval_strategy": "epoch", "save_strategy": "epoch", "metric_for_best_model": "score",
            "per_device_train_batch_size": 2, "report_to": "none", "use_cpu": True, "disable_tqdm": True,
            "greater_is_better": True,
        }  # fmt: skip
        rows = [{"x": torch.tensor([float(number)])} for number in (1, 2, 3)]
        args = TrainingArguments(str(tmp_path), **{**arguments, **changes})
        return Recorded(Line(), args, train_dataset=rows, eval_dataset=rows)

    return make


def test_the_trainer_calls_every_hook_in_this_order(trainer):
    first = trainer()
    first.train()
    epoch = ["prepare_batch [1.0, 2.0]", "prepare_batch [3.0]", "evaluate"]
    saved = ["write_checkpoint parent/checkpoint-2", "saved ['checkpoint-2']"]
    again = ["write_checkpoint parent/checkpoint-4", "saved ['checkpoint-2', 'checkpoint-4']"]
    assert first.called == [
        "train_sampler", "make_scheduler 4",
        *epoch, "on_best", "save_checkpoint", *saved,
        *epoch, "save_checkpoint", *again,
    ]  # fmt: skip
    assert first.state.best_metric == 0.5
    assert first.state.best_global_step is None
    first.called.clear()
    first.save_model()
    assert first.called == [f"write_export {Path(first.args.output_dir).name}"]

    # The schedule is another for another call of `train`.
    first.called.clear()
    first.train()
    assert first.called[:2] == ["train_sampler", "make_scheduler 4"]


def test_the_trainer_resumes_through_the_hooks(trainer, tmp_path):
    whole = trainer()
    whole.train()
    second = trainer()
    checkpoint = tmp_path / "parent" / "checkpoint-2"
    state = torch.load(checkpoint / "pytorch_model.bin", weights_only=True)
    second.train(resume_from_checkpoint=str(checkpoint))
    assert second.called[:4] == [
        "before_resume checkpoint-2", "check_loaded [] []", "train_sampler", "make_scheduler 4",
    ]  # fmt: skip
    assert second.called[4] == "prepare_batch [1.0, 2.0]"
    assert second.state.global_step == 4
    assert second.model.weight.item() == whole.model.weight.item()
    torch.save({"weight": state["weight"], "more": torch.zeros(1)}, checkpoint / "pytorch_model.bin")
    third = trainer()
    third.train(resume_from_checkpoint=str(checkpoint))
    assert third.called[1] == "check_loaded [] ['more']"


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("_get_train_sampler", ["self", "train_dataset"]),
        ("_prepare_inputs", ["self", "inputs"]),
        ("_determine_best_metric", ["self", "metrics", "trial"]),
        ("_load_from_checkpoint", ["self", "resume_from_checkpoint", "model"]),
        ("_issue_warnings_after_load", ["self", "load_result"]),
        ("_get_output_dir", ["self", "trial"]),
        ("_save_checkpoint", ["self", "model", "trial"]),
        ("save_model", ["self", "output_dir", "_internal_call"]),
        ("create_scheduler", ["self", "num_training_steps", "optimizer"]),
    ],
)
def test_the_trainer_s_hooks_take_what_they_took(name, parameters):
    assert list(inspect.signature(getattr(Trainer, name)).parameters) == parameters
    assert list(inspect.signature(getattr(TrainerHooks, name)).parameters) == parameters
