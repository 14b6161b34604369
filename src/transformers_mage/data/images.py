"""Image files and what becomes of them: decoded, in the mode that is asked for, cropped for evaluation."""

import io
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from .. import image_inputs
from ..image_inputs import upright

# The paper's evaluation crop: the shorter side is resized to 292 for images of 256, and the centre taken.
EVALUATION_RESIZE = 292 / 256


class BrokenImageError(ValueError):
    """An image that cannot be decoded."""


def open_image(image: Any, channels: int) -> Image.Image:
    """
    A decoded image, grey for one channel and RGB for three, as [`image_inputs.open_image`] makes it.

    Raises:
        BrokenImageError: if it cannot be decoded.
    """
    try:
        return image_inputs.open_image(image, channels)
    # Damaged files make Pillow's decoders raise nearly anything.
    except Exception as error:
        raise BrokenImageError(f"{type(error).__name__}: {error}") from error


def in_mode_of(image: Image.Image, channels: int) -> Image.Image:
    """The image, grey for one channel and RGB for three."""
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def size_of(image: Any) -> tuple[int, int]:
    """
    Width and height of what [`open_image`] gives, without decoding the image.

    Raises:
        BrokenImageError: if not even that can be read.
    """
    try:
        return image_inputs.image_size(image)
    except Exception as error:
        raise BrokenImageError(f"{type(error).__name__}: {error}") from error


def opened(image: Any) -> Image.Image:
    """An image, or `datasets`' {"bytes": ..., "path": ...} of an encoded one, which is not decoded yet."""
    if not isinstance(image, dict):
        return image
    return Image.open(io.BytesIO(image["bytes"]) if image.get("bytes") is not None else image["path"])


def is_plain(image: Image.Image) -> bool:
    """Whether an opened image is upright and of 8 bits, so that parts of it can be decoded as they are."""
    return image.mode not in ("I", "F") and not image.mode.startswith("I;16") and upright(image) is image


def center_view(image: Any, image_size: tuple[int, int], channels: int) -> torch.Tensor:
    """
    The evaluation crop; see [`evaluation_processor`]. Images of the model's size are not cropped.

    Returns:
        `torch.Tensor` of shape `(channels, height, width)`, uint8.
    """
    image = open_image(image, channels)
    height, width = image_size
    if image.size == (width, height):
        return torch.from_numpy(to_array(image).copy())
    scale = min(image.width / width, image.height / height) / EVALUATION_RESIZE
    box_width, box_height = width * scale, height * scale
    left, upper = (image.width - box_width) / 2, (image.height - box_height) / 2
    box = (left, upper, left + box_width, upper + box_height)
    return torch.from_numpy(to_array(image.resize((width, height), Image.Resampling.BICUBIC, box=box)).copy())


def to_array(image: Image.Image) -> np.ndarray:
    """(channels, height, width) uint8."""
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def evaluation_processor(
    image_size: tuple[int, int], channels: int, *, crop: bool = True, normalize: bool = False
) -> CLIPImageProcessorPil:
    """
    An image processor that makes evaluation crops. What it saves is the same for both of transformers' backends, so
    that `AutoImageProcessor` takes torchvision's where there is one.

    Args:
        image_size (`tuple[int, int]`): height and width in pixels.
        channels (`int`): 3, or 1 for grey.
        crop (`bool`): whether the centre is taken; otherwise whole images are resized. Only squares can be cropped.
        normalize (`bool`): whether ImageNet's mean and deviation are taken off, as the paper's fine-tuning does.
    """
    height, width = image_size
    size = {"height": height, "width": width}
    crops = crop and height == width
    return CLIPImageProcessorPil(
        size={"shortest_edge": round(height * EVALUATION_RESIZE)} if crops else size,
        do_center_crop=crops,
        crop_size=size,
        resample=3,
        do_normalize=normalize,
        image_mean=list(IMAGENET_DEFAULT_MEAN) if normalize else [0.0] * channels,
        image_std=list(IMAGENET_DEFAULT_STD) if normalize else [1.0] * channels,
        do_convert_rgb=channels == 3,
    )
