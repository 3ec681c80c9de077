"""Every layout of a classification set, built on disk, against rows written out by hand."""

import pickle

import numpy as np
import pytest

from reid_hub.data.hub_classes import as_classes
from reid_hub.data.loading import load_reid_dataset

from .image_files import colour, write_all

pytestmark = pytest.mark.filterwarnings("ignore:.*is not the official data set")


@pytest.fixture
def load(tmp_path):
    def load(name, data_dir, **options):
        return load_reid_dataset(name, data_dir, cache_dir=tmp_path / "cache", **options)

    return load


def rows(split, numbers: dict[str, int]) -> list[tuple[str, str]]:
    """(name of the image by its colour, name of its class) of every row."""
    names = {colour(number): name for name, number in numbers.items()}
    classes = split.features["label"].names
    return [(names[row["image"].getpixel((0, 0))], classes[row["label"]]) for row in split]


@pytest.mark.parametrize(
    ("name", "test"), [("cifar10", "test"), ("cifar100", "test"), ("class_folder", "test"), ("class_folder", "val")]
)
def test_folders_of_classes(tmp_path, load, name, test):
    files = ["train/cat/1.jpg", "train/ape/0.jpg", "train/dog/2.jpg", f"{test}/dog/00.jpg", f"{test}/ape/x/1.jpg"]
    numbers = write_all(tmp_path, files)
    splits = load(name, tmp_path)
    assert list(splits) == ["train", "test"]
    assert set(splits["train"].features) == {"image", "label"}
    assert splits["train"].features["label"].names == ["ape", "cat", "dog"]
    assert rows(splits["train"], numbers) == [(files[1], "ape"), (files[0], "cat"), (files[2], "dog")]
    assert rows(splits["test"], numbers) == [(files[4], "ape"), (files[3], "dog")]
    write_all(tmp_path, [f"{test}/cow/1.jpg"])
    with pytest.raises(ValueError, match=r"classes that .*train lacks: \['cow'\]"):
        load(name, tmp_path)
    write_all(tmp_path, ["train/loose.jpg"])
    with pytest.raises(ValueError, match=r"loose\.jpg lies in no class's folder; move it to .*train/CLASS/"):
        load(name, tmp_path)


def pixels(count, seed):
    """(count, 3072) as CIFAR writes them: red, green and blue planes one after another."""
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)


def write_pickle(path, content):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))


def test_cifar10_as_it_comes(tmp_path, load):
    root = tmp_path / "cifar-10-batches-py"
    for number in range(1, 6):
        write_pickle(root / f"data_batch_{number}", {"labels": [number % 3, 0], "data": pixels(2, number)})
    write_pickle(root / "test_batch", {"labels": [2, 1, 1], "data": pixels(3, 9)})
    write_pickle(root / "batches.meta", {"label_names": ["ape", "bee", "cat"]})
    splits = load("cifar10", tmp_path)
    assert list(splits["train"]["label"]) == [1, 0, 2, 0, 0, 0, 1, 0, 2, 0]
    assert list(splits["test"]["label"]) == [2, 1, 1]
    assert splits["test"].features["label"].names == ["ape", "bee", "cat"]
    flat = pixels(2, 4)[1]  # the second image of the fourth file
    for y, x in ((0, 0), (0, 31), (17, 4)):
        expected = tuple(int(flat[1024 * channel + 32 * y + x]) for channel in range(3))
        assert splits["train"][7]["image"].getpixel((x, y)) == expected
    write_pickle(root / "test_batch", {"labels": [2, 1, 3], "data": pixels(3, 9)})
    with pytest.raises(ValueError, match="test_batch must hold rows of 3072 bytes with a label each"):
        load("cifar10", tmp_path)
    write_pickle(root / "test_batch", {"labels": print, "data": pixels(3, 9)})
    with pytest.raises(ValueError, match="could run code"):
        load("cifar10", tmp_path)
    (root / "test_batch").unlink()
    with pytest.raises(FileNotFoundError, match="test_batch"):
        load("cifar10", root)


def test_cifar100_by_its_fine_labels(tmp_path, load):
    for part, labels in (("train", [1, 0]), ("test", [0])):
        content = {"fine_labels": labels, "coarse_labels": [0] * len(labels), "data": pixels(len(labels), 0)}
        write_pickle(tmp_path / part, content)
    write_pickle(tmp_path / "meta", {"fine_label_names": ["apple", "crab"], "coarse_label_names": ["thing"]})
    splits = load("cifar100", tmp_path)
    assert list(splits["train"]["label"]) == [1, 0]
    assert splits["test"].features["label"].names == ["apple", "crab"]
    (tmp_path / "meta").unlink()
    with pytest.raises(FileNotFoundError, match="expected meta, train, test"):
        load("cifar100", tmp_path)


def test_caltech256_trains_on_the_first_of_every_class(tmp_path, load):
    files = [f"{folder}/{folder[:3]}_{n:04}.jpg" for folder in ("001.ak47", "257.clutter") for n in range(1, 64)]
    numbers = write_all(tmp_path / "256_ObjectCategories", files)
    splits = load("caltech256", tmp_path)
    expected = [(file, file[4:].partition("/")[0]) for file in files]
    assert rows(splits["train"], numbers) == expected[:60] + expected[63:123]
    assert rows(splits["test"], numbers) == expected[60:63] + expected[123:]
    assert len(load("caltech256", tmp_path, train_per_class=5)["train"]) == 10
    for count in (0, 2.5, "2"):
        with pytest.raises(ValueError, match=f"train_per_class must be a number, at least 1, got {count!r}"):
            load("caltech256", tmp_path, train_per_class=count)
    with pytest.raises(ValueError, match="more than 63 images, so none is left to test on"):
        load("caltech256", tmp_path, train_per_class=63)


