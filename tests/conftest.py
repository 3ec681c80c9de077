import os

# Read by the libraries when they are imported, so it must be set before anything else is.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("HF_HUB_DISABLE_XET", "1")  # the test Hub speaks the LFS protocol only
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "0")
os.environ.setdefault("MPLBACKEND", "Agg")
# One thread a process: the tests run in as many processes as there are cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .hub.minihub import MiniHub


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the real image packs, named by REID_HUB_DATA; a test that needs it skips where it is absent."""
    folder = os.environ.get("REID_HUB_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("real images are not on this machine: set REID_HUB_DATA to the folder with the packs")
    return Path(folder)


@pytest.fixture
def hub() -> Iterator["MiniHub"]:
    """An empty Hub on loopback: for `HfApi(hub.url, token)`, or for a process with `hub.environment(home)`."""
    from .hub.minihub import MiniHub

    with MiniHub() as server:
        yield server
