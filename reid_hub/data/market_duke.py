"""Market-Duke: the union of the training sets of Market-1501 and DukeMTMC-reID."""

from collections.abc import Sequence
from pathlib import Path

from reid_hub.data import dukemtmc, market1501
from reid_hub.data.layouts import wrong_layout
from reid_hub.data.records import Counts, DatasetSpec, Record, Scan, one_of

# Larger than every pid (1,501) and camera (6) of Market-1501; both data sets number people from 1.
PID_OFFSET = 10_000
CAMID_OFFSET = 6
TESTS = ("market1501", "dukemtmc", "both")


def scan(data_dir: Path, *, test: str = "market1501") -> Scan:
    one_of("test", test, TESTS)
    data_dir = Path(data_dir).expanduser().resolve()
    market = market1501.scan(_part(data_dir, market1501.NESTED))
    duke = dukemtmc.scan(_part(data_dir, dukemtmc.NESTED))
    market_splits = {split: _moved(market.root, data_dir, records) for split, records in market.splits.items()}
    duke_splits = {
        split: _moved(duke.root, data_dir, records, PID_OFFSET, CAMID_OFFSET) for split, records in duke.splits.items()
    }
    splits = {"train": market_splits.get("train", []) + duke_splits.get("train", [])}
    for split in ("query", "gallery"):
        splits[split] = [
            record
            for name, part in (("market1501", market_splits), ("dukemtmc", duke_splits))
            if test in (name, "both")
            for record in part.get(split, [])
        ]
    return Scan(data_dir, {split: records for split, records in splits.items() if records})


def _part(data_dir: Path, names: Sequence[str]) -> Path:
    for name in names:
        if (data_dir / name).is_dir():
            return data_dir / name
    raise wrong_layout(data_dir, (), [market1501.NESTED[0], dukemtmc.NESTED[0]])


def _moved(root: Path, base: Path, records: Sequence[Record], pid_offset: int = 0, camid_offset: int = 0):
    folder = root.relative_to(base).as_posix()
    return [
        record._replace(
            path=f"{folder}/{record.path}",
            pid=record.pid + pid_offset if record.pid > 0 else record.pid,
            camid=record.camid + camid_offset,
        )
        for record in records
    ]


SPEC = DatasetSpec(
    name="market_duke",
    title="Market-Duke (Market-1501 and DukeMTMC-reID)",
    homepage=market1501.SPEC.homepage,
    licence=f"Market-1501: {market1501.SPEC.licence}; DukeMTMC-reID: {dukemtmc.SPEC.licence}",
    citation=f"{market1501.SPEC.citation}\n{dukemtmc.SPEC.citation}",
    layout="Market-1501-v15.09.15/ and DukeMTMC-reID/, each with its own layout",
    scan=scan,
    counts={**market1501.SPEC.counts, "train": Counts(12_936 + 16_522, 751 + 702)},
    variant_counts={
        ("test", "dukemtmc"): {s: dukemtmc.SPEC.counts[s] for s in ("query", "gallery")},
        ("test", "both"): {"query": Counts(3_368 + 2_228, 750 + 702), "gallery": Counts(19_732 + 17_661, 750 + 1_110)},
    },
    notes=f"Duke's pids are shifted by {PID_OFFSET:,} and its cameras by {CAMID_OFFSET}. test='market1501' (default), "
    "'dukemtmc' or 'both' chooses query and gallery.",
    notice=dukemtmc.NOTICE,
)
