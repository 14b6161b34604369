"""Random views of training images (appendix A): a resized crop and a mirroring, nothing else."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import kornia.augmentation as augmentation
import numpy as np
import torch
from PIL import Image
from torch import nn

from .batches import Batch
from .images import BrokenImageError, in_mode_of, is_plain, open_image, opened, to_array

# Left, upper, right and lower edge, in pixels.
Box = tuple[int, int, int, int]

# How many times as large as the view a crop must stay in a draft. From 2 on, Pillow says, one hardly sees it.
DRAFT_REDUCING_GAP = 2


@dataclass(frozen=True)
class Crops:
    """
    How views of an image are drawn.

    Attributes:
        scale_min (`float`): least share of the area that is kept; 1 does not crop.
        ratio_max (`float`): largest ratio of the crop's sides.
        flip (`bool`): whether half of the images are mirrored.
    """

    scale_min: float = 0.2
    ratio_max: float = 4 / 3
    flip: bool = True


class RandomViews(nn.Module):
    """
    Views of a whole batch of equally large images, on its device, drawn from torch's global generator.

    Args:
        image_size (`tuple[int, int]`): height and width of the views.
        crops ([`Crops`]): how they are drawn.
        num_views (`int`): views of each image.
    """

    def __init__(self, image_size: tuple[int, int], crops: Crops = Crops(), num_views: int = 1):
        super().__init__()
        self.image_size = image_size
        self.num_views = num_views
        steps: list[nn.Module] = []
        if crops.scale_min < 1:
            ratio = (1 / crops.ratio_max, crops.ratio_max)
            crop = augmentation.RandomResizedCrop(
                image_size, (crops.scale_min, 1.0), ratio, resample="BICUBIC", cropping_mode="resample"
            )
            steps.append(crop)
        if crops.flip:
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

    def of(self, batch: Batch) -> torch.Tensor:
        """
        The views that a batch of pixels holds, or else new ones of its images.

        Returns:
            `torch.Tensor` of shape `(num_views x batch_size, channels, height, width)`, float32 in [0, 1].
        """
        if batch.pixels is None:
            raise ValueError("The batch holds tokens, of which no views can be drawn.")
        if batch.are_views:
            return batch.pixels.float() / 255
        return self(batch.pixels.repeat(self.num_views, 1, 1, 1))


class ImageViews:
    """
    Views of one image of any size and mode, on the host. They depend on the image and a seed alone.

    Args:
        image_size (`tuple[int, int]`): height and width of the views.
        channels (`int`): 3, or 1 for grey.
        num_views (`int`): views of each image.
        crops ([`Crops`]): how they are drawn.
    """

    def __init__(self, image_size: tuple[int, int], channels: int = 3, num_views: int = 1, crops: Crops = Crops()):
        self.image_size = image_size
        self.channels = channels
        self.num_views = num_views
        self.crops = crops

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a view."""
        return self.channels, *self.image_size

    def on_device(self) -> RandomViews:
        """What draws such views of whole batches."""
        return RandomViews(self.image_size, self.crops, self.num_views)

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
        random = np.random.default_rng(seed)
        # Damaged files make Pillow's decoders raise nearly anything.
        try:
            image = opened(image)
            if not is_plain(image):
                image = open_image(image, self.channels)
            draws = [self._draw(image.size, random) for _ in range(self.num_views)]
            scale = draft(image, [box for box, _ in draws], self.image_size)
            return torch.from_numpy(np.stack([self._view(image, scale, *draw) for draw in draws]))
        except Exception as error:
            raise BrokenImageError(f"{type(error).__name__}: {error}") from error

    def _draw(self, size: tuple[int, int], random: np.random.Generator) -> tuple[Box, bool]:
        """What to crop, and whether to mirror it."""
        box = crop_box(size, self.crops, random)
        return box, self.crops.flip and random.random() < 0.5

    def _view(self, image: Image.Image, scale: float, box: Box, mirror: bool) -> np.ndarray:
        height, width = self.image_size
        left, upper, right, lower = (edge * scale for edge in box)
        # Nothing but the crop is converted, nor seen by the filter, as when torchvision crops.
        around = (math.floor(left), math.floor(upper), math.ceil(right), math.ceil(lower))
        crop = in_mode_of(image.crop(around), self.channels)
        inside = (left - around[0], upper - around[1], right - around[0], lower - around[1])
        view = crop.resize((width, height), Image.Resampling.BICUBIC, box=inside)
        return to_array(view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirror else view)


def draft(image: Image.Image, boxes: Sequence[Box], image_size: tuple[int, int]) -> float:
    """
    Lets a JPEG that is not decoded yet be decoded at 1/2, 1/4 or 1/8 of its size, at less cost, where each of the
    `boxes` stays at least twice as large as `image_size` (height, width), to which it will be resized.

    Returns:
        `float`: the scale of what will be decoded; 1 for images in other formats and for smaller boxes.
    """
    width, height = image.size
    height_needed, width_needed = (DRAFT_REDUCING_GAP * side for side in image_size)
    least = max(
        max(width_needed / (right - left), height_needed / (lower - upper)) for left, upper, right, lower in boxes
    )
    if least > 0.5 or image.format != "JPEG":
        return 1.0
    image.draft(None, (math.ceil(width * least), math.ceil(height * least)))
    return 1 / round(width / image.width)


def crop_box(size: tuple[int, int], crops: Crops, random: np.random.Generator) -> Box:
    """
    Left, upper, right and lower edge of a random crop of an image of `size` (width, height): its area uniform in
    [`scale_min`, 1], its ratio log-uniform. After ten tries that do not fit, the whole image.
    """
    width, height = size
    for _ in range(10 if crops.scale_min < 1 else 0):
        area = width * height * random.uniform(crops.scale_min, 1)
        ratio = math.exp(random.uniform(-math.log(crops.ratio_max), math.log(crops.ratio_max)))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left, upper = random.integers(width - crop_width + 1), random.integers(height - crop_height + 1)
            return int(left), int(upper), int(left + crop_width), int(upper + crop_height)
    return 0, 0, width, height
