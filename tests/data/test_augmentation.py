import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from scipy import stats
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as TF

from reid_hub.data.augmentation import Augmentation, BatchTransform
from reid_hub.data.draws import Draws
from reid_hub.data.resized_crop import draw_crops

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OFF = Augmentation(flip=0, pad=0, erasing=0)
FLIP, TOP, LEFT, ANGLE, BRIGHTNESS, CONTRAST, SATURATION, ORDER, ERASE, ERASE_TOP, ERASE_LEFT, NOISE = range(12)
AREAS, ASPECTS, TRIES = 16, 116, 100
CROP_TOP, CROP_LEFT, CROP_AREAS, CROP_ASPECTS, LIGHTS = 12, 13, 216, 226, 236
# (colour, eigenvalue), from fb.resnet.torch.
PRINCIPAL_COLOURS = [
    ((-0.5675, -0.5808, -0.5836), 0.2175), ((0.7192, -0.0045, -0.6948), 0.0188), ((0.4009, -0.8140, 0.4203), 0.0045),
]  # fmt: skip


def photos(count, size, seed=0):
    """Smooth random images, uint8 (count, 3, H, W)."""
    random = np.random.default_rng(seed)
    small = [Image.fromarray(random.integers(0, 256, (6, 4, 3), dtype=np.uint8)) for _ in range(count)]
    return torch.stack([TF.pil_to_tensor(image.resize(size[::-1], Image.Resampling.BICUBIC)) for image in small])


class Drawn:
    """The numbers drawn for one image of a batch, as Python floats and integers."""

    def __init__(self, indices, seed, step, position):
        self.draws = Draws(indices, seed, step, 300)[position : position + 1]

    def uniform(self, number, low=0.0, high=1.0):
        return low + self.draws.uniform(number).item() * (high - low)

    def below(self, number, bound):
        return self.draws.below(number, bound).item()


def box_by_hand(drawn, options, height, width):
    """Zhong et al.'s loop: y0, x0, y1, x1 or None."""
    if drawn.uniform(ERASE) >= options.erasing:
        return None
    low, high = options.erasing_aspect
    for attempt in range(TRIES):
        area = drawn.uniform(AREAS + attempt, *options.erasing_area) * height * width
        share = (drawn.below(ASPECTS + attempt, 4096) + 0.5) / 4096
        if options.erasing_aspect_scale == "log":
            aspect = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        else:
            aspect = low + share * (high - low)
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < h < height and 0 < w < width:
            top, left = drawn.below(ERASE_TOP, height - h + 1), drawn.below(ERASE_LEFT, width - w + 1)
            return top, left, top + h, left + w
    return None


def crop_by_hand(drawn, options, height, width):
    """torchvision's loop over ten candidates: top, left, height, width."""
    low, high = options.resized_aspect
    for attempt in range(10):
        area = drawn.uniform(CROP_AREAS + attempt, *options.resized_area) * height * width
        share = (drawn.below(CROP_ASPECTS + attempt, 4096) + 0.5) / 4096
        aspect = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return drawn.below(CROP_TOP, height - h + 1), drawn.below(CROP_LEFT, width - w + 1), h, w
    w, h = width, height
    if width / height < low:
        h = round(width / low)
    elif width / height > high:
        w = round(height * high)
    return (height - h) // 2, (width - w) // 2, h, w


