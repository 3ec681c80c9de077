"""What OSKT is compared with: students by weight selection and by DepGraph, from the same teacher."""

from typing import Any

from reid_hub.jobs.train import TrainSettings
from reid_hub.models import ReIDConfig, ReIDModel


def shrink(teacher: ReIDModel, student: str | ReIDConfig, by: str, **options: Any) -> ReIDModel:
    raise NotImplementedError


def train_sparse(settings: TrainSettings) -> None:
    raise NotImplementedError
