import io
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import BatchSampler, DataLoader
from torchvision import transforms

from reid_hub.data.augmentation_options import Augmentation
from reid_hub.data.images import ImageDataset
from reid_hub.data.samplers import IdentitySampler
from reid_hub.data.stored import image_sizes, training_images

SIZE = (24, 12)


def encoded(number, image_format="JPEG"):
    random = np.random.default_rng(number)
    small = Image.fromarray(random.integers(0, 256, (5, 4, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    size = (int(random.integers(8, 30)), int(random.integers(8, 50)))
    small.resize(size, Image.Resampling.BICUBIC).save(buffer, image_format)
    return buffer.getvalue()


def split(folder, count=10, embedded=False, broken=None):
    """A split of `count` small images as files, or inside of the table; `broken` {row: bytes} replaces some."""
    folder.mkdir(exist_ok=True)
    images = [(broken or {}).get(row, encoded(row, ("JPEG", "PNG")[row % 2])) for row in range(count)]
    paths = [str(folder / f"{row:03d}.img") for row in range(count)]
    if not embedded:
        for path, data in zip(paths, images, strict=True):
            with open(path, "wb") as file:
                file.write(data)
    rows = [{"path": path, "bytes": data if embedded else None} for path, data in zip(paths, images, strict=True)]
    columns = {
        "image": rows,
        "pid": [row // 3 for row in range(count)],
        "camid": [row % 2 for row in range(count)],
        "path": [os.path.basename(path) for path in paths],
    }
    features = datasets.Features(
        image=datasets.Image(),
        pid=datasets.Value("int64"),
        camid=datasets.Value("int64"),
        path=datasets.Value("string"),
    )
    return datasets.Dataset.from_dict(columns, features=features)


def resized(dataset, size=SIZE, interpolation=transforms.InterpolationMode.BILINEAR):
    """torchvision's transform, image by image: uint8 (N, 3, H, W)."""
    transform = transforms.Compose([transforms.Resize(size, interpolation), transforms.PILToTensor()])
    return torch.stack([transform(image.convert("RGB")) for image in dataset["image"]])


@pytest.fixture
def make(tmp_path):
    return partial(ImageDataset, image_size=SIZE, cache_dir=tmp_path / "cache", progress=False)


@pytest.mark.parametrize("embedded", [False, True], ids=["files", "embedded"])
@pytest.mark.parametrize("max_bytes", [1 << 30, 0], ids=["stored", "on the fly"])
def test_pixels_equal_torchvisions_resize(make, tmp_path, embedded, max_bytes):
    dataset = split(tmp_path / "people", embedded=embedded)
    images = make(dataset, max_bytes=max_bytes)
    batch = images.__getitems__([7, 2, 2, 0])
    assert torch.equal(batch["pixel_values"], resized(dataset)[[7, 2, 2, 0]])
    assert {name: values.tolist() for name, values in batch.items() if name != "pixel_values"} == {
        "pids": [2, 0, 0, 0],
        "camids": [1, 0, 0, 0],
        "indices": [7, 2, 2, 0],
    }
    assert all(batch[name].dtype == torch.int64 for name in ("pids", "camids", "indices"))
    assert len(images) == 10
    assert images.pids.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]
    assert images.camids.tolist() == [0, 1] * 5
    assert torch.equal(images[9]["pixel_values"], resized(dataset)[9])
    assert images[9]["pids"].item() == 3
    with pytest.raises(IndexError):
        images.__getitems__([10])


def test_filter_and_size_have_files_of_their_own(make, tmp_path):
    dataset = split(tmp_path / "people")
    make(dataset)
    bicubic = make(dataset, interpolation="bicubic").__getitems__(range(10))["pixel_values"]
    assert torch.equal(bicubic, resized(dataset, interpolation=transforms.InterpolationMode.BICUBIC))
    wide = make(dataset, image_size=(12, 24)).__getitems__(range(10))["pixel_values"]
    assert torch.equal(wide, resized(dataset, size=(12, 24)))
    other = make(dataset.select([4, 3])).__getitems__([0, 1])["pixel_values"]
    assert torch.equal(other, resized(dataset)[[4, 3]])


def test_real_people(make, real_data):
    pack = np.load(real_data / "market1501_tr751.npz", allow_pickle=False)
    offsets, data = pack["offsets"], pack["data"]
    rows = range(0, len(offsets) - 1, 400)
    people = [{"path": None, "bytes": data[offsets[row] : offsets[row + 1]].tobytes()} for row in rows]
    columns = {"image": people, "pid": list(rows), "camid": [0] * len(rows)}
    dataset = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    images = make(dataset, image_size=(256, 128))
    assert torch.equal(images.__getitems__(range(len(rows)))["pixel_values"], resized(dataset, (256, 128)))


def test_the_second_use_decodes_nothing(make, tmp_path):
    dataset = split(tmp_path / "people", count=150)  # more than two chunks
    first = make(dataset).__getitems__(range(150))["pixel_values"]
    assert torch.equal(first, resized(dataset))
    for file in (tmp_path / "people").iterdir():
        file.unlink()
    assert torch.equal(make(dataset).__getitems__(range(150))["pixel_values"], first)


@pytest.mark.parametrize("damage", ["truncated", "other shape", "not an array", "no list of errors"])
def test_a_damaged_file_is_made_again(make, tmp_path, damage):
    dataset = split(tmp_path / "people")
    make(dataset)
    (file,) = (tmp_path / "cache").glob("*/images.npy")
    if damage == "truncated":
        os.truncate(file, file.stat().st_size - 1)
    elif damage == "other shape":
        np.save(file, np.zeros((10, 3, 12, 24), dtype=np.uint8))
    elif damage == "not an array":
        file.write_bytes(b"")
    else:
        file.with_name("errors.json").unlink()
    assert torch.equal(make(dataset).__getitems__(range(10))["pixel_values"], resized(dataset))


BUILD = """
import sys, time, datasets
import reid_hub.data.images as images
decode = images.decode_image
def slow(source, name):
    print("decoding", flush=True)
    time.sleep(0.2)
    return decode(source, name)
images.decode_image = slow
images.ImageDataset(datasets.load_from_disk(sys.argv[1]), (24, 12), cache_dir=sys.argv[2], progress=False)
"""


def test_a_killed_process_leaves_nothing_that_is_taken_for_whole(make, tmp_path):
    split(tmp_path / "people", count=40).save_to_disk(tmp_path / "table")
    command = [sys.executable, "-c", BUILD, str(tmp_path / "table"), str(tmp_path / "cache")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "decoding\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert [path for path in (tmp_path / "cache").iterdir() if path.name.startswith(".")]
    dataset = datasets.load_from_disk(tmp_path / "table")
    assert torch.equal(make(dataset).__getitems__(range(40))["pixel_values"], resized(dataset))
    left = sorted(path.suffix for path in (tmp_path / "cache").iterdir())
    assert left == ["", ".lock"]


def test_a_full_disk_is_an_error_and_leaves_nothing(make, tmp_path, monkeypatch):
    dataset = split(tmp_path / "people", count=70)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            make(dataset)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]

    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(RuntimeError, match=r"70 decoded images take .*make room, pass another cache_dir"):
        make(dataset)


BROKEN = {2: b"", 5: encoded(4)[:200], 8: b"not an image"}


@pytest.mark.parametrize("max_bytes", [1 << 30, 0], ids=["stored", "on the fly"])
def test_images_that_cannot_be_read_are_left_out_and_reported_once(make, tmp_path, max_bytes):
    dataset = split(tmp_path / "people", broken=BROKEN)
    (tmp_path / "people" / "003.img").unlink()
    for _ in range(2):  # decoded now, and read from the cache
        with pytest.warns(UserWarning, match="4 of 10 images cannot be read and are left out") as caught:
            images = make(dataset, max_bytes=max_bytes, on_error="skip")
        assert len(caught) == 1
        assert all(name in str(caught[0].message) for name in ("002.img", "003.img", "005.img", "008.img"))
        good = [0, 1, 4, 6, 7, 9]
        assert len(images) == len(images.pids) == len(images.camids) == 6
        assert images.pids.tolist() == [row // 3 for row in good]
        batch = images.__getitems__(range(6))
        assert torch.equal(batch["pixel_values"], resized(dataset.select(good)))
        assert batch["indices"].tolist() == list(range(6))
        assert images.dataset["path"][:] == [f"{row:03d}.img" for row in good]


def test_an_image_that_cannot_be_read_stops_by_default(make, tmp_path):
    dataset = split(tmp_path / "people", broken=BROKEN)
    with pytest.raises(ValueError, match=r"(002|005|008).img.*pass on_error='skip'"):
        make(dataset)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]
    lazy = make(dataset, max_bytes=0)
    assert torch.equal(lazy.__getitems__([0])["pixel_values"][0], resized(dataset.select([0]))[0])
    with pytest.raises(ValueError, match=r"002.img"):
        lazy.__getitems__([2])
    with pytest.warns(UserWarning, match="3 of 10"):
        make(dataset, on_error="skip")
    with pytest.raises(ValueError, match="3 of 10 images cannot be read: repair them or pass on_error='skip'"):
        make(dataset)
    (tmp_path / "people" / "000.img").unlink()
    with pytest.raises(FileNotFoundError, match=r"000.img"):
        lazy.__getitems__([0])


def test_nothing_readable_is_an_error_also_when_skipping(make, tmp_path):
    dataset = split(tmp_path / "people", count=3, broken={0: b"", 1: b"x", 2: b"y"})
    with pytest.raises(ValueError, match="3 of 3 images cannot be read, so no image is left"):
        make(dataset, on_error="skip")


def test_a_loader_with_a_spawned_worker_gives_whole_batches(make, tmp_path):
    dataset = split(tmp_path / "people", count=18)
    images = make(dataset)
    images.__getitems__([0])
    assert len(pickle.dumps(images)) < 20_000 + len(pickle.dumps(dataset))
    sampler = IdentitySampler(images.pids, 2, 2, seed=0)
    loader = DataLoader(
        images,
        batch_sampler=BatchSampler(sampler, 4, drop_last=False),
        collate_fn=ImageDataset.collate,
        num_workers=1,
        multiprocessing_context="spawn",
    )
    expected = np.reshape(list(sampler), (-1, 4)).tolist()
    pixels = resized(dataset)
    batches = list(loader)
    assert [batch["indices"].tolist() for batch in batches] == expected
    for batch in batches:
        assert torch.equal(batch["pixel_values"], pixels[batch["indices"]])
        assert batch["pids"].tolist() == [index // 3 for index in batch["indices"].tolist()]


def test_wrong_arguments_are_refused(make, tmp_path):
    dataset = split(tmp_path / "people", count=2)
    with pytest.raises(ValueError, match="got DatasetDict; take one: splits"):
        make(datasets.DatasetDict(train=dataset))
    with pytest.raises(ValueError, match=r"\['camid', 'pid'\] missing"):
        make(dataset.remove_columns(["pid", "camid"]))
    with pytest.raises(ValueError, match="no images"):
        make(dataset.select([]))
    with pytest.raises(ValueError, match="did you mean 'bicubic'"):
        make(dataset, interpolation="bicubc")
    with pytest.raises(ValueError, match="choices are raise, skip"):
        make(dataset, on_error="ignore")
    for size in (24, (24, 12, 3), (24, 0), (24.0, 12)):
        with pytest.raises(ValueError, match=r"image_size must be \(height, width\)"):
            make(dataset, image_size=size)


def test_shorter_side_and_centre_as_torchvision(tmp_path, monkeypatch):
    """And images kept for crops: their sizes as they are shown, and no larger than the largest of them."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    originals = [Image.effect_noise(size, 90).convert("RGB") for size in ((31, 45), (45, 30), (64, 17))]
    for number, original in enumerate(originals):
        exif = Image.Exif()
        exif[0x0112] = 6 if number == 2 else 1  # the last one is shown turned, 17 wide and 64 high
        original.save(tmp_path / f"{number}.png", exif=exif)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    paths = [str(tmp_path / f"{number}.png") for number in range(3)]
    split = datasets.Dataset.from_dict({"image": paths, "label": [1, 0, 1]}, features=features)
    images = ImageDataset(split, (16, 12), resize_shortest=17)
    assert images.pids.tolist() == [1, 0, 1]
    assert images.camids.tolist() == [-1, -1, -1]
    transform = transforms.Compose([transforms.Resize(17), transforms.CenterCrop((16, 12)), transforms.PILToTensor()])
    shown = [originals[0], originals[1], originals[2].transpose(Image.Transpose.ROTATE_270)]
    for row, original in enumerate(shown):
        assert torch.equal(images[row]["pixel_values"], transform(original))
    assert image_sizes(split).tolist() == [[45, 31], [30, 45], [64, 17]]
    originals[2].save(tmp_path / "turned.tif", exif=exif)  # whose size Pillow says as it is shown
    tiff = datasets.Dataset.from_dict({"image": [str(tmp_path / "turned.tif")]})
    assert image_sizes(tiff.cast_column("image", datasets.Image())).tolist() == [[64, 17]]
    options = Augmentation(resized_area=(0.08, 1), pad=0)
    for size, kept in (((28, 28), (32, 32)), ((224, 35), (64, 40))):
        crops = training_images(split, size, options)
        assert crops.image_size == kept
        assert crops.__getitems__([2, 0])["sizes"].tolist() == [[64, 17], [45, 31]]
    assert "sizes" not in training_images(split, (16, 12), Augmentation())[0]
