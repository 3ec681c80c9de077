"""The data sets by name.

To add a data set, write a module with a `DatasetSpec` in this folder, import it here and add it to `DATASETS`.
"""

from collections.abc import Iterable

from reid_hub.data import (
    caltech256,
    cifar,
    class_folders,
    csv_file,
    cub200,
    cuhk03,
    dtd,
    dukemtmc,
    image_folder,
    luperson,
    market1501,
    market_duke,
    msmt17,
    prai1581,
    prw,
    shapes_set,
    synthetic_set,
)
from reid_hub.data.records import DatasetSpec
from reid_hub.errors import ReIDError

DATASETS: dict[str, DatasetSpec] = {
    spec.name: spec
    for spec in (
        market1501.SPEC,
        market1501.LAYOUT_SPEC,
        dukemtmc.SPEC,
        market_duke.SPEC,
        cuhk03.SPEC,
        msmt17.SPEC,
        prw.SPEC,
        prai1581.SPEC,
        luperson.SPEC,
        luperson.PICTURES,
        cifar.CIFAR10,
        cifar.CIFAR100,
        caltech256.SPEC,
        cub200.SPEC,
        dtd.SPEC,
        class_folders.SPEC,
        image_folder.SPEC,
        csv_file.SPEC,
        synthetic_set.SPEC,
        shapes_set.SPEC,
    )
}


def check_options(name: str, given: Iterable[str], allowed: Iterable[str]) -> None:
    """Check that a data set has all the given options.

    Raises:
        ValueError: naming the allowed options.
    """
    unknown = sorted(set(given) - set(allowed))
    if unknown:
        choices = ", ".join(sorted(allowed)) or "none"
        raise ReIDError(f"the data set {name!r} has no option {', '.join(unknown)}; its options are: {choices}")