def test_dtd_trains_on_train_and_val(tmp_path, load):
    files = [f"{kind}/{kind}_{n}.jpg" for kind in ("banded", "woven") for n in (1, 2, 3)]
    numbers = write_all(tmp_path / "dtd" / "images", files)
    lists = {"train1": [files[3]], "val1": [files[0], files[4]], "test1": [files[2]]}
    lists |= {"train7": [files[0]], "val7": [files[4]], "test7": [files[5]]}
    (tmp_path / "dtd" / "labels").mkdir()
    for name, listed in lists.items():
        (tmp_path / "dtd" / "labels" / f"{name}.txt").write_text("".join(f"{file}\n" for file in listed))
    splits = load("dtd", tmp_path)
    assert rows(splits["train"], numbers) == [(files[3], "woven"), (files[0], "banded"), (files[4], "woven")]
    assert rows(splits["test"], numbers) == [(files[2], "banded")]
    assert rows(load("dtd", tmp_path, split=7)["test"], numbers) == [(files[5], "woven")]
    with pytest.raises(ValueError, match="split must be one of DTD's, 1 to 10, got 11"):
        load("dtd", tmp_path, split=11)
    (tmp_path / "dtd" / "labels" / "test1.txt").write_text("knitted/1.jpg\n")
    with pytest.raises(ValueError, match=r"images/ lacks: \['knitted'\]"):
        load("dtd", tmp_path)


def test_cub200_by_its_lists(tmp_path, load):
    root = tmp_path / "CUB_200_2011"
    files = ["001.Albatross/a.jpg", "001.Albatross/b.jpg", "002.Auklet/a.jpg", "002.Auklet/b.jpg"]
    numbers = write_all(root / "images", files)
    (root / "images.txt").write_text("".join(f"{n} {file}\n" for n, file in enumerate(files, 1)))
    (root / "image_class_labels.txt").write_text("1 1\n2 1\n3 2\n4 2\n")
    (root / "train_test_split.txt").write_text("1 0\n2 1\n3 1\n4 0\n")
    (root / "classes.txt").write_text("1 001.Albatross\n2 002.Auklet\n")
    splits = load("cub200", tmp_path)
    assert rows(splits["train"], numbers) == [(files[1], "Albatross"), (files[2], "Auklet")]
    assert rows(splits["test"], numbers) == [(files[0], "Albatross"), (files[3], "Auklet")]
    for name, text in (
        ("image_class_labels.txt", "1 1\n2 0\n3 2\n4 2\n"),
        ("train_test_split.txt", "1 0\n2 yes\n3 1\n4 0\n"),
    ):
        before = (root / name).read_text()
        (root / name).write_text(text)
        with pytest.raises(ValueError, match=r"must be numbers of classes\.txt"):
            load("cub200", tmp_path)
        (root / name).write_text(before)
    (root / "train_test_split.txt").write_text("1 0\n2 1\n")
    with pytest.raises(ValueError, match="do not number the same images"):
        load("cub200", tmp_path)
    (root / "train_test_split.txt").write_text("one\n")
    with pytest.raises(ValueError, match="must hold lines like '1 value'"):
        load("cub200", tmp_path)


def test_sets_of_the_hub_are_told_by_their_columns():
    import datasets

    classes = {name: datasets.ClassLabel(names=["x", "y"]) for name in ("fine_label", "coarse_label")}
    features = datasets.Features({"img": datasets.Image(), **classes, "id": datasets.Value("int64")})
    image = np.zeros((2, 2, 3), np.uint8)

    def made(labels):
        columns = {"img": [image] * len(labels), "fine_label": labels, "coarse_label": [0] * len(labels)}
        return datasets.Dataset.from_dict({**columns, "id": list(range(len(labels)))}, features=features)

    splits = datasets.DatasetDict({"train": made([1, 0]), "validation": made([1]), "extra": made([0])})
    with pytest.raises(ValueError, match="class columns fine_label, coarse_label: choose one with the option label"):
        as_classes(splits, "me/set")
    found = as_classes(splits, "me/set", "fine_label")
    assert {name: list(split["label"]) for name, split in found.items()} == {"train": [1, 0], "test": [1]}
    assert set(found["train"].column_names) == {"image", "label"}
    # As ImageNet has it: a test split whose labels are kept back.
    found = as_classes(datasets.DatasetDict({**splits, "test": made([-1, -1])}), "me/set", "fine_label")
    assert list(found["test"]["label"]) == [1]
    with pytest.raises(ValueError, match=r"it needs train and one of test.* with labels"):
        as_classes(datasets.DatasetDict({"train": splits["train"], "test": made([-1])}), "me/set", "fine_label")
    with pytest.raises(ValueError, match=r"has the splits extra; it needs train and one of test.* with labels"):
        as_classes(datasets.DatasetDict({"extra": splits["extra"]}), "me/set", "fine_label")
    assert as_classes(datasets.DatasetDict({"train": splits["train"].remove_columns(list(classes))}), "me/set") is None
