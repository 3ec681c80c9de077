"""Classification data sets on the Hub, with any names of columns and splits."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from reid_hub.errors import ReIDError

if TYPE_CHECKING:
    import datasets

TEST_SPLITS = ("test", "validation", "valid", "val")


def as_classes(
    splits: "Mapping[str, datasets.Dataset]", name: str, label: str | None = None
) -> "dict[str, datasets.Dataset] | None":
    """The splits train and test with the columns image and label, or None if it is not a classification data set.

    Args:
        label: name of the class column, if there are several (CIFAR-100's "fine_label").

    Raises:
        ValueError: if there are several class columns and `label` is none of them, or the training or the test split is
            missing.
    """
    import datasets

    features = dict(next(iter(splits.values())).features or {})
    images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    labels = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if "pid" in features or len(images) != 1 or not labels:
        return None
    if label is None and len(labels) == 1:
        label = labels[0]
    if label is None or label not in labels:
        raise ReIDError(f"{name} has the class columns {', '.join(labels)}: choose one with the option label")
    test = next((split for split in TEST_SPLITS if split in splits and _is_labelled(splits[split], label)), None)
    if test is None or "train" not in splits:
        raise ReIDError(
            f"{name} has the splits {', '.join(splits)}; it needs train and one of {', '.join(TEST_SPLITS)} with labels"
        )
    chosen = {"train": splits["train"], "test": splits[test]}
    names = {old: new for old, new in ((images[0], "image"), (label, "label")) if old != new}
    return datasets.DatasetDict(
        {split: rows.select_columns([images[0], label]).rename_columns(names) for split, rows in chosen.items()}
    )


def _is_labelled(rows: "datasets.Dataset", label: str) -> bool:
    """Whether a split has labels: test splits of competitions are all -1. Streams are assumed to have labels."""
    return not hasattr(rows, "unique") or rows.unique(label) != [-1]