def one_image_by_hand(pixels, drawn, options):
    """One image through Pillow and torchvision: uint8 (3, H, W) -> float32 (3, H, W) and its box."""
    height, width = pixels.shape[1:]
    image = TF.to_pil_image(pixels)
    if drawn.uniform(FLIP) < options.flip:
        image = ImageOps.mirror(image)
    if options.crop_scale > 1:
        size = round(width * options.crop_scale), round(height * options.crop_scale)
        image = image.resize(size, Image.Resampling.BILINEAR)
    if options.resized_area:
        top, left, h, w = crop_by_hand(drawn, options, height, width)
        image = image.crop((left, top, left + w, top + h)).resize((width, height), Image.Resampling.BILINEAR)
    image = ImageOps.expand(image, options.pad, fill=0)
    top, left = drawn.below(TOP, image.height - height + 1), drawn.below(LEFT, image.width - width + 1)
    x = TF.to_tensor(image.crop((left, top, left + width, top + height)))
    if options.rotation:
        angle = drawn.uniform(ANGLE, -options.rotation, options.rotation)
        x = TF.rotate(x, angle, interpolation=TF.InterpolationMode.BILINEAR)
    adjust = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation)
    orders = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    for operation in orders[drawn.below(ORDER, 6)]:
        strength = (options.brightness, options.contrast, options.saturation)[operation]
        x = adjust[operation](x, drawn.uniform(BRIGHTNESS + operation, max(0, 1 - strength), 1 + strength))
    for component, (colour, eigenvalue) in enumerate(PRINCIPAL_COLOURS):
        alpha = options.lighting * stats.norm.ppf(drawn.uniform(LIGHTS + component) + 2**-25)
        x = x + torch.tensor([alpha * eigenvalue * channel for channel in colour]).view(3, 1, 1)
    x = TF.normalize(x, MEAN, STD)
    box = box_by_hand(drawn, options, height, width)
    if box and options.erasing_fill != "noise":
        y0, x0, y1, x1 = box
        fill = (0, 0, 0) if options.erasing_fill == "zero" else options.erasing_fill
        x[:, y0:y1, x0:x1] = torch.tensor(fill).view(3, 1, 1)
    return x, box


RECIPES = {
    "bag of tricks": Augmentation(),
    "vit": Augmentation(
        erasing_area=(0.02, 1 / 3), erasing_aspect=(0.3, 1 / 0.3), erasing_aspect_scale="log", erasing_fill="zero"
    ),
    "feature distillation": Augmentation(pad=0, crop_scale=9 / 8, erasing_fill="zero", erasing=1),
    "partial teacher": Augmentation(
        pad=0, crop_scale=9 / 8, rotation=10, brightness=0.2, contrast=0.2, saturation=0.2, erasing=0
    ),
    "colour": replace(OFF, brightness=0.9, contrast=2, saturation=1.5),
    "rotation": replace(OFF, rotation=180),
    "transfer": replace(OFF, flip=0.5, resized_area=(0.08, 1)),
    "lighting": replace(OFF, lighting=0.5),
    "flip": replace(OFF, flip=0.5),
    "crop": replace(OFF, pad=3),
    "erase": replace(OFF, erasing=1, erasing_fill=(-1, 0, 2.5), erasing_area=(0.3, 1), erasing_aspect=(0.1, 9)),
}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("size", [(64, 32), (37, 19), (128, 128)])
def test_a_batch_equals_its_images_one_by_one(recipe, size):
    options, count = RECIPES[recipe], 9
    pixels, indices = photos(count, size), torch.tensor([3, 1, 4, 1, 5, 9, 2, 6, 5])
    transform = BatchTransform(options, MEAN, STD)
    before = pixels.clone()
    tolerance = 2e-5  # float32 of values up to 2.6
    if options.crop_scale > 1 or options.resized_area:
        tolerance += 1.01 / 255 / min(STD)  # Pillow rounds after each of two passes
    if options.rotation:
        tolerance += 0.01  # float32 positions in the image
    for step in range(4):
        x, boxes = transform(pixels, indices, seed=11, step=step, return_boxes=True)
        assert torch.equal(x, transform(pixels, indices, seed=11, step=step))
        for position in range(count):
            drawn = Drawn(indices, 11, step, position)
            expected, box = one_image_by_hand(pixels[position], drawn, options)
            assert boxes[position].tolist() == list(box or (-1, -1, -1, -1))
            if recipe == "partial teacher":  # a rounded grey level is amplified by the jitter, and moved by the turn
                assert (x[position] - expected).abs().mean() < 0.01
            else:
                assert (x[position] - expected).abs().max() < tolerance
    assert torch.equal(pixels, before)


def test_evaluation_normalises_only():
    pixels = photos(5, (37, 19))
    x = BatchTransform(None, MEAN, STD)(pixels)
    expected = torch.stack([TF.normalize(TF.to_tensor(TF.to_pil_image(image)), MEAN, STD) for image in pixels])
    assert x.dtype == torch.float32
    torch.testing.assert_close(x, expected, atol=2e-6, rtol=0)
    _, boxes = BatchTransform(None, MEAN, STD)(pixels, return_boxes=True)
    assert boxes.tolist() == [[-1] * 4] * 5


