from collections import Counter, defaultdict
from dataclasses import replace
from io import BytesIO
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from reid_hub.data.synthetic import VIEWS, Camera, Person, Pose, contact_sheet, draw_person, photograph, splits
from reid_hub.data.synthetic.person import CHOICES, GARMENT_COLOURS, RANGES

synthetic_splits = splits.synthetic_splits
SMALL = {"num_train_ids": 3, "num_test_ids": 2, "images_per_id": 8, "num_distractors": 3, "image_size": (64, 32)}


def pixels(row):
    return np.asarray(Image.open(BytesIO(row["image"]["bytes"])))


def named(rows):
    return {row["path"]: row["image"]["bytes"] for row in rows}


def figure(person, heading, image_size=(256, 128), **pose):
    """The drawn person as RGBA, standing still with the feet at 0.95 and a stature of 0.88 of the height."""
    return np.asarray(draw_person(person, Pose(heading, stride=0, **pose), image_size)).astype(float)


def nearest_colour(image, across, up):
    """Name of the garment colour that most pixels about a body point (in statures) are nearest to."""
    height, width = image.shape[:2]
    x, y = round(width / 2 + across * 0.88 * height), round((0.95 - 0.88 * up) * height)
    window = image[y - 2 : y + 3, x - 2 : x + 3, :3].reshape(-1, 1, 3)
    names, colours = list(GARMENT_COLOURS), np.array(list(GARMENT_COLOURS.values()), float)
    nearest = np.abs(window - colours).sum(-1).argmin(1)
    return names[Counter(nearest.tolist()).most_common(1)[0][0]]


# Splits --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small():
    return synthetic_splits(**SMALL)


def test_the_same_call_draws_the_same_bytes_whatever_the_global_generator_does(small):
    np.random.seed(5)  # noqa: NPY002
    again = synthetic_splits(**SMALL)
    assert np.random.randint(2**31) == np.random.RandomState(5).randint(2**31)  # noqa: NPY002
    assert again == small


def test_another_seed_draws_other_people_and_cameras(small):
    other = synthetic_splits(**SMALL, seed=1)
    assert not set(named(other["train"]).values()) & set(named(small["train"]).values())
    assert Camera.sample(0, seed=1) != Camera.sample(0, seed=0)


def test_an_image_does_not_depend_on_how_many_others_are_drawn_before_it(small):
    more = synthetic_splits(num_train_ids=4, num_test_ids=3, images_per_id=10, num_distractors=5, image_size=(64, 32))
    for split in ("train", "query", "gallery"):
        assert named(small[split]).items() <= named(more[split]).items()


def test_an_image_can_be_drawn_alone(small):
    row = small["train"][10]
    index, number = 1, 2
    person = Person.sample(np.random.default_rng([0, 0, index]))
    rng = np.random.default_rng([0, 0, index, number + 1])
    alone = photograph(person, Camera.sample(row["camid"]), rng, SMALL["image_size"])
    assert row["pid"] == index
    assert np.abs(alone.astype(int) - pixels(row)).mean() < 8  # JPEG is all that lies between


def test_no_person_of_one_split_is_in_another_and_every_pid_is_one_person(monkeypatch):
    seen = []
    monkeypatch.setattr(splits, "photograph", lambda person, *rest: seen.append(person) or photograph(person, *rest))
    found = synthetic_splits(**SMALL)
    num_train, num_test = len(found["train"]), SMALL["num_test_ids"] * SMALL["images_per_id"]
    train, test = seen[:num_train], seen[num_train : num_train + num_test]
    strangers = seen[num_train + num_test :]
    assert len(set(train)) == 3
    assert len(set(test)) == 2
    assert len(set(strangers)) == len(strangers) == 3
    assert len(set(seen)) == 8
    assert len(set(zip((row["pid"] for row in found["train"]), train, strict=True))) == 3


