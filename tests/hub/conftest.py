"""A small checkpoint to publish, made once."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from reid_hub import ReIDConfig, ReIDModel


def small_model(seed: int) -> ReIDModel:
    """An untrained model of 374 thousand parameters for images of 64x32."""
    torch.manual_seed(seed)
    return ReIDModel(ReIDConfig.from_variant("res50-s1", image_size=[64, 32])).eval()


@pytest.fixture(scope="session")
def saved_checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "checkpoint"
    small_model(seed=0).save_pretrained(folder)
    return folder


@pytest.fixture
def checkpoint(saved_checkpoint, tmp_path) -> Path:
    """A checkpoint folder that a test may spoil."""
    return shutil.copytree(saved_checkpoint, tmp_path / "checkpoint")


@pytest.fixture
def log_in(monkeypatch) -> Callable:
    """`log_in(url, token)`: what HF_ENDPOINT and HF_TOKEN would have set when the client was imported."""

    def set_up(url: str, token: str | None = "hf_alice") -> None:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        if token is not None:
            monkeypatch.setenv("HF_TOKEN", token)

    return set_up