def test_noise_is_normal_differs_between_images_and_fills_the_box_only():
    options = Augmentation(erasing=1, erasing_fill="noise", pad=4)
    pixels, indices = photos(40, (64, 32)), torch.arange(40)
    noisy, boxes = BatchTransform(options, MEAN, STD)(pixels, indices, seed=0, step=0, return_boxes=True)
    plain = BatchTransform(replace(options, erasing=0), MEAN, STD)(pixels, indices, seed=0, step=0)
    noise = []
    for image, clean, (y0, x0, y1, x1) in zip(noisy, plain, boxes.tolist(), strict=True):
        noise.append(image[:, y0:y1, x0:x1].clone())
        image[:, y0:y1, x0:x1] = clean[:, y0:y1, x0:x1]
    assert torch.equal(noisy, plain)
    values = torch.cat([patch.flatten() for patch in noise]).double().numpy()
    assert len(values) > 10_000
    assert stats.kstest(values, "norm").pvalue > 1e-3
    assert all(len(patch.unique()) > 0.999 * patch.numel() for patch in noise)
    assert len({patch.flatten()[0].item() for patch in noise}) == 40
    channels = np.corrcoef(np.concatenate([patch.flatten(1).numpy() for patch in noise], axis=1))
    assert np.abs(channels - np.eye(3)).max() < 4.5 / math.sqrt(len(values) / 3)


def test_an_image_depends_on_its_counters_and_not_on_its_company():
    options = Augmentation(erasing_fill="noise", pad=4, rotation=5, contrast=0.2)
    transform = BatchTransform(options, MEAN, STD)
    pixels, indices = photos(70, (256, 128)), torch.arange(100, 170)  # more than one part of the CPU's cache
    x = transform(pixels, indices, seed=3, step=8)
    torch.testing.assert_close(x[:37], transform(pixels[:37], indices[:37], seed=3, step=8), atol=1e-4, rtol=0)
    other_indices, other_pixels = indices.clone(), pixels.flip(0)
    other_indices[5:] += 1000
    other_pixels[:5] = pixels[:5]
    torch.testing.assert_close(x[:5], transform(other_pixels, other_indices, seed=3, step=8)[:5], atol=1e-4, rtol=0)
    for changed in ({"seed": 4, "step": 8}, {"seed": 3, "step": 9}):
        other = transform(pixels, indices, **changed)
        assert all(not torch.equal(a, b) for a, b in zip(x, other, strict=True))


def test_repetitions_of_an_image_in_a_batch_are_augmented_differently():
    pixels = photos(1, (64, 32)).expand(16, -1, -1, -1)
    x = BatchTransform(Augmentation(), MEAN, STD)(pixels, torch.full((16,), 7), seed=0, step=0)
    assert len({image.numpy().tobytes() for image in x}) == 16


def erased(options, size, count=4000, step=0):
    pixels = torch.zeros((count, 3, 1, 1), dtype=torch.uint8).expand(-1, -1, *size)
    _, boxes = BatchTransform(options, MEAN, STD)(pixels, torch.arange(count), seed=0, step=step, return_boxes=True)
    return boxes[boxes[:, 0] >= 0]


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_boxes_are_distributed_as_in_the_published_loop(scale):
    """Against the paper's loop with a generator of its own (uniform aspect) and timm's (uniform logarithm)."""
    options = replace(OFF, erasing=0.5, erasing_aspect_scale=scale)
    height, width = 32, 16
    boxes = erased(options, (height, width)).double().numpy()
    assert abs(len(boxes) / 4000 - 0.5) < 4 * math.sqrt(0.25 / 4000)
    random, reference = np.random.default_rng(1), []
    while len(reference) < 4000:
        area = random.uniform(0.02, 0.4) * height * width
        aspect = (
            random.uniform(0.3, 1 / 0.3) if scale == "linear" else math.exp(random.uniform(-1, 1) * math.log(1 / 0.3))
        )
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < height and w < width:
            top, left = random.integers(0, height - h + 1), random.integers(0, width - w + 1)
            reference.append((top, left, top + h, left + w))
    reference = np.array(reference, dtype=float)
    for measure in (
        lambda b: b[:, 0],
        lambda b: b[:, 1],
        lambda b: b[:, 2] - b[:, 0],
        lambda b: b[:, 3] - b[:, 1],
        lambda b: (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]),
    ):
        assert stats.ks_2samp(measure(boxes), measure(reference)).pvalue > 1e-3