def test_counts_pids_and_cameras_follow_the_protocol(small):
    train, query, gallery = small["train"], small["query"], small["gallery"]
    assert Counter(row["pid"] for row in train) == {0: 8, 1: 8, 2: 8}
    test_pids = {row["pid"] for row in query}
    assert min(test_pids) > 2
    assert len(test_pids) == 2
    assert {row["pid"] for row in gallery} == test_pids | {0}
    assert sum(row["pid"] == 0 for row in gallery) == 3
    assert Counter(Counter((row["pid"], row["camid"]) for row in query).values()) == {1: 8}
    cameras = defaultdict(set)
    for row in gallery:
        cameras[row["pid"]].add(row["camid"])
    assert all(cameras[row["pid"]] - {row["camid"]} for row in query)
    paths = [row["path"] for rows in small.values() for row in rows]
    assert len(paths) == len(set(paths)) == 3 * 8 + 2 * 8 + 3


def test_default_identities_meet_every_camera():
    found = synthetic_splits(num_train_ids=8, num_test_ids=1, images_per_id=8, num_distractors=0, image_size=(32, 16))
    assert {row["camid"] for row in found["train"]} == set(range(6))


@pytest.mark.parametrize("image_size", [(128, 64), (64, 32), (96, 64)])
def test_images_are_rgb_of_the_asked_size_with_contrast(image_size):
    found = synthetic_splits(**{**SMALL, "image_size": image_size})
    for row in found["train"]:
        image = Image.open(BytesIO(row["image"]["bytes"]))
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", image_size[::-1])
        assert np.asarray(image).std() > 15
    taken = photograph(Person(), Camera.sample(0), np.random.default_rng(0), image_size)
    assert taken.dtype == np.uint8
    assert taken.shape == (*image_size, 3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"num_train_ids": 1}, "num_train_ids must be at least 2, got 1"),
        ({"num_test_ids": 0}, "num_test_ids must be at least 1"),
        ({"cameras_per_id": 1}, "cameras_per_id must be at least 2"),
        ({"num_cameras": 3}, "num_cameras must be at least 4, got 3"),
        ({"images_per_id": 7}, "images_per_id must be at least 8, got 7"),
        ({"num_distractors": -2}, "num_distractors must be at least 0"),
        ({"image_size": (64, 8)}, "image_size must be at least 16, got 8"),
    ],
)
def test_numbers_too_small_for_the_protocol_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        synthetic_splits(**{**SMALL, **wrong})


def slow_mean_average_precision(query, gallery, describe):
    """Market-1501's rule by a plain loop: the same person in the same camera is left out, nearest first."""
    precisions = []
    known = [(describe(row), row["pid"], row["camid"]) for row in gallery]
    for row in query:
        mine = describe(row)
        ranked = sorted(
            (float(((mine - other) ** 2).sum()), pid == row["pid"])
            for other, pid, camid in known
            if not (pid == row["pid"] and camid == row["camid"])
        )
        hits, total = 0, 0.0
        for rank, (_, hit) in enumerate(ranked, 1):
            if hit:
                hits += 1
                total += hits / rank
        precisions.append(total / hits)
    return sum(precisions) / len(precisions)


def mean_colour(row):
    return pixels(row).reshape(-1, 3).mean(0)


def direction_of_mean_colour(row):
    colour = mean_colour(row)
    return colour / np.linalg.norm(colour)


def test_mean_colour_does_not_find_people():
    found = synthetic_splits(num_train_ids=2, num_test_ids=30, images_per_id=8, num_distractors=60, image_size=(64, 32))
    for describe in (mean_colour, direction_of_mean_colour):
        assert slow_mean_average_precision(found["query"], found["gallery"], describe) < 0.06


# Cameras -------------------------------------------------------------------------------------------------------------


