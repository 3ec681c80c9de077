"""Training a compressed embedding: what lies behind the short vector, and exists in training only."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from reid_hub.errors import ReIDError
from reid_hub.losses import METRIC_LOSSES, identity_loss
from reid_hub.methods.base import RunContext
from reid_hub.methods.compression.models import footnote_map, principal_directions
from reid_hub.methods.state import read_state
from reid_hub.methods.supervised import SupervisedMethod, build_classifier
from reid_hub.models import ReIDModel, ReIDOutput
from reid_hub.models.neck import BNNeck
from reid_hub.registry import lookup

STARTS = ("random", "slice", "pca")


class CompressionMethod(SupervisedMethod):
    """Embedding Compression (arXiv:2405.14730): the short vector z, quantised if the model says so, meets the losses.

    The metric loss compares z; the classifier reads BNNeck(z), and of a low-rank model BNNeck(B z) with an expansion B
    back to the full length, (D, k) without bias. Norm, expansion and classifier stay behind when the model is exported.

    Args:
        model: a model with a compressed embedding, trained in place.
        prefixes: further lengths of a sliced embedding that get a norm, a classifier and losses of their own, the mean
            over all lengths is the loss: Matryoshka representation learning (arXiv:2205.13147), a control.
        options: of `SupervisedMethod`.

    Raises:
        ReIDError: for a model that is not compressed, or prefixes that do not fit.
    """

    citation = """@article{mcdermott2024embedding,
  title   = {Embedding Compression for Efficient Re-Identification},
  author  = {McDermott, Luke},
  journal = {arXiv:2405.14730}, year = {2024}
}"""

    def __init__(self, model: ReIDModel, num_ids: int, *, prefixes: Sequence[int] = (), **options: Any):
        if model.config.codes is None:
            raise ReIDError(
                "the model's embedding is not compressed: use `reid-hub compress`, or compress_model(model, 'slice', "
                "64)"
            )
        super().__init__(model, num_ids, **options)
        dim, self.expand = model.embedding_dim, nn.Identity()
        bias = self.classifier.bias is not None
        if model.config.codes["name"] == "low_rank":
            dim = model.compression.in_features
            self.expand = nn.Linear(model.embedding_dim, dim, bias=False)
            nn.init.trunc_normal_(self.expand.weight, std=0.02)
            self.classifier = build_classifier(dim, num_ids, bias=bias)
        self.norm = BNNeck(dim)
        self.prefixes = tuple(prefixes)
        if self.prefixes and (
            model.config.codes["name"] != "slice" or not all(1 <= size < dim for size in self.prefixes)
        ):
            raise ReIDError(
                f"prefixes are shorter lengths of a sliced embedding, from 1 to {dim - 1}; got {list(prefixes)} of a "
                f"{model.config.codes['name']!r} one of {dim}"
            )
        self.prefix_norms = nn.ModuleList(BNNeck(size) for size in self.prefixes)
        self.prefix_classifiers = nn.ModuleList(build_classifier(size, num_ids, bias=bias) for size in self.prefixes)

    @classmethod
    def from_run(cls, run: RunContext) -> Self:
        """Build the method for a run whose model is compressed, or is compressed here; see `Method.from_run`.

        Parts, for a model that is compressed here: "compress", which makes the compressed model of the run's, (model,
        embeddings) -> model, where `embeddings()` gives those of the training images, (N, D); "start" of a low-rank
        map, see `start_map`, by default "pca". Norm and classifier then start from those of the run's source, see
        `start_classifier`, unless the map is random.
        """
        base, compress, start = run.model, run.parts.get("compress"), run.parts.get("start", "pca")
        if compress is None:
            return super().from_run(run)
        embeddings = partial(run.embed, base)
        method = cls(compress(base, embeddings), run.num_ids, **run.options)
        is_low_rank = method.model.config.codes["name"] == "low_rank"
        if is_low_rank:
            method.start_map(start, embeddings() if start == "pca" else None)
        if not is_low_rank or start != "random":
            method.start_classifier(_source_state(run), base)
        return method

    def logits(self, embeddings: Tensor) -> list[Tensor]:
        return [self.classifier(self.norm(self.expand(embeddings)))]

    def losses(self, output: ReIDOutput, pids: Tensor) -> dict[str, Tensor]:
        parts = super().losses(output, pids)
        if not self.prefixes:
            return parts
        losses = [parts["loss"]]
        for size, norm, classifier in zip(self.prefixes, self.prefix_norms, self.prefix_classifiers, strict=True):
            prefix = output.embeddings[:, :size]
            loss = identity_loss(classifier(norm(prefix)), pids, self.label_smoothing)
            if self.metric is not None:
                loss = loss + METRIC_LOSSES[self.metric](prefix, pids, **self.metric_options)
            losses.append(loss)
        return {**parts, "loss": torch.stack(losses).mean()}

    @torch.no_grad()
    def start_map(self, start: str, embeddings: Tensor | None = None) -> None:
        """Choose where the two maps of a low-rank model start: A (k, D) and B (D, k).

        Args:
            start: "random" (the published one), "slice" (the paper's footnote: the first coordinates), or "pca": A the
                principal directions of the model's embeddings (N, D) before compression, B its transpose, so that a
                trained model starts from the best linear map instead of from noise.
        """
        lookup(dict.fromkeys(STARTS), start, "start of a low-rank map")
        if start == "random":
            return
        dim, full = self.model.compression.weight.shape
        directions = footnote_map(full, dim) if start == "slice" else principal_directions(embeddings, dim)
        self.model.compression.weight.copy_(directions)
        self.expand.weight.copy_(self.model.compression.weight.T)

    @torch.no_grad()
    def start_classifier(self, source: dict[str, Tensor], base: ReIDModel) -> list[str]:
        """Start norm and classifier from those of the base model, on the coordinates that are left.

        Returns the names of what was used.

        Right after this the logits are those of the base with the lost coordinates zeroed: a base that retrieves by its
        features gives its neck, and behind a neck the norm starts as the identity, whose statistics the neck knows.

        Args:
            source: `training_state` of the run that trained the base: its "classifier.weight", and for a base that was
                compressed itself its "norm.*".
        """
        kept = kept_coordinates(self.model, base).to(self.norm.weight.device)
        state = _norm_state(base, source)
        self.norm.load_state_dict({k: (v if v.ndim == 0 else v[kept]) for k, v in state.items()})
        used = ["norm"]
        weight = source.get("classifier.weight")
        if weight is not None and weight.shape == (len(self.classifier.weight), base.embedding_dim):
            self.classifier.weight.copy_(weight[:, kept])
            used.append("classifier.weight")
            if self.classifier.bias is not None and "classifier.bias" in source:
                self.classifier.bias.copy_(source["classifier.bias"])
        return used


def kept_coordinates(model: ReIDModel, base: ReIDModel) -> Tensor:
    """Which of a base model's coordinates the norm of a compressed one sees, ascending (k,); all for low rank."""
    if model.config.codes["name"] == "low_rank":
        return torch.arange(base.embedding_dim)
    if model.config.codes["name"] == "slice":
        return torch.arange(model.embedding_dim)
    kept = model.compression.kept.cpu()
    if (base.config.codes or {}).get("name") == "pruned":
        return torch.isin(base.compression.kept.cpu(), kept).nonzero()[:, 0]
    return kept


def _source_state(run: RunContext) -> dict[str, Tensor]:
    """Classifier and norm of the training that made the run's model, if they are there and of the same identities."""
    if run.source is None:
        return {}
    try:
        return read_state(run.source, run.subset.identities)
    except ReIDError as error:
        run.log(f"the classifier starts from random weights: {error}")
        return {}


def _norm_state(base: ReIDModel, source: dict[str, Tensor]) -> dict[str, Tensor]:
    if "norm.weight" in source:
        return {name.removeprefix("norm."): tensor for name, tensor in source.items() if name.startswith("norm.")}
    state = BNNeck(base.embedding_dim).state_dict()
    if not isinstance(base.neck, BNNeck):
        return state
    if base.config.retrieve == "features":
        return base.neck.state_dict()
    # What leaves a BNNeck has the mean 0 and the variance weight^2, and is to pass unchanged.
    return {**state, "weight": base.neck.weight.abs(), "running_var": base.neck.weight.square()}