def test_a_box_that_never_fits_leaves_the_image_alone():
    assert (
        len(erased(replace(OFF, erasing=1, erasing_area=(0.3, 0.4), erasing_aspect=(30, 40)), (16, 8), count=50)) == 0
    )


def test_probabilities_of_zero_and_one_are_exact():
    pixels, indices = photos(60, (16, 8)), torch.arange(60)
    flipped = BatchTransform(replace(OFF, flip=1), MEAN, STD)(pixels, indices, seed=0, step=0)
    assert torch.equal(flipped, BatchTransform(None, MEAN, STD)(pixels.flip(-1)))
    assert torch.equal(
        BatchTransform(OFF, MEAN, STD)(pixels, indices, seed=0, step=0), BatchTransform(None, MEAN, STD)(pixels)
    )


def test_crops_reach_every_place_equally_often():
    """A single white pixel in a padded image shows where the crop was taken."""
    pixels = torch.zeros((4000, 3, 5, 5), dtype=torch.uint8)
    pixels[:, :, 2, 2] = 255
    x = BatchTransform(replace(OFF, pad=2), (0, 0, 0), (1, 1, 1))(pixels, torch.arange(4000), seed=0, step=0)
    places = x[:, 0].sum(dim=0)
    assert places.sum() == 4000
    assert stats.chisquare(places.flatten().numpy()).pvalue > 1e-3


def test_options_survive_json():
    options = Augmentation(erasing_fill=(0.1, 0.2, 0.3))
    as_read = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(options).items()}
    assert Augmentation(**as_read) == options
    assert hash(Augmentation(**as_read)) == hash(options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flip": 1.5}, "flip must be a probability in .*, got 1.5"),
        ({"erasing": -0.1}, "erasing must be a probability"),
        ({"pad": -1}, "pad must be a whole number"),
        ({"pad": 2.5}, "pad must be a whole number"),
        ({"crop_scale": 0.9}, "crop_scale must be at least 1"),
        ({"rotation": 200}, "rotation must be degrees"),
        ({"resized_area": (0.08, 1)}, r"resized_area must be \(low, high\) in .*, pad 0, crop_scale 1"),
        ({"resized_area": (0, 1), "pad": 0}, "resized_area must be"),
        ({"resized_aspect": (2, 1)}, "resized_aspect must be"),
        ({"lighting": -1}, "lighting must be at least 0"),
        ({"contrast": float("nan")}, "contrast must be at least 0"),
        ({"erasing_area": (0.4, 0.02)}, "erasing_area must be .*low <= high"),
        ({"erasing_aspect": (0, 1)}, "erasing_aspect must be"),
        ({"erasing_aspect_scale": "logarithmic"}, "must be 'linear' or 'log', got 'logarithmic'"),
        ({"erasing_fill": "mean"}, "erasing_fill must be 'zero', 'noise' or"),
    ],
)
def test_illegal_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**options)


def test_illegal_batches_are_refused():
    pixels, indices = photos(4, (16, 8)), torch.arange(4)
    transform = BatchTransform(Augmentation(pad=2), MEAN, STD)
    with pytest.raises(ValueError, match=r"uint8 \(B, 3, H, W\), got torch.float32"):
        transform(pixels.float(), indices, seed=0, step=0)
    with pytest.raises(ValueError, match=r"got torch.uint8 \(3, 16, 8\)"):
        transform(pixels[0], indices, seed=0, step=0)
    with pytest.raises(ValueError, match="needs indices, seed and step"):
        transform(pixels, indices, seed=0)
    with pytest.raises(ValueError, match=r"indices must be \(4,\)"):
        transform(pixels, indices[:3], seed=0, step=0)
    with pytest.raises(ValueError, match="one value per channel"):
        BatchTransform(None, MEAN, (1, 0, 1))
    with pytest.raises(ValueError, match="erasing_fill must have 1 values"):
        BatchTransform(Augmentation(), [0.5], [0.5])


