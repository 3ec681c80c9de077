import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from reid_hub.data import decoding
from reid_hub.data.decoding import check_images, decode_image, to_rgb

from .image_files import DAMAGED_EXIF


def encoded(image, format="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.fixture
def gradient():
    """(24, 16, 3) uint8 with every channel and both axes telling apart."""
    y, x = np.mgrid[0:24, 0:16]
    return np.stack([y * 10, x * 15, 255 - y * 5], axis=2).astype(np.uint8)


def test_rgb_pixels_are_untouched(gradient, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(gradient).save(path)
    for source in (path, str(path), path.read_bytes(), {"path": str(path), "bytes": None}):
        image = decode_image(source)
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), gradient)


def test_exif_rotation_is_applied(gradient):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side: the viewer turns it by 90 degrees clockwise
    lying = Image.fromarray(np.rot90(gradient).copy())
    np.testing.assert_array_equal(np.asarray(decode_image(encoded(lying, exif=exif))), gradient)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_every_orientation_is_turned_as_pillow_does(format, gradient):
    for orientation in range(10):  # 0 and 9 are none
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encoded(Image.fromarray(gradient), format, exif=exif)
        expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
        assert expected.shape == ((16, 24, 3) if 5 <= orientation <= 8 else (24, 16, 3))
        np.testing.assert_array_equal(np.asarray(decode_image(data)), expected)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("damage", DAMAGED_EXIF)
def test_a_damaged_exif_block_costs_no_image(format, damage, gradient):
    """It is turned where its orientation can be read."""
    exif, orientation = DAMAGED_EXIF[damage]
    data = encoded(Image.fromarray(gradient), format, exif=exif)
    stored = np.asarray(Image.open(io.BytesIO(data)))
    expected = np.rot90(stored, -1) if orientation == 6 else stored
    np.testing.assert_array_equal(np.asarray(decode_image(data)), expected)


def test_whatever_pillow_stumbles_over_is_an_error_that_names_the_image(gradient):
    """A TIFF that says that its pixels start at a text."""
    data = encoded(Image.fromarray(gradient), "TIFF")
    start = struct.pack("<HHI", 273, 4, 1)
    assert data.count(start) == 1
    with pytest.raises(ValueError, match=r"scan\.tif is damaged or cut off: .*copy it again"):
        decode_image(data.replace(start, struct.pack("<HHI", 273, 2, 1)), name="scan.tif")


def test_sixteen_bit_grey_is_scaled_not_clipped():
    values = np.array([[0, 256, 32768, 65535]], dtype=np.uint16)
    image = decode_image(encoded(Image.fromarray(values)))
    assert np.asarray(image)[0, :, 0].tolist() == [0, 1, 128, 255]
    assert np.ptp(np.asarray(image), axis=2).max() == 0


def test_integers_are_read_as_sixteen_bit_and_larger_ones_refused():
    good = Image.fromarray(np.array([[0, 65535]], dtype=np.int32))
    assert np.asarray(to_rgb(good))[0, :, 0].tolist() == [0, 255]
    with pytest.raises(ValueError, match=r"outside 0\.\.65535"):
        to_rgb(Image.fromarray(np.array([[0, 70000]], dtype=np.int32)))


def test_float_images_are_refused():
    with pytest.raises(ValueError, match=r"p\.tif.*unknown range.*8-bit"):
        decode_image(encoded(Image.fromarray(np.zeros((2, 2), np.float32)), "TIFF"), name="p.tif")


def test_transparent_pixels_are_black_and_half_transparent_ones_half_as_bright():
    rgba = np.array([[[200, 100, 50, 255], [200, 100, 50, 0], [200, 100, 50, 128]]], dtype=np.uint8)
    rgb = np.asarray(decode_image(encoded(Image.fromarray(rgba)))).astype(int)
    assert rgb[0, 0].tolist() == [200, 100, 50]
    assert rgb[0, 1].tolist() == [0, 0, 0]
    np.testing.assert_allclose(rgb[0, 2], [100, 50, 25], atol=1)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK"])
def test_other_modes_become_rgb(mode, gradient):
    source = Image.fromarray(gradient).convert(mode)
    form = "TIFF" if mode == "CMYK" else "PNG"
    image = decode_image(encoded(source, form))
    assert (image.mode, image.size) == ("RGB", source.size)
    expected = np.asarray(source.convert("L" if mode in ("L", "LA", "1") else "RGB").convert("RGB")).astype(int)
    np.testing.assert_allclose(np.asarray(image), expected, atol=2)


def test_palette_with_a_transparent_colour_is_black_there():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 0, 0])
    image.putdata([0, 1])
    rgb = np.asarray(decode_image(encoded(image, transparency=1)))
    assert rgb[0].tolist() == [[10, 20, 30], [0, 0, 0]]


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_a_truncated_file_names_the_file_and_what_to_do(format, tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 32, 3), dtype=np.uint8))
    path = tmp_path / "cut"
    path.write_bytes(encoded(noise, format)[:-700])
    with pytest.raises(ValueError, match=r"cut is damaged or cut off.*copy it again"):
        decode_image(path)


def test_empty_missing_and_foreign_files_are_told_apart(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("<html>404</html>")
    with pytest.raises(ValueError, match=r"empty\.jpg is empty \(0 bytes\); copy it again"):
        decode_image(tmp_path / "empty.jpg")
    with pytest.raises(ValueError, match=r"some/key is empty"):
        decode_image(b"", name="some/key")
    with pytest.raises(ValueError, match=r"text\.jpg is not an image"):
        decode_image(tmp_path / "text.jpg")
    for null in (None, {"bytes": None, "path": None}):
        with pytest.raises(ValueError, match=r"image row 7 is null.*remove its row"):
            decode_image(null, name="row 7")
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg does not exist"):
        decode_image(tmp_path / "gone.jpg")


def test_large_jpegs_are_decoded_smaller_and_others_whole(gradient, monkeypatch):
    big = Image.fromarray(gradient).resize((640, 960))
    monkeypatch.setattr(decoding, "LARGE_PIXELS", 640 * 960 // 16)
    small = decode_image(encoded(big, "JPEG", quality=95))
    assert small.size == (160, 240)
    np.testing.assert_allclose(np.asarray(small), np.asarray(big.resize((160, 240), Image.BOX)), atol=12)
    assert decode_image(encoded(big)).size == (640, 960)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [24 * 16 - 1, 24 * 16 // 4])  # Pillow warns above its limit and raises above twice it
def test_images_above_the_bomb_limit_are_refused(limit, gradient, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ValueError, match=r"big\.png .*reduce it first"):
        decode_image(encoded(Image.fromarray(gradient)), name="big.png")


def test_check_images_names_every_damaged_image(tmp_path, gradient):
    from datasets import Dataset
    from datasets import Image as ImageFeature

    for name in ("good.png", "empty.png", "text.png"):
        Image.fromarray(gradient).save(tmp_path / name)
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no")
    names = ["good.png", "empty.png", "text.png"]
    dataset = Dataset.from_dict({"image": [str(tmp_path / n) for n in names], "path": names})
    problems = check_images(dataset.cast_column("image", ImageFeature()), progress=False)
    assert set(problems) == {"empty.png", "text.png"}
    assert "0 bytes" in problems["empty.png"]
    nulls = Dataset.from_dict({"image": [str(tmp_path / "good.png"), None]}).cast_column("image", ImageFeature())
    assert list(check_images(nulls, progress=False)) == ["row 1"]
