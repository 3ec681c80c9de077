"""Training a student to say what the teachers of all views say."""

from typing import Any, Self

import torch
from torch import Tensor, nn

from reid_hub.data.batch import Batch
from reid_hub.data.views import ErasedShares
from reid_hub.errors import ReIDError
from reid_hub.losses import representation_loss
from reid_hub.methods.base import RunContext
from reid_hub.methods.compression import CompressionMethod
from reid_hub.methods.fd.branches import FeatureMapBranch, RepresentationBranch
from reid_hub.methods.fd.representations import Representations
from reid_hub.methods.supervised import SupervisedMethod
from reid_hub.models import ReIDConfig, ReIDModel

# A teacher is ignored for an image of whose view a larger share than this is erased (arXiv:1811.08073).
MAX_ERASED = 0.4


class FDMethod(SupervisedMethod):
    """Factorized Distillation (arXiv:1811.08073): a student of the whole image learns from teachers of its parts.

    L = L_cls + alpha / K * sum of L_attr + beta / K * sum of L_metric over the K views; each is
    `representation_loss` of a branch, L_attr's on the feature map (FMFB), L_metric's on the embedding (RFB). L_cls is
    what the supervised method minimises. The branches stay behind when the model is exported.

    Args:
        model: any model, trained in place; without a feature map (tokens), or with one smaller than its pooling
            window, it can have no FMFB (alpha=0).
        representations: of the teachers, on the images that the student is shown whole; None where alpha and beta
            are 0, the control of equal length.
        alpha, beta: weights; at 0 there are no such branches.
        width: channels of the branches.
        losses: options of `SupervisedMethod`.

    Raises:
        ReIDError: without representations to learn from, for a negative weight, a map that is too small, or a student
            that is shown the middle of an image.
    """

    citation = """@article{ren2018factorized,
  title   = {Factorized Distillation: Training Holistic Person Re-identification Model by Distilling an Ensemble of
             Partial ReID Models},
  author  = {Ren, Pengyuan and Li, Jianmin},
  journal = {arXiv:1811.08073}, year = {2018}
}"""

    def __init__(
        self,
        model: ReIDModel,
        num_ids: int,
        *,
        representations: Representations | None,
        alpha: float = 4.0,
        beta: float = 2.0,
        width: int = 512,
        **losses: Any,
    ):
        super().__init__(model, num_ids, **losses)
        if min(alpha, beta) < 0:
            raise ReIDError(f"alpha and beta must be at least 0, got {alpha} and {beta}")
        if representations is None and (alpha or beta):
            raise ReIDError(
                "there is nothing to learn from: give `representations`, which `reid-hub distill fd` makes, or alpha=0 "
                "and beta=0"
            )
        self.alpha, self.beta = alpha, beta
        self.representations = representations if alpha or beta else None
        self.fmfb, self.rfb = nn.ModuleDict(), nn.ModuleDict()
        if self.representations is None:
            return
        check_sees_all(model.config)
        self._erased = ErasedShares(representations.views, representations.paths, model.config.image_size)
        window, channels = pooling_window(model), map_channels(model) if alpha else 0
        for view, dim in zip(representations.views, representations.dims, strict=True):
            if alpha:
                self.fmfb[view.name] = FeatureMapBranch(channels, dim, width, window)
            if beta:
                self.rfb[view.name] = RepresentationBranch(model.embedding_dim, dim, view.whole, width)

    @classmethod
    def from_run(cls, run: RunContext) -> Self:
        """Build the method for a run, of a compressed model the `CompressedFDMethod`; see `Method.from_run`.

        Parts: "representations", what the teachers of all views say; none where alpha and beta are 0.

        Raises:
            ReIDError: if the teachers were trained on other identities.
        """
        representations = run.parts.get("representations")
        known, wanted = getattr(representations, "identities", None), run.subset.identities.tolist()
        if known is not None and known != wanted:
            raise ReIDError(
                f"the teachers were trained on {len(known)} identities, the student is to be on {len(wanted)} or "
                "others: train all of them with the same data, --validation, --keep-ids and --seed"
            )
        return fd_method(run.model, run.num_ids, representations=representations, **run.options).start_from(run)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        output = self.model(batch["pixel_values"])
        parts = self.losses(output, batch["pids"])
        if self.representations is None:
            return parts
        indices = batch["indices"]
        targets, kept = self.representations[indices], self._kept(batch.get("erased_boxes"), indices)
        loss = parts.pop("loss")
        # With the channels last, the pooling of seven branches takes a sixth of the time, forward and backward.
        feature_map = output.feature_map.contiguous(memory_format=torch.channels_last) if self.fmfb else None
        for name, weight, branches, seen in (
            ("attribute", self.alpha, self.fmfb, feature_map),
            ("metric", self.beta, self.rfb, output.embeddings),
        ):
            if branches:
                said = zip(branches.values(), targets, kept, strict=True)
                parts[name] = torch.stack([representation_loss(branch(seen), *right) for branch, *right in said]).mean()
                loss = loss + weight * parts[name]
        return {"loss": loss, **parts}

    def _kept(self, erased_boxes: Tensor | None, indices: Tensor) -> list[Tensor | None]:
        """1 where a view's teacher counts for an image, 0 where too much of the view is erased: K of (B,)."""
        if erased_boxes is None:
            return [None] * len(self.representations.views)
        return list((self._erased(erased_boxes, indices) <= MAX_ERASED).unbind(1))


class CompressedFDMethod(FDMethod, CompressionMethod):
    """The same for a student with a compressed embedding, whose classifier stands behind a norm of its own."""


def fd_method(model: ReIDModel, num_ids: int, **options: Any) -> FDMethod:
    """The method for a model: compressed or not."""
    make = FDMethod if model.config.codes is None else CompressedFDMethod
    return make(model, num_ids, **options)


def check_sees_all(config: ReIDConfig) -> None:
    """Refuse a student that is not shown the whole image, which its teachers' views are parts of.

    Raises:
        ReIDError: for one that is shown the middle of it.
    """
    if config.resize_shortest is not None:
        raise ReIDError(
            "the views would not be those of the student's image, of which it is shown the middle alone: its "
            f"resize_shortest must be None, got {config.resize_shortest}"
        )


def pooling_window(model: ReIDModel) -> int:
    """Rows and columns of the window over which a student's stabilised pooling averages, and that of its branches."""
    return model.config.pooling.get("window", 4)


@torch.no_grad()
def map_channels(model: ReIDModel) -> int:
    """C of a student's feature map (B, C, h, w).

    Raises:
        ReIDError: if there is none that a window of the pooling fits into.
    """
    was_training, window = model.training, pooling_window(model)
    try:
        pixels = torch.zeros(1, 3, *model.config.image_size, device=model.device, dtype=model.dtype)
        shape = model.eval()(pixels).feature_map.shape
    finally:
        model.train(was_training)
    if len(shape) != 4 or min(shape[2:]) < window:
        raise ReIDError(
            f"the attribute loss needs a feature map of at least {window}x{window}, got {tuple(shape[1:])} for images "
            f"of {'x'.join(map(str, model.config.image_size))}: use larger images, or alpha=0"
        )
    return shape[1]
