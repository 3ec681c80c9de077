import pytest
import torch

from reid_hub.data.images import ImageDataset

from .small_run import people


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory):
    return ImageDataset(people(), (32, 16), cache_dir=tmp_path_factory.mktemp("pixels"), progress=False)


@pytest.fixture(autouse=True)
def one_thread():
    """Bit-equality needs the same number of threads everywhere; tiny networks are fastest with one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
