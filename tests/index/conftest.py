import numpy as np
import pytest

from reid_hub.index import GalleryIndex

from .made import names, x


@pytest.fixture
def index():
    index = GalleryIndex(8, metric="euclidean", fingerprint="model@1")
    cameras = np.random.default_rng(0).integers(0, 3, 20)
    index.add(x(20), names(20), cameras, [{"n": number} if number % 2 else {} for number in range(20)])
    return index


@pytest.fixture
def folder(index, tmp_path):
    """Saved, then one vector removed and saved again: a folder with every kind of file."""
    index.save(tmp_path / "index")
    index.remove(["p7"])
    index.save(tmp_path / "index")
    return tmp_path / "index"
