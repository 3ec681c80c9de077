"""Work that several processes share: each piece is made once, and whoever ends first may tidy up."""

import shutil
import threading
import time

import pytest
from filelock import FileLock

from reid_hub.methods.shards import share_work


def test_a_folder_removed_while_one_waits_means_that_all_is_done(tmp_path):
    folder, made, done = tmp_path / "parts", [], []
    held, first_done = threading.Event(), threading.Event()

    def another() -> None:
        with FileLock(folder / "second.lock"):
            held.set()
            first_done.wait(10)
            time.sleep(0.3)  # into the midst of the wait for the lock, which polls every 50 ms
            shutil.rmtree(folder)

    folder.mkdir()
    thread = threading.Thread(target=another)
    thread.start()
    held.wait(10)

    def finished(number: int) -> None:
        done.append(number)
        first_done.set()

    share_work(folder, ["first", "second"], made.append, finished)
    thread.join()
    assert made == [0]  # the other one's piece is not made again
    assert done == [0, 1]
    assert not folder.exists()


def test_an_error_in_a_piece_is_passed_on_and_its_lock_released(tmp_path):
    def make(number: int) -> None:
        raise FileNotFoundError("a picture")

    with pytest.raises(FileNotFoundError, match="a picture"):
        share_work(tmp_path, ["first"], make, print)
    with FileLock(tmp_path / "first.lock", timeout=0):
        pass
