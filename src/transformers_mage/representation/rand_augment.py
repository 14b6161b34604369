"""RandAugment (arXiv 1909.13719) on whole batches and on their device, with other operations for every image."""

from collections.abc import Callable

import kornia.enhance as enhance
import kornia.geometry.transform as geometry
import numpy as np
import torch

# What comes into view from outside the image: the mean colour of ImageNet.
FILL = (0.485, 0.456, 0.406)


MAX_MAGNITUDE = 10


# Images (n, channels, height, width) in [0, 1]; strengths (n,) from -1 to 1, their signs being random.
Operation = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def auto_contrast(images: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    return torch.where(high > low, (images - low) / (high - low).clamp(min=1 / 255), images)


def equalize(images: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    return enhance.equalize(images)


def invert(images: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    return 1 - images


def rotate(images: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    return _filled(images, lambda shifted: geometry.rotate(shifted, 30 * strength))


def posterize(images: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    return enhance.posterize(images, 4 - (4 * strength.abs()).int())


def solarize(images: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    return enhance.solarize(images, thresholds=1 - strength.abs())


def solarize_add(images: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    brighter = (images + 110 / 255 * strength.abs()[:, None, None, None]).clamp(max=1)
    return torch.where(images < 128 / 255, brighter, images)


def color(images: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    if images.shape[1] == 1:
        return images
    return enhance.adjust_saturation_with_gray_subtraction(images, _factor(strength))


def contrast(images: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    return enhance.adjust_contrast_with_mean_subtraction(images, _factor(strength))


def brightness(images: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    return enhance.adjust_brightness_accumulative(images, _factor(strength))


def sharpness(images: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    return enhance.sharpness(images, _factor(strength))


def shear_x(images: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    return _sheared(images, 0.3 * strength, torch.zeros_like(strength))


def shear_y(images: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    return _sheared(images, torch.zeros_like(strength), 0.3 * strength)


def translate_x(images: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    return _translated(images, 0.45 * images.shape[3] * strength, torch.zeros_like(strength))


def translate_y(images: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    return _translated(images, torch.zeros_like(strength), 0.45 * images.shape[2] * strength)


def _factor(strength: torch.Tensor) -> torch.Tensor:
    """1 leaves an image unchanged; the operations go up to 0.9 to either side of it."""
    return 1 + 0.9 * strength


def _sheared(images: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return _filled(images, lambda shifted: geometry.shear(shifted, torch.stack([x, y], dim=1)))


def _translated(images: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return _filled(images, lambda shifted: geometry.translate(shifted, torch.stack([x, y], dim=1)))


def _filled(images: torch.Tensor, warp: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Warps so that what comes from outside, where warping finds zeros, has the colour of [`FILL`]."""
    fill = images.new_tensor(FILL if images.shape[1] == 3 else (sum(FILL) / 3,))[:, None, None]
    return warp(images - fill) + fill


OPERATIONS: tuple[Operation, ...] = (
    auto_contrast, equalize, invert, rotate, posterize, solarize, solarize_add, color, contrast, brightness, sharpness,
    shear_x, shear_y, translate_x, translate_y,
)  # fmt: skip


class RandAugment:
    """
    Applies to every image `num_operations` of the fifteen operations, drawn with replacement, each with probability
    0.5. The defaults are what timm writes as `rand-m9-mstd0.5-inc1` (section 4.4).

    An operation's magnitude m is drawn from a normal distribution around `magnitude` and kept within [0, 10]; its
    strength is m / 10 with a random sign. At strength s: rotation by 30 s degrees; shear by 0.3 s; translation by
    0.45 s of the side; colour, contrast, brightness and sharpness times 1 + 0.9 s; and, whatever the sign, posterising
    to 4 - floor(4 s) bits, solarising above 1 - s, adding 110 s / 255 to dark pixels. Automatic contrast, equalising
    and inverting have no strength. All grow with the magnitude, which is what "inc1" says.

    Args:
        magnitude (`float`): mean of the magnitude.
        magnitude_std (`float`): its standard deviation.
        num_operations (`int`): operations for each image.
        probability (`float`): of applying one that was drawn.
    """

    def __init__(
        self,
        magnitude: float = 9.0,
        magnitude_std: float = 0.5,
        num_operations: int = 2,
        probability: float = 0.5,
    ):
        if not 0 <= magnitude <= MAX_MAGNITUDE:
            raise ValueError(f"`magnitude` must lie between 0 and {MAX_MAGNITUDE}, got {magnitude}.")
        self.magnitude = magnitude
        self.magnitude_std = magnitude_std
        self.num_operations = num_operations
        self.probability = probability

    @torch.no_grad()
    def __call__(self, images: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
        """
        Args:
            images (`torch.Tensor` of shape `(batch_size, channels, height, width)`): floats in [0, 1].
            random (`np.random.Generator`): where chance comes from, on the host: a device need not wait for it.

        Returns:
            `torch.Tensor` of the same shape.
        """
        images = images.clone()
        for _ in range(self.num_operations):
            chosen = random.integers(len(OPERATIONS), size=len(images))
            is_applied = random.random(len(images)) < self.probability
            strengths = self._strengths(len(images), random)
            for number in np.unique(chosen[is_applied]):
                rows = np.flatnonzero(is_applied & (chosen == number))
                self._apply(OPERATIONS[number], images, rows, strengths[rows])
        return images

    def _strengths(self, size: int, random: np.random.Generator) -> np.ndarray:
        magnitudes = random.normal(self.magnitude, self.magnitude_std, size).clip(0, MAX_MAGNITUDE)
        return magnitudes / MAX_MAGNITUDE * random.choice([-1.0, 1.0], size)

    def _apply(self, operation: Operation, images: torch.Tensor, rows: np.ndarray, strengths: np.ndarray):
        indices = torch.from_numpy(rows).to(images.device, non_blocking=True)
        strength = torch.from_numpy(strengths).to(images, non_blocking=True)
        images[indices] = operation(images[indices], strength).clamp(0, 1)
