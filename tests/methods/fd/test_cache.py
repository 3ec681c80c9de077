"""What teachers say, against forward passes by hand; shards that are made by killed and by several processes."""

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file

from reid_hub import ReIDConfig, ReIDModel
from reid_hub.data.describe import digest_images
from reid_hub.data.views import View, choose_views
from reid_hub.evaluation import embed
from reid_hub.methods.fd import CachedRepresentations, OnlineRepresentations, ViewTeacher, write_representations

ROOT = Path(__file__).parents[3]
COUNT = 23
BACKBONE = {"model_type": "resnet", "embedding_size": 4, "hidden_sizes": [8, 12], "depths": [1, 1]}
VIEWS = choose_views(["Hol", "Up1", "Dn2"], image_size=(32, 16), view_size=(16, 24))


@pytest.fixture(autouse=True)
def decoded(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "decoded")


def people(folder: Path, count: int = COUNT, seed: int = 0) -> datasets.Dataset:
    folder.mkdir(exist_ok=True)
    rng, rows = np.random.default_rng(seed), []
    for number in range(count):
        path = folder / f"{number:02d}.png"
        Image.fromarray(rng.integers(0, 256, (40 + number, 20, 3), dtype=np.uint8)).save(path)
        rows.append({"image": str(path), "pid": number // 4, "camid": number % 2, "path": f"train/{path.name}"})
    return datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())


def model(view: View, seed: int = 0) -> ReIDModel:
    torch.manual_seed(seed)
    config = ReIDConfig(
        backbone_config={**BACKBONE, "layer_type": "basic"}, image_size=view.image_size, head="linear",
        embedding_dim=5 if view.whole else 3, neck="none",
    )  # fmt: skip
    made = ReIDModel(config)
    for name, buffer in made.named_buffers():
        if "running" in name:
            torch.nn.init.uniform_(buffer, 0.5, 1.5)
    return made


def teachers(split, **options) -> list[ViewTeacher]:
    return [ViewTeacher(model(view), view, split, **options) for view in VIEWS]


def write(folder: Path, split, made: list[ViewTeacher] | None = None, shard_size: int = 7) -> Path:
    for teacher in made or teachers(split):
        write_representations(folder, teacher, shard_size=shard_size, batch_size=4, progress=False)
    return folder


@pytest.fixture
def split(tmp_path):
    return people(tmp_path / "people")


@pytest.fixture
def cache(tmp_path, split):
    return write(tmp_path / "cache", split)


def shards(folder: Path) -> dict[str, str]:
    files = sorted(folder.rglob("*.safetensors"))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def by_hand(teacher: ViewTeacher, row: int) -> torch.Tensor:
    """Cut, resized, normalised and flipped by Pillow and numpy, one picture at a time."""
    view, network = teacher.view, teacher.model.eval()
    image = teacher.split[row]["image"].convert("RGB")
    top, bottom = (round(image.height * float(share)) for share in view.rows)
    height, width = view.image_size
    image = image.crop((0, top, image.width, bottom)).resize((width, height), Image.Resampling.BILINEAR)
    pixels = (np.asarray(image) / 255 - network.config.image_mean) / network.config.image_std
    pixels = torch.tensor(pixels.transpose(2, 0, 1)[None], dtype=torch.float32)
    with torch.no_grad():
        return (network(pixels).embeddings + network(pixels.flip(3)).embeddings)[0] / 2


def test_stored_and_online_representations_are_those_by_hand(cache, split):
    made = teachers(split)
    stored, online = CachedRepresentations(cache, VIEWS, split), OnlineRepresentations(made)
    indices = torch.tensor([22, 3, 3, 0, 14, 7, 6])
    assert stored.dims == online.dims == (5, 3, 3)
    for k, (first, second) in enumerate(zip(stored[indices], online[indices], strict=True)):
        expected = torch.stack([by_hand(made[k], row) for row in indices.tolist()])
        torch.testing.assert_close(first, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(second, expected, rtol=1e-5, atol=1e-5)
        assert not first.requires_grad
        assert not second.requires_grad
    with torch.autocast("cpu", torch.bfloat16):  # as beside a student in half precision
        halved = online[indices]
    assert all(map(torch.equal, halved, online[indices]))
    assert sorted(shards(cache)) == [
        f"{v}/{i:04d}-of-0004.safetensors" for v in ("Dn2", "Hol", "Up1") for i in range(4)
    ]


def test_rows_are_found_by_their_paths_and_views_by_their_names(cache, split):
    order = [5, 22, 0, *range(6, 22), 1, 2, 3, 4]
    moved = CachedRepresentations(cache, VIEWS[:0:-1], split.select(order))
    straight = CachedRepresentations(cache, VIEWS, split)
    everything = torch.arange(COUNT)
    for view, vectors in zip(("Dn2", "Up1"), moved[everything], strict=True):
        whole = torch.cat(
            [load_file(cache / view / f"{i:04d}-of-0004.safetensors")["representations"] for i in range(4)]
        )
        assert torch.equal(vectors, whole[order])
    assert torch.equal(moved[everything][0], straight[torch.tensor(order)][2])


def test_a_picture_and_its_mirror_image_have_one_representation(tmp_path, split):
    mirrored = people(tmp_path / "people")
    mirrored = mirrored.map(lambda row: {"image": row["image"].transpose(Image.Transpose.FLIP_LEFT_RIGHT)})
    for view in VIEWS:
        network = model(view).double()
        pair = [ViewTeacher(network, view, pictures).represent(range(COUNT)) for pictures in (split, mirrored)]
        assert pair[0].dtype == torch.float64
        torch.testing.assert_close(pair[0], pair[1], rtol=1e-12, atol=1e-12)  # Pillow's resize commutes with the flip


def test_a_teacher_that_cuts_from_the_centre_does_so_here_too(split):
    """Pictures with a frame, of which the centre shows nothing."""
    split = split.map(lambda row: {"image": ImageOps.expand(row["image"].point(lambda value: value // 9), 4, "white")})
    network = model(VIEWS[0])
    squeezed = ViewTeacher(network, VIEWS[0], split).represent(range(COUNT))
    network.config.resize_shortest = 40
    found = ViewTeacher(network, VIEWS[0], split).represent(range(COUNT))
    expected = torch.from_numpy(embed(network, split, flip=True, progress=False).embeddings)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (found - squeezed).abs().max() > 0.1


def test_representations_do_not_depend_on_the_batch_or_the_mode(split):
    teacher = ViewTeacher(model(VIEWS[1]).double(), VIEWS[1], split)
    whole = teacher.represent(range(COUNT))
    teacher.model.train()
    before = {name: buffer.clone() for name, buffer in teacher.model.named_buffers()}
    single = torch.cat([teacher.represent([row]) for row in range(COUNT)])
    torch.testing.assert_close(single, whole, rtol=1e-12, atol=1e-12)
    assert torch.equal(teacher.represent(range(COUNT)), whole)
    assert teacher.model.training
    assert all(torch.equal(buffer, before[name]) for name, buffer in teacher.model.named_buffers())


def test_shards_are_memory_maps(cache, split):
    opened = CachedRepresentations(cache, VIEWS, split)
    mapped = Path("/proc/self/maps").read_text()
    assert all(str(cache / name) in mapped for name in shards(cache))
    assert opened[torch.tensor([0])][0].shape == (1, 5)


def test_what_is_there_is_not_made_again(cache, split, monkeypatch):
    before = shards(cache)
    (cache / "Up1" / "0002-of-0004.safetensors").unlink()
    made = []
    represent = ViewTeacher.represent
    monkeypatch.setattr(ViewTeacher, "represent", lambda self, rows: made.extend(rows) or represent(self, rows))
    write(cache, split)
    assert made == list(range(14, 21))
    assert shards(cache) == before


@pytest.mark.parametrize("damage", ["cut off", "empty", "a bit"])
def test_a_damaged_shard_is_named_and_made_again(cache, split, damage, capsys):
    path, before = cache / "Up1" / "0001-of-0004.safetensors", shards(cache)
    sound = path.read_bytes()
    places = {"cut off": [20, len(sound) - 1], "empty": [0], "a bit": range(3, len(sound), 97)}[damage]
    for place in places:
        changed = bytearray(sound)
        changed[place:] = b"" if damage != "a bit" else bytes([changed[place] ^ 16]) + changed[place + 1 :]
        path.unlink()  # an open memory map must not change under its reader
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=r"Up1/0001-of-0004.safetensors is damaged .*make the cache again"):
            CachedRepresentations(cache, VIEWS, split)
    assert CachedRepresentations(cache, VIEWS[:1], split).dims == (5,)
    write(cache, split)
    assert "made anew" in capsys.readouterr().err
    assert shards(cache) == before


def refused(cache, split, views=VIEWS, **options) -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        CachedRepresentations(cache, views, split, **options)
    return str(error.value)


def test_what_does_not_belong_is_refused(cache, split, tmp_path):
    right = {view.name: model(view).fingerprint() for view in VIEWS}
    assert CachedRepresentations(cache, VIEWS, split, teachers=right).paths == split["path"][:]
    assert re.search("Up1.* belongs to another run: teacher was", refused(cache, split, teachers={"Up1": right["Hol"]}))
    other = View("Up1", (0, "1/2"))
    assert re.search(
        "Up1.* belongs to another run: view.* was .*1/4.* and is .*1/2", refused(cache, split, [VIEWS[0], other])
    )
    assert "Mid1 has no representations" in refused(cache, split, choose_views(["Mid1"]))
    assert "1 of 24 images (train/23.png)" in refused(cache, people(tmp_path / "more", COUNT + 1))
    assert "Hol was made of 23 other images" in refused(cache, split.select(range(20)))
    assert "Hol was made of 23 other images" in refused(cache, people(tmp_path / "changed", seed=1))
    assert "one of them twice" in refused(cache, split.select([0, *range(COUNT)]))
    (cache / "Dn2" / "0003-of-0004.safetensors").unlink()
    assert "0003-of-0004.safetensors is missing" in refused(cache, split)


def test_nothing_is_mixed_into_a_cache_of_something_else(cache, split, tmp_path):
    before = shards(cache)
    wrong = {
        "teacher was": (ViewTeacher(model(VIEWS[1], seed=1), VIEWS[1], split), 7),
        "view": (ViewTeacher(model(VIEWS[1]), View("Up1", (0, "1/2")), split), 7),
        "pictures was": (ViewTeacher(model(VIEWS[1]), VIEWS[1], people(tmp_path / "other", seed=1)), 7),
        "identities was": (ViewTeacher(model(VIEWS[1]), VIEWS[1], split, identities=[1, 2]), 7),
        "shards of another size": (ViewTeacher(model(VIEWS[1]), VIEWS[1], split), 8),
    }
    for reason, (teacher, size) in wrong.items():
        with pytest.raises(ValueError, match=reason):
            write(cache, split, [teacher], shard_size=size)
    assert shards(cache) == before


def test_teachers_of_other_identities_do_not_go_together(tmp_path, split):
    first, second, third = teachers(split)
    first.identities, second.identities = [3, 5], [3, 6]
    cache = write(tmp_path / "cache", split, [first, second, third])
    assert "was trained on 2 identities, another one on 2 or others" in refused(cache, split)
    assert CachedRepresentations(cache, VIEWS[:1], split).identities == [3, 5]
    assert CachedRepresentations(cache, VIEWS[2:], split).identities is None


def test_a_broken_teacher_is_said_with_a_picture(tmp_path, split):
    network = model(VIEWS[1])
    torch.nn.init.constant_(network.head.bn.bias, float("nan"))
    with pytest.raises(ValueError, match=r"view 'Up1' gives NaN or Inf for train/00.png"):
        write(tmp_path / "cache", split, [ViewTeacher(network, VIEWS[1], split)])
    assert shards(tmp_path / "cache") == {}


def test_the_digest_is_of_the_pictures_wherever_they_lie(tmp_path, split):
    elsewhere = people(tmp_path / "elsewhere")
    assert digest_images(elsewhere) == digest_images(split.select(range(COUNT - 1, -1, -1)))
    (tmp_path / "elsewhere" / "03.png").write_bytes((tmp_path / "elsewhere" / "04.png").read_bytes())
    assert digest_images(elsewhere) != digest_images(split)
    (tmp_path / "elsewhere" / "03.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"03.png does not exist"):
        digest_images(elsewhere)


MAKE = """
import os, sys, time, datasets
sys.path.insert(0, sys.argv[3])
from pathlib import Path
import torch
torch.set_num_threads(1)
import test_cache
datasets.config.HF_DATASETS_CACHE = Path(sys.argv[4])
represent = test_cache.ViewTeacher.represent
def slow(self, rows):
    print(self.view.name, *rows, flush=True)
    time.sleep(0.06)
    return represent(self, rows)
test_cache.ViewTeacher.represent = slow
meeting, processes = Path(sys.argv[5]), int(sys.argv[6])
meeting.mkdir(exist_ok=True)
(meeting / str(os.getpid())).touch()
while len(list(meeting.iterdir())) < processes:  # else the first could have done all before the second has begun
    time.sleep(0.01)
test_cache.write(Path(sys.argv[1]), datasets.load_from_disk(sys.argv[2]))
"""


@pytest.fixture
def start(tmp_path, split):
    split.save_to_disk(tmp_path / "table")

    def run(folder: Path, processes: int = 1) -> subprocess.Popen:
        meeting = tmp_path / f"meeting-of-{processes}"
        words = [folder, tmp_path / "table", Path(__file__).parent, tmp_path / "decoded", meeting, processes]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", MAKE, *map(str, words)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    return run


def asked(process: subprocess.Popen) -> list[tuple[str, int]]:
    """(view, row) that a process asked its teachers for."""
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0
    return [(line.split()[0], int(row)) for line in said.splitlines() for row in line.split()[1:]]


def test_a_killed_run_goes_on_with_two_processes_that_share_the_rest(cache, start, tmp_path):
    folder = tmp_path / "killed"
    process = start(folder)
    while not (line := process.stdout.readline()).startswith("Up1 11"):  # in the second shard of the second view
        assert line, "the process ended before it was killed"
    time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    left = shards(folder)
    assert 5 <= len(left) < 12
    assert left.items() <= shards(cache).items()
    rows = [asked(process) for process in [start(folder, 2), start(folder, 2)]]
    assert all(rows)
    made = [(name.split("/")[0], row) for name in shards(cache).keys() - left for row in rows_of(name)]
    assert sorted(rows[0] + rows[1]) == sorted(made)
    assert shards(folder) == shards(cache)
    assert not list(folder.rglob(".*"))


def rows_of(name: str) -> range:
    start = 7 * int(Path(name).name[:4])
    return range(start, min(start + 7, COUNT))