def test_every_two_cameras_show_the_same_scene_in_measurably_different_colours():
    scene = Camera.sample(0)
    shared = {name: getattr(scene, name) for name in ("heading", "spread", "stature", "jitter", "place", "place_seed")}

    def chroma(camera):
        mean = photograph(Person(), replace(camera, **shared), np.random.default_rng(3)).reshape(-1, 3).mean(0)
        return mean / mean.sum()

    cameras = [chroma(Camera.sample(camid)) for camid in range(6)]
    distances = [np.abs(one - other).sum() for one, other in combinations(cameras, 2)]
    noisier = np.abs(chroma(replace(scene, noise=2 * scene.noise)) - cameras[0]).sum()
    assert min(distances) > max(0.02, 10 * noisier)


def test_cameras_see_people_from_their_own_usual_side():
    headings = [Camera.sample(camid).heading for camid in range(4)]
    assert sorted(headings) == sorted(VIEWS.values())


def test_one_person_through_all_cameras_differs_but_keeps_the_garments():
    person = Person(upper="long-sleeve", upper_colour="red", lower_colour="blue")
    images = []
    for camid in range(6):
        camera = replace(Camera.sample(camid), occlusion=0, jitter=0)
        image = photograph(person, camera, np.random.default_rng(camid)).astype(float)
        redness = image[..., 0] - image[..., 2]
        upper, lower = redness[40:60, 29:35].mean(), redness[75:95, 26:38].mean()
        assert upper > lower + 15
        images.append(image)
    assert min(np.abs(one - other).mean() for one, other in combinations(images, 2)) > 10


# Figures -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heading", VIEWS.values())
def test_upper_and_lower_garment_keep_their_colours_in_every_view(heading):
    image = figure(Person(upper="long-sleeve", upper_colour="green", lower_colour="beige"), heading)
    assert nearest_colour(image, 0.0, 0.58) == "green"
    assert nearest_colour(image, 0.045 if heading in (0, 180) else 0.0, 0.35) == "beige"


@pytest.mark.parametrize(
    ("traits", "point", "front", "back"),
    [
        ({"bag": "backpack", "bag_colour": "red"}, (0.03, 0.62), "blue", "red"),
        ({"upper_pattern": "logo", "upper_accent": "white"}, (0.0, 0.7), "white", "blue"),
        ({"upper": "jacket-open", "upper_accent": "beige"}, (0.0, 0.6), "beige", "blue"),
        ({"hair": "long", "hair_colour": "black"}, (0.0, 0.77), "blue", "black"),
    ],
)
def test_what_is_worn_on_one_side_is_seen_from_that_side_only(traits, point, front, back):
    person = Person(**{"upper_colour": "blue", **traits})
    assert nearest_colour(figure(person, VIEWS["front"]), *point) == front
    assert nearest_colour(figure(person, VIEWS["back"]), *point) == back


@pytest.mark.parametrize("bag", ["shoulder-bag", "handbag", "trolley"])
def test_a_bag_on_the_left_is_right_in_the_image_from_the_front_and_left_from_behind(bag):
    with_bag = Person(bag=bag, bag_colour="red", upper_colour="white", lower_colour="white", shoes="white")
    for view, sign in (("front", 1), ("back", -1)):
        changed = np.abs(figure(with_bag, VIEWS[view]) - figure(replace(with_bag, bag="none"), VIEWS[view])).sum(-1)
        middle = (changed * np.arange(-63.5, 64)).sum() / changed.sum()
        assert sign * middle > 8


@pytest.mark.parametrize("seed", range(6))
def test_a_mirrored_person_is_the_person_met_from_the_other_side(seed):
    person = Person.sample(np.random.default_rng(seed))
    other = replace(person, bag_side="right" if person.bag_side == "left" else "left")
    image = draw_person(person, Pose(50, phase=0.2))
    mirror = draw_person(other, Pose(-50, phase=0.7)).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    difference = np.abs(np.asarray(image).astype(int) - np.asarray(mirror)).max(-1)
    figure_area = (np.asarray(image)[..., 3] > 0).sum()
    # Rasterising is one-sided, so rims may move by a sub-pixel; a part on the wrong side would be far more.
    assert (difference > 100).sum() < 0.04 * figure_area


