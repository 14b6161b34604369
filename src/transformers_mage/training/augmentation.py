"""Random views of training images (appendix A): a resized crop and a mirroring, nothing else."""

import io
import math
from typing import Any

import kornia.augmentation as augmentation
import numpy as np
import torch
from PIL import Image
from torch import nn


class BrokenImageError(ValueError):
    """An image that cannot be decoded."""


class RandomViews(nn.Module):
    """
    Views of a whole batch of equally large images, on its device, drawn from torch's global generator.

    Args:
        image_size (`tuple[int, int]`): height and width of the views.
        crop_scale_min (`float`): least share of the area that is kept; 1 does not crop.
        crop_ratio_max (`float`): largest ratio of the crop's sides.
        horizontal_flip (`bool`): whether half of the images are mirrored.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        crop_scale_min: float = 0.2,
        crop_ratio_max: float = 4 / 3,
        horizontal_flip: bool = True,
    ):
        super().__init__()
        steps = []
        if crop_scale_min < 1:
            ratio = (1 / crop_ratio_max, crop_ratio_max)
            crop = augmentation.RandomResizedCrop(
                tuple(image_size), (crop_scale_min, 1.0), ratio, resample="BICUBIC", cropping_mode="resample"
            )
            steps.append(crop)
        if horizontal_flip:
            steps.append(augmentation.RandomHorizontalFlip())
        self.steps = nn.ModuleList(steps)

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """
        Args:
            images (`torch.Tensor` of shape `(batch_size, channels, height, width)`): uint8, or floats in [0, 1].

        Returns:
            `torch.Tensor` of the same shape with the views' size, float32 in [0, 1].
        """
        views = images.float() / 255 if images.dtype == torch.uint8 else images
        for step in self.steps:
            views = step(views)
        return views.clamp(0, 1)


class ImageViews:
    """
    Views of one image of any size and mode, on the host. They depend on the image and a seed alone.

    Args:
        image_size (`tuple[int, int]`): height and width of the views.
        channels (`int`): 3, or 1 for grey.
        num_views (`int`): views of each image.
        crop_scale_min, crop_ratio_max, horizontal_flip: see [`RandomViews`].
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        channels: int = 3,
        num_views: int = 1,
        crop_scale_min: float = 0.2,
        crop_ratio_max: float = 4 / 3,
        horizontal_flip: bool = True,
    ):
        self.image_size = tuple(image_size)
        self.channels = channels
        self.num_views = num_views
        self.crop_scale_min = crop_scale_min
        self.crop_ratio_max = crop_ratio_max
        self.horizontal_flip = horizontal_flip

    def __call__(self, image: Any, seed: tuple[int, ...]) -> torch.Tensor:
        """
        Args:
            image (`dict` or `PIL.Image.Image`): decoded, or `datasets`' {"bytes": ..., "path": ...}.
            seed (`tuple[int, ...]`): numbers, none of them negative.

        Returns:
            `torch.Tensor` of shape `(num_views, channels, height, width)`, uint8.

        Raises:
            BrokenImageError: if the image cannot be decoded.
        """
        image = open_image(image, self.channels)
        random = np.random.default_rng(seed)
        return torch.from_numpy(np.stack([self._view(image, random) for _ in range(self.num_views)]))

    def _view(self, image: Image.Image, random: np.random.Generator) -> np.ndarray:
        height, width = self.image_size
        box = crop_box(image.size, self.crop_scale_min, self.crop_ratio_max, random)
        view = image.resize((width, height), Image.Resampling.BICUBIC, box=box)
        if self.horizontal_flip and random.random() < 0.5:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return to_array(view)


def crop_box(
    size: tuple[int, int], scale_min: float, ratio_max: float, random: np.random.Generator
) -> tuple[int, int, int, int]:
    """
    Left, upper, right and lower edge of a random crop of an image of `size` (width, height): its area uniform in
    [scale_min, 1], its ratio log-uniform. After ten tries that do not fit, the whole image.
    """
    width, height = size
    for _ in range(10 if scale_min < 1 else 0):
        area = width * height * random.uniform(scale_min, 1)
        ratio = math.exp(random.uniform(-math.log(ratio_max), math.log(ratio_max)))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left, upper = random.integers(width - crop_width + 1), random.integers(height - crop_height + 1)
            return int(left), int(upper), int(left + crop_width), int(upper + crop_height)
    return 0, 0, width, height


def open_image(image: Any, channels: int) -> Image.Image:
    """
    A decoded image, grey for one channel and RGB for three.

    Raises:
        BrokenImageError: if it cannot be decoded.
    """
    try:
        return _opened(image).convert("L" if channels == 1 else "RGB")
    # Damaged files make Pillow's decoders raise nearly anything.
    except Exception as error:
        raise BrokenImageError(f"{type(error).__name__}: {error}") from error


def size_of(image: Any) -> tuple[int, int]:
    """
    Width and height, without decoding the image.

    Raises:
        BrokenImageError: if not even that can be read.
    """
    try:
        return _opened(image).size
    except Exception as error:
        raise BrokenImageError(f"{type(error).__name__}: {error}") from error


def _opened(image: Any) -> Image.Image:
    if not isinstance(image, dict):
        return image
    return Image.open(io.BytesIO(image["bytes"]) if image.get("bytes") is not None else image["path"])


def center_view(image: Any, image_size: tuple[int, int], channels: int) -> torch.Tensor:
    """
    The evaluation crop: the shorter side resized to 292 / 256 of the model's, then the centre.

    Returns:
        `torch.Tensor` of shape `(channels, height, width)`, uint8.
    """
    image = open_image(image, channels)
    height, width = image_size
    if image.size == (width, height):
        return torch.from_numpy(to_array(image).copy())
    scale = min(image.width / width, image.height / height) * 256 / 292
    box_width, box_height = width * scale, height * scale
    left, upper = (image.width - box_width) / 2, (image.height - box_height) / 2
    box = (left, upper, left + box_width, upper + box_height)
    return torch.from_numpy(to_array(image.resize((width, height), Image.Resampling.BICUBIC, box=box)).copy())


def to_array(image: Image.Image) -> np.ndarray:
    """(channels, height, width) uint8."""
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
