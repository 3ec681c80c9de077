"""Loading a data set by name."""

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reid_hub.data.datasets import DATASETS, check_options
from reid_hub.data.hub_set import load_from_hub
from reid_hub.data.records import DISTRACTOR, JUNK, Counts, DatasetSpec, Record, Scan
from reid_hub.errors import ReIDError
from reid_hub.registry import lookup

if TYPE_CHECKING:
    import datasets


def load_reid_dataset(
    name: str,
    data_dir: str | Path | None = None,
    *,
    streaming: bool = False,
    cache_dir: str | Path | None = None,
    **options: Any,
) -> "datasets.DatasetDict | datasets.IterableDatasetDict":
    """Load a data set with its splits train, query and gallery, as far as it has them.

    Columns: image (`datasets.Image`), pid and camid (int64), path (str, below the data set's root). Training pids are
    0..C-1; query and gallery keep the pids of the data set. Junk (pid -1) is never scored and is removed from query
    and gallery; distractors (pid 0) stay in the gallery. Cameras count from 0; -1 means unknown. A classification data
    set has the splits train and test with the columns image and label instead. The rows are cached as Arrow and rebuilt
    when a file changes.

    Args:
        name: a key of `DATASETS`, or "namespace/name" of a data set on the Hub: one pushed with `push_reid_dataset`, or
            any image classification data set.
        data_dir: folder of the unpacked data set; see `DATASETS[name].layout`.
        streaming: read while iterating instead of building the cache.
        cache_dir: cache folder (default: that of `datasets`).
        options: options of the data set, see `DATASETS[name].options`; on the Hub `revision`, `token`, and `label`, the
            class column where there are several.

    Raises:
        FileNotFoundError: if `data_dir` does not have the layout, or there is no such data set on the Hub.
        ValueError: for an unknown name or option, or files that violate the rules of the data set.
    """
    if "/" in name:  # only names of Hub data sets contain a slash
        return load_from_hub(name, data_dir, streaming=streaming, cache_dir=cache_dir, **options)
    spec = lookup(DATASETS, name, "data set")
    check_options(name, options, spec.options)
    if data_dir is None and spec.layout:
        raise ReIDError(f"the data set {name!r} needs data_dir, with this layout: {spec.layout}. See {spec.homepage}")
    scan = spec.scan(data_dir, **options)
    _check_training_ids(spec, scan)
    if spec.notice:
        warnings.warn(spec.notice, UserWarning, stacklevel=2)
    mismatch = count_mismatch(spec, scan, options)
    if mismatch:
        warnings.warn(mismatch, UserWarning, stacklevel=2)

    from reid_hub.data.builder import build  # imports `datasets`

    return build(spec, scan, {**spec.options, **options}, cache_dir, streaming)


def count_mismatch(spec: DatasetSpec, scan: Scan, options: dict[str, Any]) -> str | None:
    """Describe where the counts differ from the official ones; None if all agree."""
    differences = []
    for split, official in spec.official_counts(options).items():
        # Compare and report only published numbers.
        found = Counts(*(None if n is None else m for n, m in zip(official, count(scan, split), strict=True)))
        if found != official:
            who = "identities" if scan.classes is None else "classes"
            differences.append(f"{split} has {_size(found, who)} instead of {_size(official, who)}")
    if not differences:
        return None
    return (
        f"{spec.title} in {scan.root} is not the official data set: {'; '.join(differences)}. "
        "Figures measured on it cannot be compared with published ones."
    )


def _size(counts: Counts, who: str) -> str:
    parts = [f"{n:,} {what}" for n, what in zip(counts, ("images", who), strict=True) if n is not None]
    return " of ".join(parts)


def count(scan: Scan, split: str) -> Counts:
    """Number of images in the folder of a split, and of identities, not counting junk and distractors."""
    pids = {record.pid for record in scan.splits.get(split, ())} - {JUNK}
    if split == "gallery" and DISTRACTOR not in _pids(scan.splits.get("query", ())):
        pids -= {DISTRACTOR}
    return Counts(len(scan.splits.get(split, ())), len(pids))


def _pids(records: Iterable[Record]) -> set[int]:
    return {record.pid for record in records}


def _check_training_ids(spec: DatasetSpec, scan: Scan) -> None:
    if len(_pids(scan.splits.get("train", ())) - {JUNK}) == 1:
        who = "identity" if scan.classes is None else "class"
        raise ReIDError(
            f"{spec.title} in {scan.root} has one training {who}; training needs at least two: add images of another"
        )