@pytest.mark.parametrize("size", [(40, 60), (9, 100), (100, 9), (3, 4)])
def test_crops_are_distributed_as_torchvisions(size):
    """Also of images so long that mostly no candidate fits."""
    options, count = replace(OFF, resized_area=(0.08, 1)), 4000
    sizes = torch.tensor(size).expand(count, 2)
    draws = Draws(torch.arange(count), 0, 0, 300)
    table = torch.tensor(np.exp(np.linspace(math.log(3 / 4), math.log(4 / 3), 4096)))
    numbers = (slice(CROP_AREAS, CROP_AREAS + 10), slice(CROP_ASPECTS, CROP_ASPECTS + 10), CROP_TOP, CROP_LEFT)
    ours = draw_crops(draws, sizes, options, table, numbers).numpy()
    torch.manual_seed(0)
    image = torch.empty(3, *size)
    theirs = np.array([RandomResizedCrop.get_params(image, (0.08, 1), (3 / 4, 4 / 3)) for _ in range(count)])
    for column in range(4):
        values = np.union1d(ours[:, column], theirs[:, column])
        counts = np.array([[(boxes[:, column] == v).sum() for v in values] for boxes in (ours, theirs)])
        counts = counts[:, counts.sum(0) > 20]
        assert counts.shape[1] == 1 or stats.chi2_contingency(counts).pvalue > 1e-4


def test_squeezed_images_are_cropped_by_the_proportions_of_the_originals():
    """A linear ramp survives any resizing away from its ends, so positions can be read off the crop."""
    ramp = torch.linspace(0, 255, 200)
    wide = Image.fromarray(ramp.byte().numpy()[None].repeat(50, 0)).convert("RGB")  # 50 x 200
    squeezed = TF.pil_to_tensor(wide.resize((64, 64), Image.Resampling.BILINEAR))
    options = replace(OFF, resized_area=(0.08, 0.3))
    indices = torch.arange(6)
    transform = BatchTransform(options, (0, 0, 0), (1, 1, 1), (32, 24))
    x = transform(squeezed.expand(6, -1, -1, -1), indices, seed=3, step=1, sizes=torch.tensor([[50, 200]] * 6))
    assert x.shape == (6, 3, 32, 24)
    for position in range(6):
        top, left, h, w = crop_by_hand(Drawn(indices, 3, 1, position), options, 50, 200)
        direct = TF.to_tensor(wide.crop((left, top, left + w, top + h)).resize((24, 32), Image.Resampling.BILINEAR))
        assert (x[position] - direct)[:, :, 2:-2].abs().max() < 0.012  # three grey levels, of 60 to 100 in a crop
        assert direct.max() - direct.min() > 0.1


def test_an_image_of_one_colour_keeps_it():
    pixels = torch.full((8, 3, 5, 7), 100, dtype=torch.uint8)
    options = replace(OFF, resized_area=(0.08, 1))
    x = BatchTransform(options, (0, 0, 0), (1, 1, 1), (19, 13))(pixels, torch.arange(8), seed=0, step=0)
    torch.testing.assert_close(x, torch.full((8, 3, 19, 13), 100 / 255))
    sizes = torch.tensor([[1000, 3], [3, 1000]] * 4)  # boxes thinner than a pixel of what is kept
    thin = BatchTransform(options, (0, 0, 0), (1, 1, 1), (19, 13))(pixels, torch.arange(8), seed=0, step=0, sizes=sizes)
    torch.testing.assert_close(thin, x)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_gpu_gives_the_same_batch(recipe):
    pixels, indices = photos(33, (64, 32)), torch.arange(33)
    transform = BatchTransform(RECIPES[recipe], MEAN, STD)
    x, boxes = transform(pixels, indices, seed=1, step=2, return_boxes=True)
    gpu_x, gpu_boxes = transform(pixels.cuda(), indices.cuda(), seed=1, step=2, return_boxes=True)
    assert torch.equal(boxes, gpu_boxes.cpu())
    torch.testing.assert_close(x, gpu_x.cpu(), atol=0.02 if RECIPES[recipe].rotation else 1e-5, rtol=0)
