"""Tests with whole processes: a kill in mid-epoch, and two processes that share an epoch."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from reid_hub.data.samplers import IdentitySampler

from .small_run import SEED, STEPS_PER_EPOCH, people

SCRIPT = Path(__file__).with_name("small_run.py")
ROOT = Path(__file__).parents[2]
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def run(folder: Path, *arguments: str, launcher: list[str] | None = None) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, *(launcher or []), str(SCRIPT), str(folder), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def assert_ran(finished: subprocess.CompletedProcess) -> None:
    assert finished.returncode == 0, finished.stderr[-4000:]


def assert_same_bits(first: Path, second: Path) -> None:
    first, second = load_file(first), load_file(second)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_killed_in_mid_epoch_and_resumed_gives_the_same_bits(tmp_path):
    assert_ran(run(tmp_path / "whole"))
    killed = run(tmp_path / "cut", "--kill-at", "11")
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "cut" / "final-0.safetensors").exists()
    # Step 8, where it goes on, is in the middle of the second epoch.
    assert sorted(p.name for p in (tmp_path / "cut").glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-8"]
    assert_ran(run(tmp_path / "cut", "--resume"))
    assert_same_bits(tmp_path / "whole" / "final-0.safetensors", tmp_path / "cut" / "final-0.safetensors")
    whole, cut = (json.loads((tmp_path / name / "seen-0.json").read_text()) for name in ("whole", "cut"))
    assert cut == whole[8:]


@pytest.mark.slow
def test_two_processes_killed_and_resumed_give_the_same_bits(tmp_path):
    assert_ran(run(tmp_path / "whole", launcher=TWO))
    assert run(tmp_path / "cut", "--kill-at", "7", launcher=TWO).returncode != 0
    assert sorted(p.name for p in (tmp_path / "cut").glob("checkpoint-*")) == ["checkpoint-4"]
    assert_ran(run(tmp_path / "cut", "--resume", launcher=TWO))
    for rank in range(2):
        whole, cut = (json.loads((tmp_path / name / f"seen-{rank}.json").read_text()) for name in ("whole", "cut"))
        assert cut == whole[4:]  # also the epoch that was resumed in its middle
    assert_same_bits(tmp_path / "whole" / "final-0.safetensors", tmp_path / "cut" / "final-0.safetensors")


@pytest.mark.slow
def test_every_process_has_its_own_memory_and_gets_it_back(tmp_path):
    side = ["--side", '{"cell": "v1"}', "--save-steps", "2"]  # step 2 is in the middle of an epoch of three
    assert_ran(run(tmp_path / "whole", *side, launcher=TWO))
    assert run(tmp_path / "cut", *side, "--kill-at", "3", launcher=TWO).returncode != 0
    carried = [load_file(tmp_path / "cut" / "checkpoint-2" / f"carried-{rank}.safetensors") for rank in range(2)]
    assert carried[0].keys() == carried[1].keys() != set()
    for name in carried[0]:
        assert carried[0][name].shape == carried[1][name].shape
        assert not torch.equal(carried[0][name], carried[1][name])  # of the images that each process saw
    assert_ran(run(tmp_path / "cut", *side, "--resume", launcher=TWO))
    for rank in range(2):
        assert_same_bits(*(tmp_path / name / f"final-{rank}.safetensors" for name in ("whole", "cut")))


def test_two_processes_share_every_epoch_and_end_with_the_same_weights(tmp_path):
    assert_ran(run(tmp_path, launcher=TWO))
    seen = [json.loads((tmp_path / f"seen-{rank}.json").read_text()) for rank in range(2)]
    sampler = IdentitySampler([row["pid"] for row in people()], 4, 2, seed=SEED, num_processes=2)
    steps = len(sampler) // 8 // 2
    assert steps == STEPS_PER_EPOCH // 2
    for epoch in range(4):
        sampler.set_epoch(epoch)
        plan = np.array(list(sampler)).reshape(steps, 2, 8)
        for rank in range(2):
            mine = seen[rank][epoch * steps : (epoch + 1) * steps]
            assert [step for step, _ in mine] == list(range(epoch * steps, (epoch + 1) * steps))
            assert [indices for _, indices in mine] == plan[:, rank].tolist()
        drawn = plan.ravel().tolist()
        assert len(drawn) == len(set(drawn)) == 48  # every image of the set, once
    # The norms' statistics too: each process has those of its own batches in the last step, and evaluates a share.
    assert_same_bits(*(tmp_path / f"final-{rank}.safetensors" for rank in range(2)))
