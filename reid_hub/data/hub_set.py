"""Data sets on the Hub: push all splits with a card, and load them again."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reid_hub.data.datasets import DATASETS, check_options
from reid_hub.errors import MissingError, ReIDError

if TYPE_CHECKING:
    import datasets

SPLITS = ("train", "query", "gallery", "test")
REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")


def push_reid_dataset(splits: "Mapping[str, datasets.Dataset]", repo_id: str, *, private: bool = True) -> str:
    """Push all splits to a data set repository, with a card that states the licence; returns the repository's URL.

    The image files are uploaded. Existing splits of the repository that are not in `splits` are removed.

    Raises:
        ValueError: if the terms of the data set forbid publishing it, or `private` is set and the repository is public.
    """
    import datasets
    from huggingface_hub import HfApi

    pushed = datasets.DatasetDict(splits)
    _check_columns(pushed, "the splits")
    info = next(iter(pushed.values())).info
    spec = DATASETS.get(info.dataset_name or "")
    if not private and spec is not None and not spec.redistributable:
        raise ReIDError(f"{spec.title} must not be published (terms: {spec.licence}); push it with private=True")
    api = HfApi()
    url = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
    if private and not api.repo_info(url.repo_id, repo_type="dataset").private:
        raise ReIDError(f"{url.repo_id} exists and is public: make it private first, or push with private=False")
    # Push the card first, so that the images are never online without their terms; the library then adds the list
    # of splits to it.
    card = _card(pushed, info, url.repo_id).encode()
    api.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id=url.repo_id, repo_type="dataset")
    pushed.push_to_hub(url.repo_id, private=private)
    return str(url)


def load_from_hub(
    name: str,
    data_dir: str | Path | None,
    *,
    streaming: bool,
    cache_dir: str | Path | None,
    **options: Any,
) -> "datasets.DatasetDict | datasets.IterableDatasetDict":
    """Load a data set of `push_reid_dataset` or a classification data set; see `load_reid_dataset`."""
    import datasets
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import HfHubHTTPError

    from reid_hub.data.hub_classes import as_classes

    if Path(name).exists() or not REPO_ID.fullmatch(name):
        raise ReIDError(
            f"the name of a data set must be one of {', '.join(sorted(DATASETS))}, or namespace/name on the Hub; got "
            f"{name!r}. Pass a folder as data_dir, e.g. load_reid_dataset('image_folder', {name!r})"
        )
    if data_dir is not None:
        raise ReIDError(f"{name!r} is a data set on the Hub, which takes no data_dir; got {str(data_dir)!r}")
    check_options(name, options, ("label", "revision", "token"))
    label = options.pop("label", None)
    try:
        splits = datasets.load_dataset(
            name, streaming=streaming, cache_dir=None if cache_dir is None else str(cache_dir), **options
        )
    except (DatasetNotFoundError, HfHubHTTPError) as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code not in (401, 403, 404):
            raise
        raise MissingError(
            f"there is no data set {name!r} on the Hub that you may read; check the name, the revision and your token "
            f"(log in with hf auth login, or pass token=). The Hub said: {error}"
        ) from error
    classes = as_classes(splits, name, label)
    if classes is not None:
        return classes
    _check_columns(splits, name)
    return splits


def _check_columns(splits: "Mapping[str, Any]", name: str) -> None:
    """Check that every split has the columns of a re-identification or classification data set."""
    from reid_hub.data.builder import REID_FEATURES

    for split, dataset in splits.items():
        if split not in SPLITS:
            raise ReIDError(f"{name} has a split {split!r}; a re-identification data set has {', '.join(SPLITS)}")
        features = dict(dataset.features or {})
        if set(features) == {"image", "label"}:
            continue
        wrong = [column for column, feature in REID_FEATURES.items() if features.get(column) != feature]
        if wrong:
            raise ReIDError(
                f"{name}, split {split}: the columns must be {dict(REID_FEATURES)}, got {features}; rename or cast "
                f"{', '.join(wrong)} and push again with push_reid_dataset"
            )


def _card(splits: "datasets.DatasetDict", info: "datasets.DatasetInfo", repo_id: str) -> str:
    rows = "\n".join(f"| {split} | {len(dataset):,} |" for split, dataset in splits.items())
    citation = f"\n## Citation\n\n```bibtex\n{info.citation.strip()}\n```\n" if info.citation else ""
    homepage = f"\nHome page: {info.homepage}\n" if info.homepage else ""
    licence = info.license or "not stated"
    known = "apache-2.0" if licence == "Apache-2.0" else "other"
    name = f"\nlicense_name: {_slug(licence)}" if known == "other" else ""
    return f"""---
license: {known}{name}
task_categories:
- image-feature-extraction
tags:
- person-re-identification
---

# {info.dataset_name or "Person re-identification data"}

{info.description}
{homepage}
## Licence and terms

{licence}

The images show people. Whoever loads them is bound by these terms, and by the law on personal data.

| split | images |
|---|---|
{rows}

```python
from reid_hub import load_reid_dataset

splits = load_reid_dataset("{repo_id}")
```
{citation}"""


def _slug(text: str) -> str:
    words = "".join(c if c.isalnum() else " " for c in text.lower()).split()
    return "-".join(words)[:60]
