"""The synthetic data set as rows for the loader, and contact sheets of it."""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from reid_hub.data.synthetic.camera import Camera, photograph
from reid_hub.data.synthetic.person import Person
from reid_hub.errors import ReIDError
from reid_hub.files import atomic_file

# Follows the seed of the data set in a generator's seed, so that people of different parts never share a generator.
_TRAIN, _TEST, _DISTRACTOR = 0, 1, 2


def synthetic_splits(
    *,
    seed: int = 0,
    num_train_ids: int = 160,
    num_test_ids: int = 60,
    images_per_id: int = 16,
    num_cameras: int = 6,
    cameras_per_id: int = 4,
    num_distractors: int = 240,
    image_size: tuple[int, int] = (128, 64),
) -> dict[str, list[dict]]:
    """Generate the data set: train, query and gallery rows `{"image": {"bytes", "path"}, "pid", "camid", "path"}`.

    Images are JPEG bytes of `image_size` (height, width). Every identity is seen `images_per_id` times, evenly by
    `cameras_per_id` of the cameras. Train pids are 0..num_train_ids - 1; test pids start at num_train_ids + 1. The
    query holds the first image of every test identity and camera, the gallery all others and the distractors: other
    people with pid 0 and one image each. An image depends only on the seed, its split, identity and number, so asking
    for more identities or images does not change the others.

    Raises:
        ValueError: if a number is too small for the protocol.
    """
    least = {
        "seed": (seed, 0),
        "num_train_ids": (num_train_ids, 2),
        "num_test_ids": (num_test_ids, 1),
        "cameras_per_id": (cameras_per_id, 2),
        "num_cameras": (num_cameras, cameras_per_id),
        # One image for the query, one for the gallery: then every query has a true match from another camera.
        "images_per_id": (images_per_id, 2 * cameras_per_id),
        "num_distractors": (num_distractors, 0),
        "the smaller side of image_size": (min(image_size), 16),
    }
    for name, (value, low) in least.items():
        if value < low:
            raise ReIDError(f"{name} must be at least {low}, got {value}")
    cameras = [Camera.sample(camid, seed=seed) for camid in range(num_cameras)]

    def rows(stream: int, index: int, pid: int, numbers: range, per_id: int) -> list[dict]:
        person_rng = np.random.default_rng([seed, stream, index])
        person = Person.sample(person_rng)
        seen_by = person_rng.permutation(num_cameras)[:per_id]
        found = []
        for number in numbers:
            camid = int(seen_by[number % per_id])
            # number + 1: seeds are padded with zeros, so a final 0 would give the generator of the person.
            rng = np.random.default_rng([seed, stream, index, number + 1])
            name = f"{('train', 'test', 'distractor')[stream]}/{index:04d}_c{camid}_{number:03d}.jpg"
            image = {"bytes": _encode(photograph(person, cameras[camid], rng, image_size)), "path": name}
            found.append({"image": image, "pid": pid, "camid": camid, "path": name})
        return found

    every = range(images_per_id)
    train = [row for index in range(num_train_ids) for row in rows(_TRAIN, index, index, every, cameras_per_id)]
    query, gallery = [], []
    for index in range(num_test_ids):
        found = rows(_TEST, index, num_train_ids + 1 + index, every, cameras_per_id)
        query += found[:cameras_per_id]
        gallery += found[cameras_per_id:]
    for index in range(num_distractors):
        gallery += rows(_DISTRACTOR, index, 0, range(1), 1)
    return {"train": train, "query": query, "gallery": gallery}


def contact_sheet(rows: list[dict], path: str | Path, *, columns: int = 16, gap: int = 2) -> None:
    """Write the images of `rows` as one image, `columns` per line; the suffix of `path` gives the format.

    Raises:
        ValueError: if there are no rows.
    """
    if not rows:
        raise ReIDError("a contact sheet needs at least one row, got none")
    images = [Image.open(BytesIO(row["image"]["bytes"])) for row in rows]
    width, height = (max(image.size[axis] for image in images) + gap for axis in (0, 1))
    columns = min(columns, len(images))
    sheet = Image.new("RGB", (columns * width + gap, -(-len(images) // columns) * height + gap), "white")
    for number, image in enumerate(images):
        sheet.paste(image, (gap + number % columns * width, gap + number // columns * height))
    with atomic_file(path) as temporary:
        sheet.save(temporary)


def _encode(pixels: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()
