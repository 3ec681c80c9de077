"""Processes killed while they save: the folder holds the old index or the new one."""

import json
import os
import signal
import subprocess
import sys

import numpy as np

from reid_hub.index import GalleryIndex

from .made import answers, assert_same, x

KILLED = """
import os, shutil, signal, sys
import numpy as np
from reid_hub.index import GalleryIndex

def change_and_save(folder, last):
    calls = 0
    def counted(real):
        def call(*arguments, **keywords):
            nonlocal calls
            calls += 1
            if calls == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **keywords)
        return call
    index = GalleryIndex.load(folder)
    index.update(np.ones((1, 8)), ["p2"])
    index.add(np.random.default_rng(9).standard_normal((30, 8)), [f"new{n}" for n in range(30)])
    for name in ("fsync", "replace", "unlink", "open"):
        setattr(os, name, counted(getattr(os, name)))
    index.save(folder)

status, last = None, 0
while status != 0:  # one process each, until one comes through
    last += 1
    folder = shutil.copytree(sys.argv[1], f"{sys.argv[2]}/{last}")
    pid = os.fork()
    if not pid:
        change_and_save(folder, last)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    assert status in (0, signal.SIGKILL), status
"""


def test_a_process_killed_anywhere_in_save_leaves_the_old_or_the_new_index(folder, tmp_path):
    old, work = answers(GalleryIndex.load(folder)), tmp_path / "killed"
    work.mkdir()
    subprocess.run([sys.executable, "-c", KILLED, str(folder), str(work)], check=True)
    sizes = []
    for last in range(1, len(list(work.iterdir())) + 1):
        folder = work / str(last)
        found = GalleryIndex.load(folder, verify=True)
        sizes.append(len(found))
        if len(found) == 19:
            assert_same(old, answers(found))
        else:
            assert found.ids[-1] == "new29"
            assert found.search(np.ones((1, 8)), 1)[1].tolist() == [["p2"]]
        found.add(x(1), ["afterwards"])
        found.save(folder)
        manifest = json.loads((folder / "manifest.json").read_text())
        named = {entry["name"] for entry in manifest["segments"]} | {(manifest["removed"] or {}).get("name")}
        found = {file.name for file in folder.iterdir() if file.suffix in (".safetensors", ".int64")}
        assert found == named - {None}  # what was left behind is swept away
    assert sizes == sorted(sizes)  # the old one up to some call, the new one from there on
    assert {19, 49} == set(sizes)
    assert len(sizes) > 12


ADDS = """
import sys
import numpy as np
from reid_hub.index import GalleryIndex

index = GalleryIndex.load(sys.argv[1])
for number in range(100000):
    index.add(np.full((1, 8), number + 1.0), [str(number)])
    index.save(sys.argv[1])
    print(number, flush=True)
"""


def test_a_process_killed_at_any_time_while_it_adds_and_saves_loses_nothing_it_reported(folder):
    child = subprocess.Popen([sys.executable, "-c", ADDS, str(folder)], stdout=subprocess.PIPE, text=True)
    reported = [int(child.stdout.readline()) for _ in range(20)]
    os.kill(child.pid, signal.SIGKILL)
    reported += [int(line) for line in child.stdout.read().split("\n")[:-1]]
    child.wait()
    found = GalleryIndex.load(folder, verify=True)
    assert len(found) - 19 in (len(reported), len(reported) + 1)
    assert found.ids[19:][: len(reported)] == [str(number) for number in reported]
