"""The data set `synthetic`: people drawn by this package, so that everything runs without a download."""

import inspect
from functools import partial
from pathlib import Path

from reid_hub.data import synthetic
from reid_hub.data.records import DatasetSpec, Scan
from reid_hub.errors import ReIDError


def scan(data_dir: None, **options) -> Scan:
    if data_dir is not None:
        raise ReIDError(f"the data set 'synthetic' is drawn and takes no data_dir; got {str(data_dir)!r}: leave it out")
    folder = Path(synthetic.__file__).parent
    # A change of the drawing program must not find the old images in the cache.
    return Scan(folder, sources=sorted(folder.glob("*.py")), draw=partial(synthetic.synthetic_splits, **options))


scan.__signature__ = inspect.signature(synthetic.synthetic_splits)  # type: ignore[attr-defined]

SPEC = DatasetSpec(
    name="synthetic",
    title="Synthetic people",
    homepage="",
    licence="Apache-2.0",
    citation="",
    layout="",
    scan=scan,
    notes="Drawn by reid_hub from a seed. Figures on it say that a pipeline works, nothing about real people.",
    redistributable=True,
)
