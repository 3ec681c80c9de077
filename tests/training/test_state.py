"""Files that a training leaves beside the exported model, and the epochs and steps that its method gets."""

import pytest
import torch

from reid_hub.methods import SupervisedMethod
from reid_hub.methods.state import read_state, write_state

from .small_run import STEPS_PER_EPOCH, small_model, small_trainer


class Watch(SupervisedMethod):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.seen = []

    def set_progress(self, step, total_steps, epoch):
        self.seen.append((step, total_steps, epoch))


def test_classifier_and_centers_lie_beside_the_exported_model(small_dataset, tmp_path):
    trainer = small_trainer(tmp_path, small_dataset, method=Watch, num_train_epochs=2)
    trainer.train()
    trainer.save_model()
    heads = read_state(tmp_path)
    assert set(heads) == {"classifier.weight", "centers"}
    for name, tensor in heads.items():
        assert torch.equal(tensor, trainer.model.state_dict()[name])
    again = SupervisedMethod(small_model(), 12, center_weight=5e-4)
    missing = again.load_state_dict(heads, strict=False).missing_keys
    assert all(name.startswith("model.") for name in missing)

    steps = 2 * STEPS_PER_EPOCH
    assert [(step, total) for step, total, _ in trainer.model.seen] == [(step, steps) for step in range(steps)]
    epochs = [epoch for *_, epoch in trainer.model.seen]
    assert epochs == pytest.approx([step / STEPS_PER_EPOCH for step in range(steps)])


def test_missing_and_damaged_classifiers_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="folder of a training run"):
        read_state(tmp_path)
    write_state(tmp_path, {"classifier.weight": torch.ones(3, 2)})
    path = tmp_path / "training" / "heads.safetensors"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ValueError, match="is damaged"):
        read_state(tmp_path)