@pytest.mark.parametrize("name", [name for name in CHOICES if not name.endswith(("colour", "accent", "side"))])
def test_every_choice_looks_different(name):
    settings = {"lower_pattern": {"lower": "trousers"}, "lower": {"upper": "hoodie"}}.get(name, {})
    images = [
        np.concatenate([figure(Person(**{**settings, name: choice}), heading, (128, 64)) for heading in (20, 200)])
        for choice in CHOICES[name]
    ]
    for one, other in combinations(images, 2):
        assert (np.abs(one - other).max(-1) > 20).sum() >= 20


def test_a_figure_drawn_larger_is_the_same_figure():
    person, pose = Person(bag="handbag", upper_pattern="stripes"), Pose(30, phase=0.2)
    small, large = draw_person(person, pose, (128, 64)), draw_person(person, pose, (512, 256)).reduce(4)
    difference = np.abs(np.asarray(small).astype(float) - np.asarray(large))
    assert difference.mean() < 6
    assert np.abs(np.asarray(small)[..., 3].mean() - np.asarray(large)[..., 3].mean()) < 3  # rims are a pixel wide


def test_the_box_moves_and_scales_the_figure():
    solid = np.asarray(draw_person(Person(), image_size=(200, 200), centre=0.3, feet=0.8, stature=0.6))[..., 3] > 128
    rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
    assert rows[-1] == pytest.approx(160, abs=4)
    assert rows[-1] - rows[0] == pytest.approx(120, abs=4)
    assert (columns[0] + columns[-1]) / 2 == pytest.approx(60, abs=4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        *((lambda n=name, v=low - 0.01: Person(**{n: v}), f"{name} must lie in") for name, (low, _) in RANGES.items()),
        *(
            (lambda n=name, v=high + 0.01: Person(**{n: v}), f"{name} must lie in")
            for name, (_, high) in RANGES.items()
        ),
        (lambda: Person(height=float("nan")), "height must lie in"),
        (lambda: Person(bag="backpak"), "did you mean 'backpack'"),
        (lambda: Person(upper_colour="mauve"), "unknown upper_colour 'mauve'"),
        (lambda: Pose(float("inf")), "heading must be a finite number"),
        (lambda: Pose(stride=1.5), r"stride must lie in \[0, 1\], got 1.5"),
        *(
            (lambda change=change: replace(Camera.sample(0), **change), message)
            for change, message in [
                ({"place": "parc"}, "did you mean 'park'"),
                ({"occlusion": 1.1}, r"occlusion is a probability and must lie in \[0, 1\], got 1.1"),
                ({"gamma": 0.0}, "gamma must be positive, got 0.0"),
                ({"blur": -1.0}, "blur must not be negative"),
                ({"cast": (1.0, 1.0)}, "cast must be three positive factors"),
            ]
        ),
        (lambda: draw_person(Person(), image_size=(0, 64)), "image_size and stature must be positive"),
        (lambda: draw_person(Person(), stature=-1), "image_size and stature must be positive"),
    ],
)
def test_values_outside_of_their_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Contact sheet -------------------------------------------------------------------------------------------------------


def test_contact_sheet_lays_the_images_out_in_lines(small, tmp_path):
    rows = small["train"][:5]
    contact_sheet(rows, tmp_path / "sheet.png", columns=3, gap=1)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (2 * 65 + 1, 3 * 33 + 1, 3)
    for number, row in enumerate(rows):
        top, left = 1 + number // 3 * 65, 1 + number % 3 * 33
        np.testing.assert_array_equal(sheet[top : top + 64, left : left + 32], pixels(row))
    assert (sheet[66:, 67:] == 255).all()


def test_contact_sheet_without_rows_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one row"):
        contact_sheet([], tmp_path / "sheet.png")
    assert not list(tmp_path.iterdir())
