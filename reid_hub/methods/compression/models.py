"""Models with a shorter embedding: layers to be trained, and layers that are fitted instead."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from reid_hub.errors import ReIDError
from reid_hub.models import ReIDConfig, ReIDModel
from reid_hub.models.reductions import REDUCTIONS
from reid_hub.registry import lookup

LADDER = (576, 480, 384, 192, 64, 32)  # of an embedding of 768 (arXiv:2405.14730)
CRITERIA = ("norm", "variance")


def ladder(dim: int) -> list[int]:
    """The published sizes in proportion to an embedding of `dim`: 768 gives 576, 480, 384, 192, 64, 32."""
    sizes = {max(1, round(dim * size / 768)) for size in LADDER}
    return sorted((size for size in sizes if size < dim), reverse=True)


def compressed_config(
    config: ReIDConfig, compression: str, dim: int, quantization: str | None = None, granularity: str = "tensor"
) -> ReIDConfig:
    """The configuration of a model with a compressed embedding.

    A model that retrieves by its features loses its neck (training adds one behind the compression, as published); of
    one that retrieves behind its neck, what leaves the neck is compressed.
    """
    fields = copy.deepcopy(config).to_dict()
    codes = {"name": compression, "dim": dim, "quantization": quantization, "granularity": granularity}
    fields |= {"codes": codes, "decision": None}  # a decision is a threshold of other distances
    if config.retrieve == "features":
        fields["neck"] = "none"
    return ReIDConfig.from_dict(fields)


def compress_model(
    model: ReIDModel, compression: str, dim: int, *, quantization: str | None = None, granularity: str = "tensor"
) -> ReIDModel:
    """A copy of a model with a head that shortens its embedding; a new head, not trained yet.

    Raises:
        ReIDError: for an unknown head, a dimension out of range, or a model that is compressed already.
    """
    lookup(REDUCTIONS, compression, "compression")
    if (codes := model.config.codes) is not None:
        raise ReIDError(
            f"the model is compressed already ({codes['name']}, {codes['dim']}): narrow it, "
            "or start from the model that it was made of"
        )
    config = compressed_config(model.config, compression, dim, quantization, granularity)
    student = ReIDModel(config).to(model.device, model.dtype)
    state = student.state_dict()
    student.load_state_dict({**state, **{k: v for k, v in model.state_dict().items() if k in state}})
    student.config.name_or_path = model.config.name_or_path
    return student.train(model.training)


def narrow(model: ReIDModel, kept: Tensor) -> ReIDModel:
    """A copy of a sliced or pruned model with these of its coordinates, ascending; a slice keeps the first ones.

    Raises:
        ReIDError: for another head, or a slice of other coordinates than the first.
    """
    kind = (model.config.codes or {}).get("name")
    if kind not in ("slice", "pruned"):
        raise ReIDError(f"only sliced and pruned embeddings can be narrowed, not {kind or 'an uncompressed one'}")
    kept = kept.sort().values.to(model.device)
    if kind == "slice" and not torch.equal(kept, torch.arange(len(kept), device=kept.device)):
        raise ReIDError("a slice keeps the first coordinates: compress with 'pruned' to keep others")
    config = copy.deepcopy(model.config)
    config.codes, config.decision = {**config.codes, "dim": len(kept)}, None
    student, state = ReIDModel(config).to(model.device, model.dtype), dict(model.state_dict())
    for name in ("compression.kept", "quantizer.center", "quantizer.peak"):
        if name in state and state[name].ndim:
            state[name] = state[name][kept]
    student.load_state_dict(state)
    return student.train(model.training)


def importance(embeddings: Tensor, criterion: str = "norm") -> Tensor:
    """How much each coordinate matters over a training set, (N, D) -> (D,) float64.

    "norm" is the published one, the length of the coordinate's column, neither centred nor normalised; "variance" the
    control, which does not keep a coordinate that is large and constant.
    """
    lookup(dict.fromkeys(CRITERIA), criterion, "importance criterion")
    embeddings = embeddings.double()
    return embeddings.norm(dim=0) if criterion == "norm" else embeddings.var(0, unbiased=False)


def most_important(scores: Tensor, dim: int) -> Tensor:
    """The `dim` highest scores' positions, ascending; of equal ones the first.

    Raises:
        ReIDError: unless 1 <= dim <= D.
    """
    if not 1 <= dim <= len(scores):
        raise ReIDError(f"dim must be between 1 and {len(scores)}, got {dim}")
    return torch.sort(scores, descending=True, stable=True).indices[:dim].sort().values


def principal_directions(embeddings: Tensor, dim: int) -> Tensor:
    """Orthonormal rows (dim, D) that keep most of the embeddings (N, D), by their uncentred second moments.

    Uncentred, because a head has no bias: it is the linear map with the least squared error, and with all D rows
    neither distances nor cosines change.
    """
    embeddings = embeddings.double()
    directions = torch.linalg.eigh(embeddings.T @ embeddings).eigenvectors.flip(1)[:, :dim].T
    # An eigenvector's sign is arbitrary: the largest entry is positive.
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    return directions * largest.sign()


def random_directions(full: int, dim: int, seed: int = 0) -> Tensor:
    """Random orthonormal rows (dim, full), scaled so that lengths are kept on average (Johnson-Lindenstrauss)."""
    generator = torch.Generator().manual_seed(seed)
    square = torch.randn(full, dim, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(square).Q.T * (full / dim) ** 0.5


def project_model(model: ReIDModel, directions: Tensor, **quantization: str | None) -> ReIDModel:
    """A low-rank model with a given map (dim, D): what needs no training."""
    student = compress_model(model, "low_rank", len(directions), **quantization)
    with torch.no_grad():
        student.compression.weight.copy_(directions)
    return student


@torch.no_grad()
def fit_quantizer(model: ReIDModel, embeddings: Tensor) -> None:
    """Set the scale (and the centre of binary codes) from embeddings of the uncompressed model, (N, D).

    Quantisation after training; with "low_rank", for its map as it is.
    """
    model.quantizer.fit(model.compression(embeddings.to(model.device, model.dtype)).float())


def footnote_map(full: int, dim: int) -> Tensor:
    """The map that keeps the first `dim` coordinates, (dim, full): slicing as low rank (the paper's footnote)."""
    return F.pad(torch.eye(dim), (0, full - dim))
