"""MSMT17, versions 1 and 2 (the same images, with faces masked)."""

from pathlib import Path

from reid_hub.data.layouts import find_root, path_below
from reid_hub.data.records import Counts, DatasetSpec, Record, Scan
from reid_hub.errors import ReIDError

LISTS = {"train": "list_train.txt", "val": "list_val.txt", "query": "list_query.txt", "gallery": "list_gallery.txt"}
VERSIONS = {"V1": ("train", "test"), "V2": ("mask_train_v2", "mask_test_v2")}
NESTED = ("MSMT17_V1", "MSMT17_V2", "msmt17/MSMT17_V1", "msmt17/MSMT17_V2", "MSMT17", "msmt17")


def scan(data_dir: Path, *, merge_val: bool = False) -> Scan:
    root = find_root(data_dir, NESTED, list(LISTS.values()), any_of=[train for train, _ in VERSIONS.values()])
    train, test = next(folders for folders in VERSIONS.values() if (root / folders[0]).is_dir())
    splits = {
        "train": _read_list(root, LISTS["train"], train),
        "query": _read_list(root, LISTS["query"], test),
        "gallery": _read_list(root, LISTS["gallery"], test),
    }
    if merge_val:
        splits["train"] += _read_list(root, LISTS["val"], train)
    return Scan(root, splits)


def _read_list(root: Path, name: str, folder: str) -> list[Record]:
    """Rows `0000/0000_000_01_0303morning_0015_0.jpg 0`; the third part of a file name is the camera, counted from 1."""
    base = (root / folder).resolve()
    records = []
    for number, line in enumerate((root / name).read_text().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            path, last = line.rsplit(maxsplit=1)
            pid, camid = int(last), int(path.rsplit("/", 1)[-1].split("_")[2]) - 1
        except (ValueError, IndexError) as error:
            raise ReIDError(
                f"{root / name}, line {number} must be like '0000/0000_000_01_0303morning_0015_0.jpg 0', got {line!r}; "
                "get the list again from the data set's authors"
            ) from error
        records.append(Record(f"{folder}/{path_below(base, path)}", pid, camid))
    return records


SPEC = DatasetSpec(
    name="msmt17",
    title="MSMT17",
    homepage="https://www.pkuvmc.com/dataset.html",
    licence="research only, on request to the authors, no redistribution",
    citation="""@inproceedings{wei2018person,
  title = {Person Transfer GAN to Bridge Domain Gap for Person Re-identification},
  author = {Wei, Longhui and Zhang, Shiliang and Gao, Wen and Tian, Qi},
  booktitle = {CVPR}, year = {2018}
}""",
    layout="list_train.txt, list_val.txt, list_query.txt, list_gallery.txt, and train/ with test/ (version 1) "
    "or mask_train_v2/ with mask_test_v2/ (version 2)",
    scan=scan,
    counts={"train": Counts(30_248, 1_041), "query": Counts(11_659, 3_060), "gallery": Counts(82_161, 3_060)},
    variant_counts={("merge_val", True): {"train": Counts(32_621, 1_041)}},
    notes="15 cameras. Training uses the training list; merge_val=True adds the validation list (2,373 images of the "
    "same identities), as some papers do. pid 0 is an ordinary person here, not a distractor.",
)
