"""Describable Textures (DTD), trained on its lists train and val together, as usual in transfer learning."""

from pathlib import Path

from reid_hub.data.layouts import find_root, path_below
from reid_hub.data.records import Counts, DatasetSpec, Record, Scan
from reid_hub.errors import ReIDError

LISTS = {"train": ("train", "val"), "test": ("test",)}


def scan(data_dir: Path, *, split: int = 1) -> Scan:
    """Read images/banded/banded_0002.jpg by labels/train1.txt, val1.txt and test1.txt.

    Args:
        split: number of the official split, 1 to 10.
    """
    if split not in range(1, 11):
        raise ReIDError(f"split must be one of DTD's, 1 to 10, got {split!r}")
    names = {part: [f"labels/{kind}{split}.txt" for kind in kinds] for part, kinds in LISTS.items()}
    root = find_root(data_dir, ("dtd",), ["images", *names["train"], *names["test"]])
    classes = sorted(path.name for path in (root / "images").iterdir() if path.is_dir())
    numbers = {name: number for number, name in enumerate(classes)}
    splits = {}
    for part, lists in names.items():
        lines = [line.strip() for name in lists for line in (root / name).read_text().splitlines()]
        paths = [path_below(root / "images", line) for line in lines if line]
        unknown = sorted({path.partition("/")[0] for path in paths} - set(classes))
        if unknown:
            raise ReIDError(f"{', '.join(lists)} in {root} name classes that images/ lacks: {unknown}; unpack again")
        splits[part] = [Record(f"images/{path}", numbers[path.partition("/")[0]]) for path in paths]
    return Scan(root, splits, classes=classes)


SPEC = DatasetSpec(
    name="dtd",
    title="Describable Textures Dataset",
    homepage="https://www.robots.ox.ac.uk/~vgg/data/dtd/",
    licence="for research, by its authors' request",
    citation="""@inproceedings{cimpoi2014describing,
  title = {Describing Textures in the Wild},
  author = {Cimpoi, Mircea and Maji, Subhransu and Kokkinos, Iasonas and Mohamed, Sammy and Vedaldi, Andrea},
  booktitle = {CVPR}, year = {2014}
}""",
    layout="images/CLASS/*.jpg and labels/{train,val,test}1.txt",
    scan=scan,
    counts={"train": Counts(3760, 47), "test": Counts(1880, 47)},
    notes="Columns image and label; splits train (with the official val) and test. split=1..10 is the official split.",
)
