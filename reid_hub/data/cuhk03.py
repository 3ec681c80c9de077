"""CUHK03 under the new protocol of 767 training and 700 test identities."""

import json
from pathlib import Path

from reid_hub.data.layouts import find_root, path_below, scan_market_layout, wrong_layout
from reid_hub.data.records import Counts, DatasetSpec, Record, Scan, one_of
from reid_hub.errors import ReIDError

# Every source spells the hand-drawn boxes "labeled" on disk.
FOLDERS = {"detected": "detected", "labelled": "labeled"}
NESTED = ("cuhk03-np", "CUHK03-NP", "cuhk03_np", "cuhk03")


def scan(data_dir: Path, *, boxes: str = "detected") -> Scan:
    kind = FOLDERS[one_of("boxes", boxes, list(FOLDERS))]
    split_list, folder = f"splits_new_{kind}.json", f"images_{kind}"
    root = find_root(data_dir, NESTED, any_of=[kind, split_list])
    if (root / kind).is_dir():
        return scan_market_layout(root / kind, ())
    if not (root / folder).is_dir():
        raise wrong_layout(root, (), [split_list, folder])
    return Scan(root / folder, _torchreid_splits(root / split_list, root / folder))


def _torchreid_splits(split_list: Path, folder: Path) -> dict[str, list[Record]]:
    """Split lists written by torchreid: rows (absolute path on the original machine, pid, camid from 0)."""
    try:
        lists = json.loads(split_list.read_text())[0]
        return {
            split: [Record(_below(folder, path), int(pid), int(camid)) for path, pid, camid in lists[split]]
            for split in ("train", "query", "gallery")
        }
    except (json.JSONDecodeError, KeyError, IndexError, TypeError) as error:
        raise ReIDError(
            f"{split_list} is not a split list (a list of one object with train, query and gallery, each of rows "
            f"[path, pid, camid]): {error!r}; write it again"
        ) from error


def _below(folder: Path, path: str) -> str:
    name = path.replace("\\", "/").rsplit("/", 1)[-1]
    return path_below(folder, name)


SPEC = DatasetSpec(
    name="cuhk03",
    title="CUHK03 (new protocol, 767/700)",
    homepage="https://github.com/zhunzhong07/person-re-ranking/tree/master/CUHK03-NP",
    licence="research only, on request to the authors",
    citation="""@inproceedings{li2014deepreid,
  title = {DeepReID: Deep Filter Pairing Neural Network for Person Re-identification},
  author = {Li, Wei and Zhao, Rui and Xiao, Tong and Wang, Xiaogang},
  booktitle = {CVPR}, year = {2014}
}
@inproceedings{zhong2017reranking,
  title = {Re-ranking Person Re-identification with k-reciprocal Encoding},
  author = {Zhong, Zhun and Zheng, Liang and Cao, Donglin and Li, Shaozi},
  booktitle = {CVPR}, year = {2017}
}""",
    layout="detected/ and labeled/, each with bounding_box_train/, query/ and bounding_box_test/ (cuhk03-np), "
    "or images_detected/ with splits_new_detected.json and the same for labeled (torchreid)",
    scan=scan,
    counts={"train": Counts(7_365, 767), "query": Counts(1_400, 700), "gallery": Counts(5_332, 700)},
    variant_counts={("boxes", "labelled"): {"train": Counts(7_368, 767), "gallery": Counts(5_328, 700)}},
    notes="boxes='detected' (from a detector, the default) or 'labelled' (drawn by hand). Two views per identity.",
)
