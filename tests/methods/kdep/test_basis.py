"""Moments in one pass against two passes; a basis made by killed and by several processes; what is refused."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from reid_hub.methods.kdep import Basis, Moments, fit_basis

from .small import COUNT, crops, model

ROOT = Path(__file__).parents[3]
SCRIPT = [sys.executable, "-m", "tests.methods.kdep.small"]


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*SCRIPT, str(folder), *arguments], cwd=ROOT, env=environment, **pipes)


def finish(process: subprocess.Popen) -> int:
    """Rows that a process asked its teacher about."""
    said, error = process.communicate(timeout=120)
    assert process.returncode == 0, error[-3000:]
    return int(said.split()[-1])


@pytest.mark.parametrize("chunks", [[40], [1, 39], [7, 7, 7, 19], [3, 30, 7]])
def test_moments_in_one_pass_equal_two_passes(chunks):
    x = torch.randn(40, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1e6
    whole, parts = Moments(5), [Moments(5) for _ in chunks]
    for part, rows in zip(parts, x.split(chunks), strict=True):
        whole.add(rows)
        part.add(rows)
    merged = Moments(5)
    for part in parts:
        merged.merge(part)
    centred = x.numpy() - x.numpy().mean(0)
    for moments in (whole, merged, Moments.of(x.split(chunks), 5)):
        assert moments.count == 40
        assert np.allclose(moments.mean, x.numpy().mean(0), rtol=1e-14)
        # A sum of squares less N mu^2 would be wrong by about 1e12 * 1e-16 * 40 here.
        assert np.allclose(moments.scatter, centred.T @ centred, atol=1e-6)


def test_the_basis_is_that_of_the_augmented_crops(tmp_path):
    source = crops(tmp_path)
    basis = fit_basis(
        tmp_path / "basis.safetensors", source, {"data": "dots"}, block_size=16, batch_size=7, progress=False
    )
    seen = torch.cat([source.represent([row]) for row in range(COUNT)]).double()  # one by one: a crop is its picture's
    _, s, vt = torch.linalg.svd(seen - seen.mean(0), full_matrices=False)
    assert torch.allclose(basis.singular_values, s, rtol=1e-5)
    assert torch.allclose((basis.vectors.T @ vt.T).abs(), torch.eye(8, dtype=torch.float64), atol=1e-3)
    assert torch.allclose(basis.mean, seen.mean(0), rtol=1e-6)
    again = Basis.load(tmp_path / "basis.safetensors", source.teacher.fingerprint())
    assert torch.equal(again.vectors, basis.vectors)
    assert again.count == COUNT
    assert again.about["data"] == "dots"
    assert again.about["augmentation"]["pad"] == 2
    assert again.about["teacher"] == source.teacher.model.fingerprint()
    assert sorted(load_file(tmp_path / "basis.safetensors")) == ["N", "S", "V", "mu"]
    assert [path.name for path in tmp_path.glob(".basis*") if path.is_dir()] == []


def test_a_killed_run_goes_on_and_two_processes_make_the_same_bits(tmp_path):
    for name in ("whole", "killed", "two"):
        crops(tmp_path / name)  # decodes, so that what follows is the basis alone
        os.utime(tmp_path / name)
    whole = tmp_path / "whole" / "basis.safetensors"
    assert finish(start(tmp_path / "whole")) == COUNT
    killed = start(tmp_path / "killed", "--kill-at", "25")
    killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "basis.safetensors").exists()
    assert finish(start(tmp_path / "killed")) == COUNT - 20  # two blocks of ten were complete
    pair = [start(tmp_path / "two") for _ in range(2)]
    assert sum(map(finish, pair)) == COUNT
    for other in ("killed", "two"):
        found = load_file(tmp_path / other / "basis.safetensors")
        for name, tensor in load_file(whole).items():
            assert torch.equal(tensor, found[name]), (other, name)


def test_what_does_not_belong_together_is_refused(tmp_path):
    few = crops(tmp_path, count=8)
    with pytest.raises(ValueError, match=r"basis of 8 dimensions needs more features than that.*got 8"):
        fit_basis(tmp_path / "few.safetensors", few, progress=False)
    assert not (tmp_path / "few.safetensors").exists()
    file = tmp_path / "basis.safetensors"
    fit_basis(file, crops(tmp_path), progress=False)
    other = crops(tmp_path, model(6, 8, seed=1))
    with pytest.raises(ValueError, match=r"basis of another teacher.*teacher was"):
        fit_basis(file, other, progress=False)
    with pytest.raises(ValueError, match=r"another tap of it: relu was False and is True"):
        fit_basis(file, crops(tmp_path, relu=True), progress=False)
    with pytest.raises(FileNotFoundError, match="no basis"):
        Basis.load(tmp_path / "none.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged or no basis"):
        fit_basis(file, crops(tmp_path), progress=False)


def test_broken_teachers_are_named(tmp_path):
    broken = model(6, 8)
    torch.nn.init.constant_(next(broken.backbone.parameters()), float("nan"))
    with pytest.raises(ValueError, match="gives NaN or Inf"):
        fit_basis(tmp_path / "basis.safetensors", crops(tmp_path, broken), progress=False)
