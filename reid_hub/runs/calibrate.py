"""A model's decision: the distance up to which two pictures count as one person, from labelled pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reid_hub.evaluation import Results, embed
from reid_hub.evaluation.calibration import Decision, calibrate
from reid_hub.index import GalleryIndex
from reid_hub.models import ReIDModel


def calibrate_model(
    model: ReIDModel,
    splits: Mapping[str, Any],
    *,
    dataset_name: str,
    false_match_rate: float = 1e-3,
    flip: bool = True,
    batch_size: int = 64,
    folder: str | Path | None = None,
) -> Decision:
    """Find the threshold on query and gallery, as the model stores vectors (int8 if it was quantised), and keep it.

    Args:
        splits: query and gallery of people whom the model was not trained on; those of another site will differ.
        folder: the model is saved there with the decision in its configuration; its results.json stays.

    Raises:
        ValueError: if a split is missing, or there are too few pairs for the wanted rate, see `calibrate`.
    """
    missing = {"query", "gallery"} - set(splits)
    if missing:
        raise ValueError(f"calibrating needs query and gallery; {dataset_name} lacks {', '.join(sorted(missing))}")
    query, gallery = (embed(model, splits[part], batch_size=batch_size, flip=flip) for part in ("query", "gallery"))
    pairs = zip(query, gallery, strict=True)  # embeddings, pids, camids
    decision = calibrate(
        *(part for pair in pairs for part in pair),
        false_match_rate=false_match_rate,
        dataset=dataset_name,
        precision=model.config.quantization or "float32",
        flip=flip,
        progress=True,
    )
    if folder is not None:
        model.config.decision = decision.to_dict()
        results = Path(folder) / "results.json"
        model.save_pretrained(folder, results=Results.read(results).to_dict() if results.is_file() else None)
    return decision


def decision_of(model: ReIDModel, index: GalleryIndex, flip: bool) -> tuple[Decision | None, str]:
    """The decision that fits the distances of an index, or None, and why a model's own does not fit.

    Args:
        index: whose distances they are; Hamming distances have no threshold of cosines.
        flip: whether the vectors are averaged with those of the mirror images.
    """
    if model.config.decision is None:
        return None, ""
    decision = Decision.from_dict(model.config.decision)
    if index.codec.name == "binary" and index.rescore is None:
        return None, "the model's threshold is none of Hamming distances: build the index with a codec like binary+int8"
    if decision.flip != flip:
        found = "with" if decision.flip else "without"
        return None, f"the model's threshold was found {found} --flip: search likewise, or calibrate again"
    return decision, ""
