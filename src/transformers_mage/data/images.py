"""Image files and what becomes of them: decoded, in the mode that is asked for, cropped for evaluation."""

import io
from typing import Any

import numpy as np
import torch
from PIL import Image


class BrokenImageError(ValueError):
    """An image that cannot be decoded."""


def open_image(image: Any, channels: int) -> Image.Image:
    """
    A decoded image, grey for one channel and RGB for three.

    Raises:
        BrokenImageError: if it cannot be decoded.
    """
    try:
        image = _opened(image)
        image.load()
        return in_mode_of(image, channels)
    # Damaged files make Pillow's decoders raise nearly anything.
    except Exception as error:
        raise BrokenImageError(f"{type(error).__name__}: {error}") from error


def in_mode_of(image: Image.Image, channels: int) -> Image.Image:
    """The image, grey for one channel and RGB for three."""
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


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
