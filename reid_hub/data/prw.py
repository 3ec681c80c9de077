"""PRW: people cropped from video frames by their annotated boxes."""

import re
from collections.abc import Iterator, Sequence
from io import BytesIO
from itertools import groupby
from operator import attrgetter
from pathlib import Path

import numpy as np

from reid_hub.data.decoding import decode_image
from reid_hub.data.layouts import find_root, path_below
from reid_hub.data.records import DISTRACTOR, Counts, DatasetSpec, Record, Scan, one_of
from reid_hub.errors import MissingError, ReIDError

NESTED = ("PRW-v16.04.20", "prw", "prw/PRW-v16.04.20", "PRW")
REQUIRED = ("frames", "annotations", "frame_train.mat", "frame_test.mat", "ID_train.mat", "query_info.txt")
UNKNOWN = -2  # boxes of unidentified people
BOX_KEYS = ("box_new", "anno_file", "anno_previous")


def scan(data_dir: Path, *, variant: str = "normal") -> Scan:
    one_of("variant", variant, ["normal", "hard"])
    root = find_root(data_dir, NESTED, REQUIRED)
    train_ids = set(_mat(root / "ID_train.mat", "ID_train").ravel().astype(int).tolist())
    train_boxes = [record for frame in _frames(root / "frame_train.mat") for record in _boxes(root, frame)]
    train = [record for record in train_boxes if record.pid in train_ids]
    gallery = []
    for frame in _frames(root / "frame_test.mat"):
        for record in _boxes(root, frame):
            if record.pid != UNKNOWN:
                gallery.append(record)
            elif variant == "hard":
                gallery.append(record._replace(pid=DISTRACTOR))
    splits = {"train": train, "query": _queries(root / "query_info.txt"), "gallery": gallery}
    return Scan(root, splits, read=read_crops)


def read_crops(root: Path, records: Sequence[Record]) -> Iterator[dict]:
    """Yield losslessly encoded crops; records of a frame are adjacent, so each frame is decoded once."""
    for path, boxes in groupby(records, key=attrgetter("path")):
        image = decode_image(root / path)
        for x, y, width, height in (record.box for record in boxes if record.box is not None):
            if x >= image.width or y >= image.height:
                raise ReIDError(
                    f"the box {(x, y, width, height)} lies outside {path} ({image.width} x {image.height}); "
                    "unpack the frames and the annotations of the same release"
                )
            crop = image.crop((x, y, min(x + width, image.width), min(y + height, image.height)))
            buffer = BytesIO()
            crop.save(buffer, "PNG", compress_level=1)
            yield {"bytes": buffer.getvalue(), "path": None}


def _mat(path: Path, *names: str) -> np.ndarray:
    """The first of these variables that is in a MATLAB file."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    if not path.is_file():
        raise MissingError(f"{path} is missing; unpack the data set again")
    try:
        variables = loadmat(path)
    except (MatReadError, ValueError, TypeError, NotImplementedError, OSError) as error:
        raise ReIDError(f"{path} is not a MATLAB file that can be read ({error}); unpack it again") from error
    for name in names:
        if name in variables:
            return variables[name]
    found = [name for name in variables if not name.startswith("__")]
    raise ReIDError(f"{path} must have a variable {' or '.join(names)}, got {found}; unpack it again")


def _frames(path: Path) -> list[str]:
    """Frame names without suffix: a MATLAB cell array of strings, (N, 1)."""
    cells = _mat(path, "img_index_train", "img_index_test").ravel()
    return [str(np.asarray(cell).ravel()[0]) for cell in cells]


def _boxes(root: Path, frame: str) -> list[Record]:
    """Boxes of one frame: rows (id, x, y, w, h); negative numbers are set to 0, as in other loaders."""
    rows = _mat(root / "annotations" / path_below(root / "annotations", f"{frame}.jpg.mat"), *BOX_KEYS)
    camid = _camid(frame)
    records = []
    for row in rows.astype(float):
        box = tuple(np.clip(row[1:5], 0, None).astype(int).tolist())
        if box[2] > 0 and box[3] > 0:
            records.append(Record(f"frames/{frame}.jpg", int(row[0]), camid, box))
    return records


def _queries(path: Path) -> list[Record]:
    """Hand-drawn boxes: lines `479 x y w h c1s3_016471`."""
    records = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        fields = line.split()
        try:
            pid, *sides = (float(value) for value in fields[:5])
            frame = fields[5]
        except (ValueError, IndexError) as error:
            raise ReIDError(f"{path}, line {number} must be 'id x y w h frame', got {line!r}") from error
        x, y, width, height = np.clip(sides, 0, None).astype(int).tolist()
        name = path_below(path.parent / "frames", f"{frame}.jpg")
        records.append(Record(f"frames/{name}", int(pid), _camid(frame), (x, y, width, height)))
    return records


def _camid(frame: str) -> int:
    match = re.match(r"c(\d)", frame)
    if match is None:
        raise ReIDError(f"frame names must begin with their camera like c1s3_016471, got {frame!r}")
    return int(match[1]) - 1


SPEC = DatasetSpec(
    name="prw",
    title="PRW",
    homepage="https://zheng-lab.cecs.anu.edu.au/Project/project_prw.html",
    licence="research only, no redistribution",
    citation="""@inproceedings{zheng2017person,
  title = {Person Re-identification in the Wild},
  author = {Zheng, Liang and Zhang, Hengheng and Sun, Shaoyan and Chandraker, Manmohan and Yang, Yi and Tian, Qi},
  booktitle = {CVPR}, year = {2017}
}""",
    layout="frames/, annotations/, frame_train.mat, frame_test.mat, ID_train.mat and query_info.txt",
    scan=scan,
    counts={"train": Counts(None, 483), "query": Counts(2_057, 450)},
    notes="Six cameras; crops without margin. Train: boxes of training identities in training frames. Query: the "
    "2,057 hand-drawn boxes. Gallery: every named box in test frames (those of other people are distractors with "
    "their own pids); variant='hard' adds the unnamed boxes as distractors (pid 0). No official gallery size exists "
    "for this protocol: report the one found here.",
)
