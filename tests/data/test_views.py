"""Rectangles against the printed rows, cuts against slices, erased shares against counting pixels."""

from fractions import Fraction

import datasets
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from reid_hub.data.augmentation import Augmentation, BatchTransform
from reid_hub.data.images import ImageDataset
from reid_hub.data.views import VIEW_SETS, VIEWS, ErasedShares, View, choose_views, view_split

# Rows at heights 128 and 256, as the paper's rectangles round.
ROWS = {
    "Hol": ((0, 128), (0, 256)), "Up1": ((32, 64), (64, 128)), "Mid1": ((64, 96), (128, 192)),
    "Dn1": ((96, 128), (192, 256)), "Up2": ((18, 55), (37, 110)), "Mid2": ((55, 91), (110, 183)),
    "Dn2": ((91, 128), (183, 256)),
}  # fmt: skip


def noise(height, width, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def people(sizes):
    images = [noise(height, width, seed) for seed, (height, width) in enumerate(sizes)]
    rows = [{"image": image, "pid": i, "camid": 0, "path": f"{i}.png"} for i, image in enumerate(images)]
    return datasets.Dataset.from_list(rows).cast_column("image", datasets.Image()), images


def test_rows_sizes_and_dims_of_the_paper():
    assert {name: tuple(view.box((height, 64))[::2] for height in (128, 256)) for name, view in VIEWS.items()} == ROWS
    assert sum(view.dim for view in VIEWS.values()) == 2048
    assert [view.image_size for view in VIEWS.values()] == [(256, 128)] + [(224, 224)] * 6
    assert [len(names) for names in VIEW_SETS.values()] == [1, 4, 7]


@pytest.mark.parametrize("height", [29, 64, 128, 333])
def test_each_group_divides_the_image_below_the_head(height):
    for group, parts in ((("Up1", "Mid1", "Dn1"), 4), (("Up2", "Mid2", "Dn2"), 7)):
        rows = [row for name in group for row in range(*VIEWS[name].box((height, 9))[::2])]
        assert rows == list(range(round(height / parts), height))


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_a_cut_is_a_slice_and_commutes_with_the_flip(view):
    image = noise(131, 50)
    top, bottom = view.box((131, 50))[::2]
    assert np.array_equal(np.asarray(view.cut(image)), np.asarray(image)[top:bottom])
    assert view.cut(ImageOps.mirror(image)).tobytes() == ImageOps.mirror(view.cut(image)).tobytes()


def test_a_view_of_a_split_is_cut_before_it_is_resized(tmp_path):
    split, images = people([(120, 40), (64, 33), (300, 100)])
    view = choose_views(["Up2"], view_size=(24, 20))[0]
    seen = ImageDataset(view_split(split, view), view.image_size, cache_dir=tmp_path, progress=False)
    for row, image in enumerate(images):
        top, bottom = round(image.height / 7), round(image.height * 3 / 7)
        band = image.crop((0, top, image.width, bottom)).resize((20, 24), Image.Resampling.BILINEAR)
        assert np.array_equal(seen[row]["pixel_values"].permute(1, 2, 0).numpy(), np.asarray(band))
    assert view_split(split, view)["path"][:] == split["path"][:]
    assert view_split(split, VIEWS["Hol"]) is split
    # The decoded images are found again under the same name, those of another view are not taken for them.
    names = {view_split(split, v)._fingerprint for v in (view, view, VIEWS["Mid2"])}
    assert len(names) == 2


def box_counted(box, top, bottom, left=0.0, right=128.0, fine=8):
    """The erased share of an area by counting points on a grid `fine` times finer than pixels."""
    y0, x0, y1, x1 = box
    ys = top + (np.arange(2000) + 0.5) / 2000 * (bottom - top)
    xs = left + (np.arange(2000) + 0.5) / 2000 * (right - left)
    return ((ys >= y0) & (ys < y1)).mean() * ((xs >= x0) & (xs < x1)).mean()


def random_boxes(count, seed=0):
    rng = np.random.default_rng(seed)
    y, x = np.sort(rng.integers(0, 257, (count, 2)), 1), np.sort(rng.integers(0, 129, (count, 2)), 1)
    return torch.tensor(np.stack([y[:, 0], x[:, 0], y[:, 1], x[:, 1]], 1))


def test_erased_shares_equal_counted_ones():
    boxes = torch.cat([random_boxes(40), torch.full((1, 4), -1)])
    views = tuple(VIEWS.values())
    shares = ErasedShares(views, [], (256, 128))(boxes, torch.zeros(41, dtype=torch.long))
    assert shares.dtype == torch.float64
    for k, view in enumerate(views):
        top, bottom = (256 * float(row) for row in view.rows)
        expected = [box_counted(box, top, bottom) for box in boxes.tolist()]
        np.testing.assert_allclose(shares[:, k], expected, atol=2e-3)
    assert shares[-1].tolist() == [0.0] * 7


def test_erased_shares_add_up_over_a_partition_and_reach_one():
    boxes = random_boxes(50, seed=1)
    area = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).double()
    head = View("Head1", (0, Fraction(1, 4))), View("Head2", (0, Fraction(1, 7)))
    for group in (("Up1", "Mid1", "Dn1"), ("Up2", "Mid2", "Dn2")):
        views = (head[group[0] == "Up2"], *(VIEWS[name] for name in group))
        shares = ErasedShares(views, [], (256, 128))(boxes, torch.zeros(50, dtype=torch.long))
        areas = torch.tensor([256 * 128 * float(view.rows[1] - view.rows[0]) for view in views]).double()
        torch.testing.assert_close((shares * areas).sum(1), area)
    whole = ErasedShares((VIEWS["Hol"], VIEWS["Up1"]), [], (256, 128))
    assert torch.equal(whole(boxes, torch.zeros(50, dtype=torch.long))[:, 0], area / (256 * 128))
    assert whole(torch.tensor([[64, 0, 128, 128]]), torch.tensor([0])).tolist() == [[0.25, 1.0]]


