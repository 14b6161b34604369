import io

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from transformers_mage.data.images import BrokenImageError, center_view, open_image, size_of
from transformers_mage.data.views import Crops, ImageViews, RandomViews, crop_box, draft


@pytest.fixture
def photo() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, file_format: str = "PNG") -> dict:
    file = io.BytesIO()
    image.save(file, file_format)
    return {"bytes": file.getvalue(), "path": None}


def test_crops_have_the_areas_and_ratios_asked_for():
    random = np.random.default_rng(0)
    boxes = np.array([crop_box((400, 300), Crops(), random) for _ in range(500)])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2] <= 400).all()
    assert (boxes[:, 3] <= 300).all()
    share = width * height / (400 * 300)
    assert 0.19 < share.min() < 0.25
    assert 0.9 < share.max() <= 1
    assert crop_box((400, 300), Crops(scale_min=1), random) == (0, 0, 400, 300)


def test_views_of_one_image_depend_on_the_seed_alone(photo: Image.Image):
    views = ImageViews((16, 16), num_views=2)
    first = views(encoded(photo), (0, 1))
    assert first.shape == (2, 3, 16, 16)
    assert first.dtype == torch.uint8
    assert torch.equal(first, views(photo, (0, 1)))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, views(photo, (0, 2)))


@pytest.mark.parametrize("mode", ["RGB", "P", "CMYK"])
def test_a_view_is_a_crop_resized_and_sees_nothing_around_it(photo: Image.Image, mode: str):
    image = photo.convert(mode)
    box = crop_box(image.size, Crops(), np.random.default_rng(3))
    expected = image.convert("RGB").crop(box).resize((16, 16), Image.Resampling.BICUBIC)
    view = ImageViews((16, 16), crops=Crops(flip=False))(encoded(image, "TIFF" if mode == "CMYK" else "PNG"), 3)
    assert torch.equal(view[0], torch.from_numpy(np.array(expected)).permute(2, 0, 1))


def test_large_photographs_are_decoded_no_larger_than_it_takes():
    """A crop that stays twice as large as its view: the same to the eye (over 40 dB)."""
    photograph = Image.fromarray(load_sample_images().images[0])
    file, box = encoded(photograph, "JPEG"), (101, 55, 511, 399)
    image = Image.open(io.BytesIO(file["bytes"]))
    assert draft(image, [box, (0, 0, 640, 427)], (80, 80)) == 0.5
    assert image.size == (320, 214)

    views = ImageViews((80, 80))
    image = Image.open(io.BytesIO(file["bytes"]))
    drafted = views._view(image, draft(image, [box], (80, 80)), box, mirror=False)
    whole = views._view(Image.open(io.BytesIO(file["bytes"])), 1.0, box, mirror=False)
    error = np.square(drafted.astype(float) - whole).mean()
    assert 0 < error < 255**2 / 10**4


def test_nothing_is_drafted_that_would_show_or_is_no_jpeg():
    photograph = Image.fromarray(load_sample_images().images[0])
    for kind, boxes in (("JPEG", [(0, 0, 640, 427), (0, 0, 200, 200)]), ("PNG", [(0, 0, 640, 427)])):
        image = Image.open(io.BytesIO(encoded(photograph, kind)["bytes"]))
        assert draft(image, boxes, (64, 64)) == 1
        assert image.size == (640, 427)


def test_views_of_a_batch_stay_in_range(photo: Image.Image):
    torch.manual_seed(0)
    images = torch.randint(256, (8, 3, 16, 16), dtype=torch.uint8)
    views = RandomViews((16, 16))(images)
    assert views.shape == images.shape
    assert views.min() >= 0
    assert views.max() <= 1
    whole = RandomViews((16, 16), Crops(scale_min=1, flip=False))(images)
    assert torch.equal(whole, images / 255)


def test_a_crop_of_a_batch_shows_a_part_of_the_image():
    """On a ramp from left to right, a crop is a ramp too, less steep, inside the image's range."""
    torch.manual_seed(0)
    ramp = torch.linspace(0, 1, 32).expand(64, 1, 32, 32)
    views = RandomViews((32, 32), Crops(flip=False))(ramp)
    steps = views[..., 1:] - views[..., :-1]
    assert steps[..., 2:-2].min() > -1e-4
    rise = views[:, 0, 16, -1] - views[:, 0, 16, 0]
    assert rise.min() < 0.55
    assert rise.max() > 0.85
    mirrored = RandomViews((32, 32), Crops(scale_min=1))(ramp)
    assert 10 < (mirrored[:, 0, 0, 0] == 1).sum() < 54


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "I;16", "1"])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_any_mode(photo: Image.Image, mode: str, channels: int):
    image = photo.convert("L").convert("I").convert(mode) if mode == "I;16" else photo.convert(mode)
    assert center_view(image, (16, 16), channels).shape == (channels, 16, 16)


def test_the_evaluation_crop_is_the_centre():
    image = Image.new("L", (292, 400))
    image.paste(255, (18, 72, 274, 328))
    assert center_view(image, (256, 256), channels=1).min() == 255


@pytest.mark.parametrize("value", [{"bytes": b""}, {"bytes": b"no image"}, {"bytes": None, "path": "/nowhere"}])
def test_what_is_no_image_is_broken(value: dict):
    with pytest.raises(BrokenImageError):
        open_image(value, channels=3)
    with pytest.raises(BrokenImageError):
        size_of(value)


def test_a_truncated_jpeg_is_broken(photo: Image.Image):
    whole = encoded(photo, "JPEG")["bytes"]
    assert size_of({"bytes": whole}) == (20, 30)
    with pytest.raises(BrokenImageError, match="truncated"):
        open_image({"bytes": whole[:-100]}, channels=3)
    with pytest.raises(BrokenImageError, match="truncated"):
        ImageViews((8, 8))({"bytes": whole[:-100]}, (0,))


def turned(photo: Image.Image) -> dict:
    """A photograph that lies on its side, and says so."""
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    photo.transpose(Image.Transpose.ROTATE_90).save(file, "PNG", exif=exif)
    return {"bytes": file.getvalue(), "path": None}


def test_a_photograph_that_lies_on_its_side_is_turned(photo: Image.Image):
    assert size_of(turned(photo)) == photo.size
    assert torch.equal(center_view(turned(photo), (16, 16), 3), center_view(photo, (16, 16), 3))
    views = ImageViews((16, 16), num_views=2)
    assert torch.equal(views(turned(photo), (1,)), views(photo, (1,)))


def test_deep_grey_images_keep_their_shades():
    shades = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    image = encoded(Image.fromarray(shades))
    expected = torch.arange(256).reshape(1, 16, 16)
    assert (center_view(image, (16, 16), 1).int() - expected).abs().max() <= 1
    whole = ImageViews((16, 16), channels=1, crops=Crops(scale_min=1, flip=False))
    assert (whole(image, (0,))[0].int() - expected).abs().max() <= 1
