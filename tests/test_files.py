"""Files are written completely or not at all, and no path leaves its folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from reid_hub.files import atomic_file, atomic_folder, inside
from reid_hub.registry import lookup


def test_a_file_appears_whole_and_readable(tmp_path):
    path = tmp_path / "new" / "a.json"
    with atomic_file(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        temporary.write_text("whole")
    (tmp_path / "plain").touch()
    assert path.read_text() == "whole"
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert list(path.parent.iterdir()) == [path]


def fail(path: Path) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")


def fail_in(folder: Path) -> None:
    with atomic_folder(folder) as temporary:
        (temporary / "half.txt").write_text("half")
        raise OSError(28, "No space left on device")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(OSError, match="No space left"):
        fail(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    folder = tmp_path / "index"
    for content in ("old", "new"):
        with atomic_folder(folder) as temporary:
            (temporary / f"{content}.txt").write_text(content)
    assert [path.name for path in folder.iterdir()] == ["new.txt"]
    with pytest.raises(OSError, match="No space left"):
        fail_in(folder)
    assert [path.name for path in folder.iterdir()] == ["new.txt"]
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_process_killed_while_writing_leaves_the_old_file(tmp_path, kind):
    target = tmp_path / "target"
    body = "target.write_text('old')" if kind == "file" else "target.mkdir(); (target / 'a').write_text('old')"
    written = "t.write_text('half')" if kind == "file" else "(t / 'a').write_text('half')"
    code = (
        "import os, signal, pathlib; from reid_hub.files import *\n"
        f"target = pathlib.Path({str(target)!r}); {body}\n"
        f"with atomic_{kind}(target) as t:\n    {written}; os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == -9
    assert (target if kind == "file" else target / "a").read_text() == "old"


@pytest.mark.parametrize("member", ["../evil", "/etc/passwd", "a/../../evil", "link/evil"])
def test_a_path_out_of_the_folder_is_refused(tmp_path, member):
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="is outside"):
        inside(root, member)


def test_a_path_in_the_folder_is_found(tmp_path):
    assert inside(tmp_path, "a/../b.txt") == tmp_path.resolve() / "b.txt"


def test_an_unknown_name_is_answered_with_the_nearest():
    table = {"market1501": 1, "msmt17": 2}
    assert lookup(table, "msmt17", "data set") == 2
    with pytest.raises(ValueError, match=r"unknown data set 'marke1501': did you mean 'market1501'\?.*msmt17"):
        lookup(table, "marke1501", "data set")
    with pytest.raises(ValueError, match="unknown data set 'xyz': choices are market1501, msmt17"):
        lookup(table, "xyz", "data set")
