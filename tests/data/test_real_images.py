"""The loaders on real images; skipped where they are not on the machine."""

import subprocess
import sys

import numpy as np
import pytest

from reid_hub.data.decoding import decode_image
from reid_hub.data.describe import describe_splits
from reid_hub.data.loading import load_reid_dataset


def unpack(real_data, name, out):
    subprocess.run([sys.executable, str(real_data / "unpack.py"), name, str(out)], check=True, capture_output=True)
    return out


def test_the_training_half_of_market_1501(real_data, tmp_path):
    folder = unpack(real_data, "market1501_tr751", tmp_path / "market")
    with pytest.warns(UserWarning, match="8,642 images of 501 identities instead of 12,936 images of 751"):
        splits = load_reid_dataset("market1501", folder, cache_dir=tmp_path / "cache")
    report = describe_splits(splits)
    counted = {name: (report[name]["images"], report[name]["identities"]) for name in splits}
    assert counted == {"train": (8_642, 501), "query": (953, 250), "gallery": (3_341, 250)}
    assert max(report[name]["cameras"] for name in splits) == 6
    assert report["camera_note"] is None
    assert sorted(set(splits["train"]["pid"])) == list(range(501))
    row = splits["query"][0]
    assert row["path"].startswith(f"query/{row['pid']:04d}_c{row['camid'] + 1}s")
    np.testing.assert_array_equal(np.asarray(row["image"]), np.asarray(decode_image(folder / row["path"])))


def test_a_test_only_set_in_the_same_layout(real_data, tmp_path):
    folder = unpack(real_data, "pku_reid74", tmp_path / "pku")
    splits = load_reid_dataset("market_layout", folder, cache_dir=tmp_path / "cache")
    report = describe_splits(splits)
    assert {name: (report[name]["images"], report[name]["identities"]) for name in splits} == {
        "query": (148, 74),
        "gallery": (1_036, 74),
    }


@pytest.mark.slow
def test_cifar10_has_its_official_counts(real_data, tmp_path, recwarn):
    folder = unpack(real_data, "cifar10", tmp_path / "cifar10")
    splits = load_reid_dataset("cifar10", folder, cache_dir=tmp_path / "cache")
    assert {name: split.num_rows for name, split in splits.items()} == {"train": 50_000, "test": 10_000}
    assert np.bincount(splits["test"]["label"]).tolist() == [1_000] * 10
    assert not [w for w in recwarn if "official" in str(w.message)]