def test_regions_and_masks_of_single_images_are_views():
    split, images = people([(40, 20), (80, 40)])
    boxes = {"0.png": (0.25, 0.5, 0.75, 1.0), "1.png": (0.0, 0.0, 0.5, 0.25)}
    mask = {path: np.zeros(size, bool) for path, size in (("0.png", (40, 20)), ("1.png", (80, 40)))}
    mask["0.png"][10:20, 5:10] = mask["0.png"][12:30, 5:7] = mask["1.png"][::2, 3] = True
    bag, limb = View("bag", region=boxes.__getitem__), View("limb", region=mask.__getitem__)
    assert np.array_equal(np.asarray(bag.cut(images[0], "0.png")), np.asarray(images[0])[10:30, 10:20])
    cut = np.asarray(images[0])[10:30, 5:10] * mask["0.png"][10:30, 5:10, None]
    assert np.array_equal(np.asarray(limb.cut(images[0], "0.png")), cut)
    assert np.array_equal(np.asarray(view_split(split, limb)[0]["image"]), cut)

    shares = ErasedShares((bag, limb), split["path"], (40, 20))
    erased, indices = torch.tensor([[15, 0, 25, 15], [-1] * 4, [0, 0, 10, 5]]), torch.tensor([0, 0, 1])
    found = shares(erased, indices)
    assert found[:, 0].tolist() == [5 * 10 / 200, 0.0, 1.0 * (10 / 20)]
    pixels = mask["0.png"]
    assert found[0, 1] == pytest.approx(pixels[15:25, :15].sum() / pixels.sum())
    assert found[1, 1] == 0


def test_boxes_come_back_in_front_of_the_flip():
    """Erasing the flipped image and unflipping it erases the box that is reported."""
    transform = BatchTransform(Augmentation(pad=0, erasing=0.8, erasing_fill="zero"), [0.0] * 3, [1 / 255] * 3)
    pixels, indices = torch.randint(1, 256, (64, 3, 32, 16), dtype=torch.uint8), torch.arange(64)
    x, boxes = transform(pixels, indices, seed=3, step=1, return_boxes=True, unflip_boxes=True)
    flipped = 0
    for image, original, (y0, x0, y1, x1) in zip(x.round(), pixels.float(), boxes.tolist(), strict=True):
        expected = original.clone()
        if y0 >= 0:
            expected[:, y0:y1, x0:x1] = 0
        if not torch.equal(image, expected):
            assert torch.equal(image.flip(2), expected)
            flipped += 1
    assert 15 < flipped < 50


def test_bad_views_are_refused():
    for words, reason in {
        ("up 1", (0, 1)): "letters, digits", ("a", (0.5, 0.5)): "0 <= top < bottom <= 1",
        ("half", (0, 1)): "cannot be called 'half'", ("training", (0, 1)): "cannot be called 'training'",
        ("a", (0.5, 1.5)): "0 <= top < bottom <= 1", ("a", (-0.5, 0.5)): "0 <= top < bottom",
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=reason):
            View(*words)
    with pytest.raises(ValueError, match=r"image p.jpg of 2x5 pixels is too small for view 'Dn2'"):
        View("Dn2", (Fraction(2, 7), Fraction(3, 7))).cut(noise(2, 5), "p.jpg")
    with pytest.raises(ValueError, match=r"outside of image 0.png"):
        View("a", region=lambda path: (0, 0, 1.2, 1)).cut(noise(9, 9), "0.png")
    with pytest.raises(ValueError, match=r"no region for image 0.png"):
        View("a", region={}.__getitem__).cut(noise(9, 9), "0.png")
    with pytest.raises(ValueError, match=r"must be \(9, 9\) like 0.png, got \(3, 3\)"):
        View("a", region=lambda path: np.ones((3, 3), bool)).cut(noise(9, 9), "0.png")
    with pytest.raises(ValueError, match="did you mean 'Up2'"):
        choose_views(["Up"])
    with pytest.raises(ValueError, match="each view once"):
        choose_views(["Up1", "Up1"])
    with pytest.raises(ValueError, match="NAME=TOP:BOTTOM"):
        choose_views(["Head=0:0"])
    assert choose_views(["Head=0:1/7"])[0].rows == (0, Fraction(1, 7))
