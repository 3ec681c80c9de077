"""What OSKT is compared with, from the same teacher: weight selection, DepGraph with sparsity learning, KD++."""

from pathlib import Path
from typing import Any

import torch

from reid_hub.evaluation import RetrievalEvaluation, embed
from reid_hub.logging import get_logger
from reid_hub.methods import KDPPMethod, SupervisedMethod
from reid_hub.methods.baselines import SparsityLearning, class_means, prune_to, select_weights
from reid_hub.models import ReIDConfig, ReIDModel
from reid_hub.models.width_scale import student_of
from reid_hub.registry import lookup
from reid_hub.runs.models import open_model
from reid_hub.runs.provenance import note_teachers
from reid_hub.runs.train import TrainSettings, start_heads, train
from reid_hub.training import RECIPES, TrainingSubset, override, read_heads

logger = get_logger(__name__)

SHRINKERS = ("wtsel", "depgraph")


def shrink(teacher: str | Path, student: int | str | ReIDConfig, by: str, **options: Any) -> ReIDModel:
    """A student cut out of a teacher, to be trained further.

    Args:
        teacher: folder or repository.
        student: width, variant or configuration, as for `WeightChain.expand`.
        by: "wtsel" (weight selection) or "depgraph" (pruning by magnitude; best after `train_sparse`).
        options: of `select_weights` or `prune_to`.

    Raises:
        ValueError: for another architecture or a wider student.
        ImportError: "depgraph" without the torch-pruning library.
    """
    lookup(dict.fromkeys(SHRINKERS), by, "way to shrink")
    model = open_model(teacher)
    config = student_of(model.config, student)
    if by == "wtsel":
        return select_weights(model, config, **options)
    try:
        classifier = read_heads(teacher).get("classifier.weight")
    except FileNotFoundError:
        classifier = None  # one that was pulled from the Hub; its columns then do not count
    if len(model.part_dims) > 1:
        classifier = None  # behind several vectors the library cannot trace
    return prune_to(model, config, classifier=classifier, **options)


def train_sparse(settings: TrainSettings, *, reg: float = 1e-4, alpha: float = 16.0) -> RetrievalEvaluation | None:
    """Go on training a model so that its unimportant channels fade, see `SparsityLearning`; its classifier goes on too.

    Raises:
        ValueError, FileNotFoundError: see `train`.
    """
    recipe = override(lookup(RECIPES, settings.recipe, "recipe"), settings.changes)

    def make_method(model: ReIDModel, subset: TrainingSubset) -> SupervisedMethod:
        num_ids = int(subset.pids.max()) + 1
        method = SupervisedMethod(model, num_ids, **recipe.options)
        start_heads(method, settings.model, subset)
        return method

    def callbacks(method: SupervisedMethod) -> list[SparsityLearning]:
        single = method.classifier if len(method.model.part_dims) == 1 else None
        return [SparsityLearning(method.model, single, reg=reg, alpha=alpha)]

    return train(settings, make_method=make_method, make_callbacks=callbacks)


def train_kdpp(settings: TrainSettings, teacher: str | Path, **options: Any) -> RetrievalEvaluation | None:
    """Train a student beside a frozen teacher of the same identities, by KD++.

    Args:
        teacher: a training run's folder; without its classifier (a model from the Hub) only features are distilled.
        options: of `KDPPMethod`.

    Raises:
        ValueError: if the teacher was trained on other identities; see also `train`.
    """
    recipe = override(lookup(RECIPES, settings.recipe, "recipe"), settings.changes)
    model = open_model(teacher)

    def make_method(student: ReIDModel, subset: TrainingSubset) -> KDPPMethod:
        num_ids = int(subset.pids.max()) + 1
        try:
            classifier = read_heads(teacher, subset.identities).get("classifier.weight")
        except FileNotFoundError:
            classifier = None
        if classifier is None:
            logger.warning(f"{teacher} has no single classifier beside it: only its features are distilled")
        # By the test transform, in front of the neck: behind it means are near zero and their directions noise.
        features = embed(model, subset.dataset.dataset.select(subset.rows), retrieve="features").embeddings
        means = class_means(torch.as_tensor(features), torch.as_tensor(subset.pids), num_ids)
        note_teachers(student.config, {teacher: model.config})
        parts = {"teacher": model, "teacher_classifier": classifier, "class_means": means}
        return KDPPMethod(student, num_ids, **parts, **recipe.options, **options)

    return train(settings, make_method=make_method)
