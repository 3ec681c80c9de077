"""LUPerson: unlabelled images of people for pre-training, in a folder or an LMDB."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from reid_hub.data.layouts import list_images
from reid_hub.data.records import Counts, DatasetSpec, Record, Scan
from reid_hub.errors import MissingError, MissingLibraryError, ReIDError

UNLABELLED = -1
CHUNK = 256


def scan(data_dir: Path) -> Scan:
    data_dir = Path(data_dir).expanduser().resolve()
    for store in (data_dir, data_dir / "lmdb"):
        if (store / "data.mdb").is_file():
            records = [Record(key, UNLABELLED) for key in _keys(store)]
            return Scan(store, {"train": records}, read=read_values, sources=[store / "data.mdb"])
    if not data_dir.is_dir():
        raise MissingError(
            f"{data_dir} is not a folder; give a folder of images (read recursively) or of an LMDB (data.mdb)"
        )
    records = [Record(name, UNLABELLED) for name in list_images(data_dir, recursive=True)]
    # Some of millions are damaged; they are skipped when the images are read.
    return Scan(data_dir, {"train": records}, tolerant=True)


def read_values(store: Path, records: Sequence[Record]) -> Iterator[dict]:
    """Yield the encoded image of each record's key."""
    # A process may open an LMDB only once, so it must not be open while the consumer holds this generator.
    for start in range(0, len(records), CHUNK):
        with _open(store) as environment, environment.begin() as transaction:
            values = [transaction.get(record.path.encode()) for record in records[start : start + CHUNK]]
        for value in values:
            yield {"bytes": value, "path": None}


def _keys(store: Path) -> list[str]:
    with _open(store) as environment, environment.begin() as transaction, transaction.cursor() as cursor:
        # Keys like __len__ are metadata of the program that wrote the file.
        keys = [key.decode() for key in cursor.iternext(keys=True, values=False) if not key.startswith(b"__")]
    if not keys:
        raise ReIDError(f"the LMDB in {store} holds no images; was it copied completely?")
    return keys


def _open(store: Path):
    try:
        import lmdb
    except ImportError as error:
        raise MissingLibraryError("reading an LMDB needs the package lmdb: pip install 'reid-hub[lmdb]'") from error
    try:
        return lmdb.open(str(store), readonly=True, lock=False, readahead=False)
    except lmdb.Error as error:
        raise ReIDError(f"{store / 'data.mdb'} cannot be read as an LMDB ({error}); copy it again") from error


PICTURES = DatasetSpec(
    name="pictures",
    title="Your own unlabelled images",
    homepage="",
    licence="yours to state",
    citation="",
    layout="images in any folders, or an LMDB (data.mdb)",
    scan=scan,
    notes="Training split only, unlabelled: every pid is -1.",
    redistributable=True,
)
SPEC = DatasetSpec(
    name="luperson",
    title="LUPerson",
    homepage="https://github.com/DengpanFu/LUPerson",
    licence="research only, on request to the authors",
    citation="""@inproceedings{fu2021unsupervised,
  title = {Unsupervised Pre-training for Person Re-identification},
  author = {Fu, Dengpan and Chen, Dongdong and Bao, Jianmin and Yang, Hao and Yuan, Lu and Zhang, Lei and
            Li, Houqiang and Chen, Dong},
  booktitle = {CVPR}, year = {2021}
}""",
    layout="images in any folders, or an LMDB (data.mdb, also in lmdb/) of encoded images keyed by name",
    scan=scan,
    counts={"train": Counts(4_180_243, None)},
    notes="Training split only, unlabelled: every pid is -1. With streaming=True an LMDB is not copied to the cache.",
)
