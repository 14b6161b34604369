"""What people hold images and masks in, and the pixels that are read from it."""

import io

import datasets
import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import torch
from transformers.image_utils import load_image

from transformers_mage.image_inputs import image_size, open_image, read_images, read_masks, to_tensor

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
GREY = PIXELS[..., 0]
ROTATED = 6  # EXIF: turn a quarter clockwise


def read(image, channels: int = 3) -> np.ndarray:
    """The only image, in 8 bits."""
    (pixels,) = read_images("image", image, channels)
    assert pixels.dtype in (np.uint8, np.float32)
    return pixels if pixels.dtype == np.uint8 else np.rint(255 * pixels).astype(np.uint8)


def read_mask(mask, num_images: int = 1) -> np.ndarray:
    """(number of masks, height, width), in [0, 1]."""
    masks = read_masks("mask_image", mask, num_images)
    return to_tensor(masks, *masks[0].shape[:2], PIL.Image.Resampling.NEAREST)[:, 0].numpy()


def turned(image: PIL.Image.Image, orientation: int, image_format: str = "PNG") -> bytes:
    """A file whose EXIF says to turn it."""
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, image_format, exif=exif)
    return file.getvalue()


# Images


@pytest.mark.parametrize(
    "image",
    [
        PIL.Image.fromarray(PIXELS),
        [PIL.Image.fromarray(PIXELS)],
        PIXELS,
        PIXELS[None],
        [PIXELS],
        PIXELS.transpose(2, 0, 1),
        PIXELS.transpose(2, 0, 1)[None],
        PIXELS / 255,
        (PIXELS / 255).astype(np.float32),
        PIXELS.astype(np.uint16) * 257,
        PIXELS.astype(np.int64),
        PIXELS.astype(np.int16),
        PIXELS.astype(np.int32) * 257,
        PIXELS.astype(np.uint32) * (2**32 // 255),
        np.dstack([PIXELS, GREY]),
        np.ma.masked_array(PIXELS),
        np.ma.masked_array(PIXELS / 255),
        (PIXELS / 255).astype(np.longdouble),
        (PIXELS / 255).astype(">f4"),
        (PIXELS.astype(np.uint16) * 257).astype(">u2"),
        torch.from_numpy(PIXELS),
        torch.from_numpy(PIXELS).permute(2, 0, 1),
        torch.from_numpy(PIXELS).permute(2, 0, 1)[None],
        torch.from_numpy(PIXELS).permute(2, 0, 1) / 255,
        torch.from_numpy(PIXELS).permute(2, 0, 1).double() / 255,
        torch.from_numpy(PIXELS).permute(2, 0, 1).half() / 255,
        torch.from_numpy(PIXELS.astype(np.uint16) * 257),
        torch.from_numpy(PIXELS).long(),
        (torch.from_numpy(PIXELS) / 255).requires_grad_(),
    ],
)
def test_the_same_picture_in_any_container(image):
    assert np.array_equal(read(image), PIXELS)


@pytest.mark.parametrize(
    "image",
    [
        PIL.Image.fromarray(GREY),
        PIL.Image.fromarray(GREY.astype(np.uint16) * 257),
        PIL.Image.fromarray((GREY.astype(np.uint16) * 257).astype(">u2")),
        PIL.Image.fromarray(GREY.astype(np.int32)),
        PIL.Image.fromarray(GREY.astype(np.int32) * 257),
        PIL.Image.fromarray(GREY.astype(np.int32) * (2**31 // 255)),
        PIL.Image.fromarray((GREY / 255).astype(np.float32)),
        PIL.Image.merge("LA", [PIL.Image.fromarray(GREY)] * 2),
        GREY,
        GREY[..., None],
        np.dstack([GREY, PIXELS[..., 1]]),
        np.dstack([GREY, PIXELS[..., 1]])[None],
        GREY[None],
        torch.from_numpy(GREY),
        torch.from_numpy(GREY)[None],
        np.dstack([GREY] * 3) / 255,
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_same_grey_picture_in_any_container(image, channels):
    assert np.array_equal(read(image, channels), np.dstack([GREY] * channels))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "HSV", "YCbCr", "PA", "RGBa", "RGBX"])
def test_modes_of_pillow_look_as_they_do_in_rgb(mode):
    by_way_of = {"PA": "P", "RGBa": "RGBA"}.get(mode, "RGB")
    image = PIL.Image.fromarray(PIXELS).convert(by_way_of).convert(mode)
    assert np.array_equal(read(image), np.asarray(image.convert("RGB")))


def test_transparency_is_dropped_as_transformers_and_diffusers_do(recwarn):
    image = PIL.Image.fromarray(np.dstack([PIXELS, GREY]))
    palette = PIL.Image.fromarray(PIXELS).convert("P")
    palette.info["transparency"] = bytes(range(256))

    assert np.array_equal(read(image), np.asarray(load_image(image)))
    assert np.array_equal(read(palette), np.asarray(palette.convert("RGBA"))[..., :3])
    assert not [warning for warning in recwarn if "Transparency" in str(warning.message)]


def test_floats_are_not_rounded():
    pixels = np.random.default_rng(0).random((6, 5, 3), dtype=np.float32)
    (read_pixels,) = read_images("image", pixels, 3)
    assert np.array_equal(read_pixels, pixels)
    (nearly,) = read_images("image", pixels + np.float32(1e-6), 3)
    assert nearly.max() <= 1


def test_colours_become_grey_as_in_pillow():
    in_pillow = np.asarray(PIL.Image.fromarray(PIXELS).convert("L"))
    for image in (PIXELS, PIL.Image.fromarray(PIXELS), torch.from_numpy(PIXELS)):
        assert np.array_equal(read(image, channels=1)[..., 0], in_pillow)
    assert np.abs(read(PIXELS / 255, channels=1)[..., 0].astype(int) - in_pillow).max() <= 1


def test_batches_and_lists_are_as_many_images():
    several = np.stack([PIXELS, 255 - PIXELS])
    for images in (several, list(several), [several[:1], several[1]], torch.from_numpy(several).movedim(3, 1)):
        first, second = read_images("image", images, 3)
        assert np.array_equal(first, PIXELS)
        assert np.array_equal(second, 255 - PIXELS)
    assert len(read_images("image", np.zeros((7, 8, 9)), 3)) == 7
    assert [image.shape for image in read_images("image", [PIXELS, PIXELS[:4]], 3)] == [(6, 5, 3), (4, 5, 3)]


@pytest.mark.parametrize("as_float", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_resizing_is_pillow_s_whatever_the_container(as_float, channels):
    # Neither black nor white, where 8 bits would clip between the two directions.
    pixels = PIXELS // 2 + 64
    image = PIL.Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    expected = np.asarray(image.resize((10, 12), PIL.Image.Resampling.BICUBIC)).reshape(12, 10, channels) / 255
    pixels = read_images("image", np.asarray(image) / 255 if as_float else image, channels)

    resized = to_tensor(pixels, 12, 10, PIL.Image.Resampling.BICUBIC)[0].permute(1, 2, 0).numpy()

    # 8 bits are rounded after each direction.
    assert np.abs(resized - expected).max() < 1.6 / 255
    assert 0 <= resized.min() <= resized.max() <= 1


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (PIXELS.astype(np.float32), r"`image` holds floats from .* to 248; .* \[0, 1\]\. Divide them by 255"),
        (PIXELS / 127.5 - 1, r"`image` holds floats from -1 to .* \[-1, 1\], pass `\(x \+ 1\) / 2`"),
        (PIXELS * 300.0, "Divide them by their white"),
        (np.full((6, 5, 3), np.nan), "`image` holds NaN or infinite"),
        (torch.full((3, 6, 5), torch.inf), "`image` holds NaN or infinite"),
        (PIL.Image.fromarray(GREY.astype(np.float32)), "`image` holds floats from .* Divide them by 255"),
        (PIXELS.astype(np.int64) - 300, "`image` holds integers from -"),
        (PIXELS.astype(np.int64) * 10**15, r"`image` holds integers up to .*, of no usual depth"),
        (PIXELS.astype(object), "`image` must hold numbers, got values of type object"),
        (PIXELS.astype(complex), "`image` must hold numbers, got values of type complex128"),
        (np.array("photo"), "`image` must have the shape"),
        (np.zeros(5), r"`image` must have the shape \(height, width\).* got \(5,\)"),
        (np.zeros((1, 1, 6, 5, 3)), r"got \(1, 1, 6, 5, 3\)"),
        (np.zeros((2, 6, 5, 7)), r"1, 3 or 4 channels, first or last, .* got \(2, 6, 5, 7\)"),
        (np.zeros((0, 5, 3)), "`image` must hold pixels"),
        (torch.zeros(0, 3, 6, 5), "`image` must hold pixels"),
        (PIL.Image.new("RGB", (0, 4)), "`image` must hold pixels"),
        (PIL.Image.new("I;16", (0, 4)), "`image` must hold pixels"),
        ([], "`image` must hold pixels"),
        ("photo.png", "lists of them, got str.*open_image"),
        ([[1, 2], [3, 4]], "lists of them, got int"),
        (None, "lists of them, got NoneType"),
        (torch.zeros(3, 6, 5, device="meta"), "`image` must be an ordinary tensor .* on meta"),
        (torch.zeros(6, 5).to_sparse(), r"`image` must be an ordinary tensor .* torch\.sparse_coo"),
    ],
)
def test_what_is_not_an_image_is_refused_by_name(image, message):
    with pytest.raises(ValueError, match=message):
        read_images("image", image, 3)


def test_three_planes_are_one_colour_image_or_three_grey_ones():
    planes = torch.rand(3, 6, 5)
    assert len(read_images("image", planes, channels=3)) == 1
    with pytest.raises(ValueError, match=r"\(1, 3, 6, 5\) or \(3, 1, 6, 5\)"):
        read_images("image", planes, channels=1)


# Masks

MASK = np.zeros((6, 5), dtype=bool)
MASK[2:, 1:4] = True
MASK_MODES = ("L", "RGB", "RGBA", "P", "LA", "CMYK", "I")


@pytest.mark.parametrize(
    "mask",
    [
        MASK,
        MASK[None],
        MASK[..., None],
        np.dstack([MASK] * 3),
        *(MASK.astype(kind) for kind in (np.uint8, np.uint16, np.int32, np.int64, np.float32, np.float64)),
        *(255 * MASK.astype(kind) for kind in (np.uint8, np.uint16, np.int32, np.int64)),
        65535 * MASK.astype(np.uint16),
        np.dstack([MASK.astype(np.uint8)] * 3),
        255 * np.dstack([MASK.astype(np.uint8)] * 3),
        np.stack([255 * MASK.astype(np.uint8)] * 3),
        np.dstack([MASK] * 3).astype(np.float32),
        torch.from_numpy(MASK),
        torch.from_numpy(MASK)[None],
        torch.from_numpy(MASK)[None, None],
        torch.from_numpy(MASK).long(),
        torch.from_numpy(MASK).expand(3, 6, 5),
        torch.from_numpy(MASK).bfloat16(),
        # Conjugated views are negated in the reading.
        (-1j * torch.from_numpy(MASK)).conj().imag,
        np.ma.masked_array(MASK),
        PIL.Image.fromarray(MASK),
        PIL.Image.fromarray(MASK.astype(np.uint8)),
        *(PIL.Image.fromarray(255 * MASK.astype(np.uint8)).convert(mode) for mode in MASK_MODES),
        PIL.Image.fromarray(MASK.astype(np.uint16) * 65535),
        PIL.Image.fromarray(MASK.astype(np.float32)),
    ],
)  # fmt: skip
def test_the_same_mask_in_any_container(mask):
    assert np.array_equal(read_mask(mask), MASK[None].astype(np.float32))


@pytest.mark.parametrize("empty", [np.zeros((6, 5), np.uint8), PIL.Image.new("L", (5, 6)), torch.zeros(6, 5).bool()])
def test_a_mask_may_be_black(empty):
    assert (read_mask(empty) == 0).all()


def test_grey_masks_stay_grey():
    grey = np.full((6, 5), 0.25)
    assert np.array_equal(read_mask(grey), grey[None].astype(np.float32))
    assert read_mask(np.full((6, 5), 51, np.uint8)).max() == pytest.approx(0.2)


@pytest.mark.parametrize("count", [2, 3, 4, 7])
def test_a_batch_of_masks(count):
    masks = np.random.default_rng(0).random((count, 6, 5)) < 0.5
    for batch in (masks, masks[:, None], masks[..., None], list(masks), torch.from_numpy(masks)):
        assert np.array_equal(read_mask(batch, num_images=count), masks)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.full((6, 5), 255.0), "`mask_image` holds floats from 255 to 255"),
        (np.full((6, 5), np.nan), "`mask_image` holds NaN"),
        (np.full((6, 5), -1), "`mask_image` holds integers from -1 to -1"),
        (np.ones(5, bool), "`mask_image` must have the shape"),
        ([], "`mask_image` must hold pixels"),
        (True, "`mask_image` must hold PIL images, arrays, tensors or lists of them, got bool"),
    ],
)
def test_what_is_not_a_mask_is_refused_by_name(mask, message):
    with pytest.raises(ValueError, match=message):
        read_masks("mask_image", mask, 1)


