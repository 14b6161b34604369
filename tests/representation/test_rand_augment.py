"""The operations against Pillow's, which RandAugment was defined with, and the draws."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from transformers_mage.representation import rand_augment
from transformers_mage.representation.rand_augment import OPERATIONS, RandAugment

COLOUR = tuple(round(255 * value) for value in rand_augment.FILL)
SIDE = 32


@pytest.fixture
def picture() -> Image.Image:
    """A smooth picture with all its levels between 20 and 230."""
    small = np.random.default_rng(0).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(small).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    return Image.fromarray((20 + pixels.astype(float) * 210 / 255).astype(np.uint8))


def as_tensor(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255


def affine(picture: Image.Image, coefficients: tuple[float, ...]) -> Image.Image:
    """Pillow counts from the corner of a pixel, the batch from its centre."""
    a, b, c, d, e, f = coefficients
    c, f = c + (1 - a - b) / 2, f + (1 - d - e) / 2
    size, resample = picture.size, Image.Resampling.BILINEAR
    return picture.transform(size, Image.Transform.AFFINE, (a, b, c, d, e, f), resample, fillcolor=COLOUR)


PILLOW = {
    "auto_contrast": lambda picture: ImageOps.autocontrast(picture),
    "equalize": ImageOps.equalize,
    "invert": ImageOps.invert,
    "posterize": lambda picture: ImageOps.posterize(picture, 1),
    "solarize": lambda picture: ImageOps.solarize(picture, 26),
    "color": lambda picture: ImageEnhance.Color(picture).enhance(1.81),
    "contrast": lambda picture: ImageEnhance.Contrast(picture).enhance(1.81),
    "brightness": lambda picture: ImageEnhance.Brightness(picture).enhance(1.81),
    "sharpness": lambda picture: ImageEnhance.Sharpness(picture).enhance(1.81),
}


@pytest.mark.parametrize("name", PILLOW)
def test_colour_operations_at_magnitude_9_are_pillows(name: str, picture: Image.Image):
    ours = getattr(rand_augment, name)(as_tensor(picture), torch.tensor([0.9])).clamp(0, 1)

    assert (ours - as_tensor(PILLOW[name](picture))).abs().max() < 1.6 / 255


GEOMETRY = {
    "shear_x": (1, 0.27, 0, 0, 1, 0),
    "shear_y": (1, 0, 0, 0.27, 1, 0),
    "translate_x": (1, 0, 0.405 * SIDE, 0, 1, 0),
    "translate_y": (1, 0, 0, 0, 1, 0.405 * SIDE),
}


@pytest.mark.parametrize("name", [*GEOMETRY, "rotate"])
def test_geometry_at_magnitude_9_is_pillows_in_one_of_the_directions(name: str, picture: Image.Image):
    """Away from the border of the picture, where interpolation differs."""
    images = as_tensor(picture)
    if name == "rotate":
        expected = picture.rotate(27, Image.Resampling.BILINEAR, fillcolor=COLOUR)
    else:
        expected = affine(picture, GEOMETRY[name])
    operation = getattr(rand_augment, name)
    errors = [(operation(images, torch.tensor([s])) - as_tensor(expected)).abs() for s in (0.9, -0.9)]

    assert min(error.median().item() for error in errors) < 1.6 / 255
    assert min(error.quantile(0.9).item() for error in errors) < 4 / 255


def test_strength_0_changes_nothing_but_what_has_no_strength(picture):
    images, strength = as_tensor(picture), torch.zeros(1)

    changed = {op.__name__ for op in OPERATIONS if (op(images, strength) - images).abs().max() > 1e-5}

    assert changed == {"auto_contrast", "equalize", "invert", "posterize"}


def test_solarize_add_brightens_dark_pixels_alone():
    images = torch.tensor([0.1, 0.6]).expand(1, 3, 2, 2)

    brighter = rand_augment.solarize_add(images, torch.tensor([-1.0]))

    assert torch.allclose(brighter[0, 0, 0], torch.tensor([0.1 + 110 / 255, 0.6]))


def test_each_image_has_operations_of_its_own_and_half_of_them_are_applied(picture):
    images = as_tensor(picture).repeat(400, 1, 1, 1)
    augmented = RandAugment(num_operations=1)(images, np.random.default_rng(0))

    is_changed = (augmented != images).flatten(1).any(dim=1)
    assert is_changed.float().mean() == pytest.approx(0.5, abs=0.08)
    assert len(augmented.flatten(1).unique(dim=0)) > 100
    assert augmented.min() >= 0
    assert augmented.max() <= 1


def test_magnitudes_are_drawn_around_9_within_10():
    strengths = np.abs(RandAugment()._strengths(5000, np.random.default_rng(0)))

    assert strengths.max() == 1.0
    assert np.median(strengths) == pytest.approx(0.9, abs=0.005)
    assert (strengths < 0.85).mean() == pytest.approx(0.159, abs=0.02)


def test_the_same_generator_gives_the_same_images(picture):
    images = as_tensor(picture).repeat(8, 1, 1, 1)

    assert torch.equal(*(RandAugment()(images, np.random.default_rng(5)) for _ in range(2)))


def test_grey_images_work():
    assert RandAugment(num_operations=15, probability=1.0)(
        torch.rand(64, 1, 8, 8), np.random.default_rng(0)
    ).shape == (64, 1, 8, 8)


def test_impossible_magnitude_is_refused():
    with pytest.raises(ValueError, match="between 0 and 10, got 11"):
        RandAugment(magnitude=11)
