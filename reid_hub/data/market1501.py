"""Market-1501, and any folder in its layout."""

from pathlib import Path

from reid_hub.data.layouts import scan_market_layout
from reid_hub.data.records import Counts, DatasetSpec, Scan

NESTED = ("Market-1501-v15.09.15", "market1501", "market1501/Market-1501-v15.09.15")


def scan(data_dir: Path) -> Scan:
    return scan_market_layout(data_dir, NESTED)


SPEC = DatasetSpec(
    name="market1501",
    title="Market-1501",
    homepage="https://zheng-lab.cecs.anu.edu.au/Project/project_reid.html",
    licence="research only, no redistribution",
    citation="""@inproceedings{zheng2015scalable,
  title = {Scalable Person Re-identification: A Benchmark},
  author = {Zheng, Liang and Shen, Liyue and Tian, Lu and Wang, Shengjin and Wang, Jingdong and Tian, Qi},
  booktitle = {ICCV}, year = {2015}
}""",
    layout="bounding_box_train/, query/ and bounding_box_test/ with files like 0002_c1s1_000451_03.jpg",
    scan=scan,
    # 3,819 of the 19,732 gallery images are junk (-1), 2,798 are distractors (0).
    counts={"train": Counts(12_936, 751), "query": Counts(3_368, 750), "gallery": Counts(19_732, 750)},
    notes="Six cameras. Boxes from a DPM detector. Junk (pid -1) is removed, distractors (pid 0) stay in the gallery.",
)

LAYOUT_SPEC = DatasetSpec(
    name="market_layout",
    title="A folder in the layout of Market-1501",
    homepage="",
    licence="not stated",
    citation="",
    layout=SPEC.layout,
    scan=scan,
    notes="For subsets of Market-1501 and other data sets with its folders and file names; has no official counts.",
)