# Files


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_files_are_turned_upright_as_datasets_and_transformers_do(orientation, image_format, tmp_path):
    path = tmp_path / f"image.{image_format.lower()}"
    path.write_bytes(turned(PIL.Image.fromarray(PIXELS), orientation, image_format))

    image = open_image(path)

    expected = np.asarray(datasets.Image().decode_example({"path": str(path), "bytes": None}))
    assert np.array_equal(np.asarray(image), expected)
    assert np.array_equal(np.asarray(image), np.asarray(load_image(str(path))))
    assert image_size(path) == image.size
    assert image.getexif().get(0x0112, 1) == 1


def test_a_turned_image_is_turned_in_the_pipeline_s_reader_too():
    image = PIL.Image.open(io.BytesIO(turned(PIL.Image.fromarray(PIXELS), ROTATED)))
    assert np.array_equal(read(image), np.rot90(PIXELS, -1))


@pytest.mark.parametrize(
    ("deep", "image_format"),
    [
        (GREY.astype(np.uint16) * 257, "PNG"),
        (GREY.astype(np.uint16) * 257, "TIFF"),
        (GREY.astype(np.uint16) * 257, "PPM"),
        (GREY.astype(np.int32) * (2**31 // 255), "TIFF"),
        ((GREY / 255).astype(np.float32), "TIFF"),
    ],
)
@pytest.mark.parametrize("channels", [None, 1, 3])
def test_deep_files_are_scaled_by_their_depth(deep, image_format, channels):
    file = io.BytesIO()
    PIL.Image.fromarray(deep).save(file, image_format)

    image = open_image(file.getvalue(), channels)

    assert image.mode == ("RGB" if channels == 3 else "L")
    assert np.array_equal(np.asarray(image.convert("L")), GREY)


def test_every_kind_of_source(tmp_path):
    image = PIL.Image.fromarray(PIXELS)
    file = io.BytesIO()
    image.save(file, "PNG")
    image.save(tmp_path / "image.png")
    data, path = file.getvalue(), tmp_path / "image.png"
    rows = datasets.Dataset.from_dict({"image": [image]}, datasets.Features({"image": datasets.Image(decode=False)}))

    for source in (image, path, str(path), data, io.BytesIO(data), {"bytes": data, "path": None},
                   {"bytes": None, "path": str(path)}, rows[0]["image"]):  # fmt: skip
        assert np.array_equal(np.asarray(open_image(source)), PIXELS)


@pytest.mark.parametrize(("mode", "opened"), [("1", "L"), ("L", "L"), ("LA", "L"), ("P", "RGB"), ("RGBA", "RGB")])
def test_files_are_grey_or_rgb(mode, opened):
    assert open_image(PIL.Image.new(mode, (4, 4))).mode == opened


def test_files_out_of_range_and_broken_ones():
    with pytest.raises(ValueError, match="holds floats from 0 to 300"):
        open_image(PIL.Image.fromarray(np.array([[0, 300]], np.float32)))
    with pytest.raises(PIL.UnidentifiedImageError):
        open_image(b"no image")
