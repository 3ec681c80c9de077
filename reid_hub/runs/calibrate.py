"""Calibrate a model's decision: the distance up to which two images match, from labelled images."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reid_hub.data import load_reid_dataset
from reid_hub.errors import ReIDError
from reid_hub.evaluation import Results, embed
from reid_hub.evaluation.calibration import Decision, calibrate
from reid_hub.index import GalleryIndex
from reid_hub.models import ReIDModel
from reid_hub.runs.models import open_model
from reid_hub.runs.options import Part, Settings, option
from reid_hub.runs.settings import CheckpointArguments, DataArguments, EmbeddingArguments


@dataclass(frozen=True)
class CalibrateArguments(Part):
    """The accepted error rate, and the output folder."""

    false_match_rate: float = option(1e-3, "Target share of pairs of different people that match.")
    out: str | None = option(None, "Folder for the calibrated model (default: MODEL, if it is a folder).")


@dataclass(frozen=True)
class CalibrateSettings(Settings):
    """The settings of `reid-hub calibrate`."""

    checkpoint: CheckpointArguments = CheckpointArguments()
    data: DataArguments = DataArguments()
    embedding: EmbeddingArguments = EmbeddingArguments(flip=True)
    how: CalibrateArguments = CalibrateArguments()

    @property
    def folder(self) -> Path:
        """Folder for the calibrated model.

        Raises:
            ReIDError: if the model is a repository and no folder is given.
        """
        model = Path(self.checkpoint.model)
        if self.how.out is None and not model.is_dir():
            raise ReIDError(f"{model} is a repository of the Hub: give --out, a folder for the calibrated model")
        return Path(self.how.out or model)


def calibrate_checkpoint(settings: CalibrateSettings) -> Decision:
    """Find the threshold of a model given by name and store it with the model; see `calibrate_model`.

    Raises:
        ReIDError: see there.
    """
    folder, data = settings.folder, settings.data
    return calibrate_model(
        open_model(settings.checkpoint.model, settings.checkpoint.revision),
        load_reid_dataset(data.data, data.data_dir, **data.data_option),
        dataset_name=data.name,
        false_match_rate=settings.how.false_match_rate,
        flip=settings.embedding.flip,
        folder=folder,
    )


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
    """Find the threshold on query and gallery vectors as the model stores them (int8 if quantised), and save it.

    Args:
        splits: query and gallery of people that the model was not trained on; the threshold differs between sites.
        folder: the model is saved there with the decision in its configuration; results.json is kept.

    Raises:
        ValueError: if a split is missing, or there are too few pairs for the target rate; see `calibrate`.
    """
    missing = {"query", "gallery"} - set(splits)
    if missing:
        raise ReIDError(f"calibrating needs query and gallery; {dataset_name} lacks {', '.join(sorted(missing))}")
    query, gallery = (embed(model, splits[part], batch_size=batch_size, flip=flip) for part in ("query", "gallery"))
    pairs = zip(query, gallery, strict=True)  # embeddings, pids, camids
    decision = calibrate(
        *(part for pair in pairs for part in pair),
        false_match_rate=false_match_rate,
        dataset=dataset_name,
        precision=model.precision,
        flip=flip,
        progress=True,
    )
    if folder is not None:
        model.config.decision = decision.to_dict()
        results = Path(folder) / "results.json"
        model.save_pretrained(folder, results=Results.read(results).to_dict() if results.is_file() else None)
    return decision


def decision_of(model: ReIDModel, index: GalleryIndex, flip: bool) -> tuple[Decision | None, str]:
    """Return the decision valid for the distances of an index, or None, and why the model's decision is not valid.

    Args:
        index: the index that computes the distances; a cosine threshold does not apply to Hamming distances.
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
