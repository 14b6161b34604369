"""
The border for images and masks: whatever people hold them in becomes pixels in [0, 1], or an error that names the
argument. Files are opened here too, so that the same picture has the same pixels everywhere.
"""

import io
import os
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch

ImageFile: TypeAlias = str | os.PathLike[str] | bytes | BinaryIO
ImageSource: TypeAlias = PIL.Image.Image | ImageFile | Mapping[str, Any]
ImageInput: TypeAlias = PIL.Image.Image | np.ndarray | torch.Tensor | Sequence["ImageInput"]

GREY_MODES = ("1", "L", "LA", "La", "I", "F")
ORIENTATION_TAG = 0x0112
# Transparency is read and dropped, as `load_image` of transformers and diffusers does.
CHANNELS = (1, 3, 4)
# Grey with transparency; two channels that come first are a batch of two grey images instead.
GREY_AND_ALPHA = 2
# How far arithmetic may carry a float beyond [0, 1] before it counts as a mistake.
ROUNDING = 1e-5


def open_image(source: ImageSource, channels: int | None = None) -> PIL.Image.Image:
    """
    An image as people see it: turned upright (EXIF), with 8 bits a channel, without transparency.

    Deep grey images are scaled by their depth (65535 is white in 16 bits, 1.0 in floats) rather than clipped, which is
    what Pillow's `convert`, and with it `load_image` of transformers and diffusers, does to them.

    Args:
        source (`PIL.Image.Image`, path, `bytes`, binary file, or `dict` with `"bytes"` or `"path"`):
            the image; the dictionary is what `datasets.Image(decode=False)` gives.
        channels (`int`, *optional*): 1 for grey and 3 for RGB; by default whichever the image is.

    Returns:
        `PIL.Image.Image`: of mode `"L"` or `"RGB"`, its pixels loaded.

    Raises:
        ValueError: for floats outside of [0, 1] and for negative integers. Pillow raises its own errors for files that
            it cannot read.
    """
    image = upright(_opened(source))
    if channels is None:
        channels = 1 if _is_grey(image) else 3
    pixels = _pixels_of_pil("image", image, channels)
    if pixels.dtype != np.uint8:
        pixels = np.rint(pixels * 255).astype(np.uint8)
    return PIL.Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


def image_size(source: ImageSource) -> tuple[int, int]:
    """Width and height of what [`open_image`] gives, without decoding the pixels."""
    image = _opened(source)
    # From 5 on they lie on their side; and Pillow turns TIFF files by itself.
    lies = image.format != "TIFF" and image.getexif().get(ORIENTATION_TAG, 1) >= 5
    return image.size[::-1] if lies else image.size


def upright(image: PIL.Image.Image) -> PIL.Image.Image:
    """The image turned as its EXIF orientation says; the same object where it says nothing."""
    if image.getexif().get(ORIENTATION_TAG, 1) == 1:
        return image
    return PIL.ImageOps.exif_transpose(image)


def read_images(name: str, images: ImageInput, channels: int) -> list[np.ndarray]:
    """
    The images in a PIL image, an array, a tensor, a batch or lists of them.

    Channels come first or last; where both could be, they are last in arrays and first in tensors. uint8 is divided
    by 255 and uint16 by 65535. Wider integers have no depth of their own: they are read in the smallest of 8, 16 and
    32 bits that holds the largest of them.

    Args:
        name (`str`): the argument that errors speak of.
        images: what was passed.
        channels (`int`): 1 for a grey and 3 for an RGB model.

    Returns:
        `list[np.ndarray]`: of shape `(height, width, channels)`, uint8, or float32 in [0, 1]: never rounded.

    Raises:
        ValueError: for anything that is not an image, holds no pixels or holds values out of range.
    """
    return _read(name, images, channels)


def read_masks(name: str, masks: ImageInput, num_images: int) -> list[np.ndarray]:
    """
    The masks in anything that [`read_images`] takes, truth values among it. Integers of which none is above 1 are
    truth values too.

    Args:
        num_images (`int`): to which they belong; so many grids in an array of three dimensions are so many masks.

    Returns:
        `list[np.ndarray]`: of shape `(height, width, 1)`, uint8, or float32 in [0, 1].
    """
    return _read(name, masks, 1, num_images)


def to_tensor(
    pixels: Sequence[np.ndarray], height: int, width: int, resample: PIL.Image.Resampling
) -> torch.FloatTensor:
    """(batch_size, channels, height, width) in [0, 1]: what was read, resized where it has another size."""
    resized = [_resize(image, height, width, resample) for image in pixels]
    scaled = [image.astype(np.float32) / 255 if image.dtype == np.uint8 else image for image in resized]
    return torch.from_numpy(np.stack(scaled)).permute(0, 3, 1, 2).contiguous()


def _resize(pixels: np.ndarray, height: int, width: int, resample: PIL.Image.Resampling) -> np.ndarray:
    if pixels.shape[:2] == (height, width):
        return pixels
    if pixels.dtype == np.uint8:
        image = PIL.Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        return np.asarray(image.resize((width, height), resample)).reshape(height, width, pixels.shape[2])
    channels = [PIL.Image.fromarray(channel) for channel in np.moveaxis(pixels, 2, 0)]
    resized = np.stack([np.asarray(channel.resize((width, height), resample)) for channel in channels], axis=2)
    return resized.clip(0, 1)


def _opened(source: ImageSource) -> PIL.Image.Image:
    if isinstance(source, PIL.Image.Image):
        return source
    file: ImageFile = (source.get("bytes") or source["path"]) if isinstance(source, Mapping) else source
    return PIL.Image.open(io.BytesIO(file) if isinstance(file, bytes) else file)


def _read(name: str, images: ImageInput, channels: int, num_images: int | None = None) -> list[np.ndarray]:
    """Each image that was passed or, with `num_images` given, each mask."""
    found = []
    for item in _flatten(name, images):
        if isinstance(item, PIL.Image.Image):
            found.append(_pixels_of_pil(name, upright(item), channels, is_mask=num_images is not None))
        else:
            found += _pixels_of_array(name, item, channels, num_images)
    sizes = [image.shape[:2] for image in found]
    if not sizes:
        raise ValueError(f"`{name}` must hold pixels, got no image.")
    if any(0 in size for size in sizes):
        raise ValueError(f"`{name}` must hold pixels, got images of the sizes {sizes} (height, width).")
    return found


def _flatten(name: str, images: Any) -> list[PIL.Image.Image | np.ndarray | torch.Tensor]:
    if isinstance(images, (PIL.Image.Image, np.ndarray, torch.Tensor)):
        return [images]
    if isinstance(images, (list, tuple)):
        return [item for part in images for item in _flatten(name, part)]
    raise ValueError(
        f"`{name}` must hold PIL images, arrays, tensors or lists of them, got {type(images).__name__}. "
        "`transformers_mage.image_inputs.open_image` opens files."
    )


def _is_grey(image: PIL.Image.Image) -> bool:
    return image.mode in GREY_MODES or image.mode.startswith("I;16")


def _pixels_of_pil(name: str, image: PIL.Image.Image, channels: int, is_mask: bool = False) -> np.ndarray:
    """(height, width, channels): uint8, or float32 where the image is deeper than that."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _in_channels(_scale(name, np.asarray(image)[..., None], is_mask), channels)
    pixels = np.asarray(_convert(name, image, "L" if channels == 1 else "RGB"))
    return _scale(name, pixels.reshape(*pixels.shape[:2], channels), is_mask)


def _convert(name: str, image: PIL.Image.Image, mode: str) -> PIL.Image.Image:
    # A palette with shades of transparency, and premultiplied grey, go there by a way round only.
    detour = {"P": "RGBA" if "transparency" in image.info else None, "La": "LA"}.get(image.mode)
    try:
        return (image.convert(detour) if detour else image).convert(mode)
    except ValueError as error:
        raise ValueError(f"`{name}` has the mode {image.mode!r}: {error}. Convert it to RGB.") from error


def _pixels_of_array(
    name: str, array: np.ndarray | torch.Tensor, channels: int, num_images: int | None = None
) -> list[np.ndarray]:
    """Each image of an array; with `num_images` given, each mask."""
    channels_first = isinstance(array, torch.Tensor)
    values = _as_numpy(name, array)
    batch = _channels_last(name, values, channels_first, channels, num_images)
    pixels = _scale(name, batch, is_mask=num_images is not None)
    return [_in_channels(image, channels) for image in pixels]


def _as_numpy(name: str, array: np.ndarray | torch.Tensor) -> np.ndarray:
    if not isinstance(array, torch.Tensor):
        return np.asarray(array)
    if array.is_meta or array.is_quantized or array.layout != torch.strided or array.is_nested:
        kind = f"{array.layout}, {array.dtype} on {array.device.type}"
        raise ValueError(f"`{name}` must be an ordinary tensor with its values at hand, got one of {kind}.")
    array = array.detach().cpu().resolve_conj().resolve_neg()
    return (array.float() if array.is_floating_point() else array).numpy()


def _channels_last(
    name: str, values: np.ndarray, channels_first: bool, channels: int, num_images: int | None
) -> np.ndarray:
    """(batch_size, height, width, 1 to 4): what an array of two to four dimensions can only mean."""
    shape = values.shape
    if values.ndim not in (2, 3, 4):
        raise ValueError(
            f"`{name}` must have the shape (height, width), (height, width, channels), (channels, height, width), or "
            f"a batch of them, got {shape}."
        )
    if values.ndim == 2:
        return values[None, ..., None]
    is_first, is_last = shape[-3] in CHANNELS, shape[-1] in (*CHANNELS, GREY_AND_ALPHA)
    is_last = is_last and not (is_first and channels_first)
    if values.ndim == 4 and not is_first and not is_last:
        raise ValueError(f"`{name}` must have 1, 3 or 4 channels, first or last, or 2 (LA), last, got {shape}.")
    if values.ndim == 4:
        return values if is_last else np.moveaxis(values, 1, 3)
    if is_last:
        return values[None]
    is_batch = not is_first or shape[0] == num_images
    if not is_batch and channels == 1 and num_images is None and shape[0] > 1:
        height, width = shape[1:]
        raise ValueError(
            f"`{name}` of shape {shape} may be one colour image or {shape[0]} grey ones. Pass it as "
            f"{(1, *shape)} or {(shape[0], 1, height, width)}."
        )
    return values[..., None] if is_batch else np.moveaxis(values, 0, 2)[None]


def _scale(name: str, values: np.ndarray, is_mask: bool = False) -> np.ndarray:
    """uint8 as it is, anything else as float32 in [0, 1]."""
    if not values.size:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if np.issubdtype(values.dtype, np.floating):
        return _check_floats(name, values)
    if not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"`{name}` must hold numbers, got values of type {values.dtype}.")
    if values.dtype == np.uint8 and not is_mask:
        return values
    white = _white(name, values, is_mask)
    if white == 255:
        return values.astype(np.uint8)
    return (values / white).astype(np.float32)


def _white(name: str, values: np.ndarray, is_mask: bool) -> int:
    """Which integer is white."""
    least, most = int(values.min()), int(values.max())
    if least < 0:
        raise ValueError(f"`{name}` holds integers from {least} to {most}. Pass uint8, or floats in [0, 1].")
    limit = int(np.iinfo(values.dtype).max)
    if is_mask:
        depths: tuple[int, ...] = (1, 255, 65535, limit)
    elif values.dtype.kind == "u" and values.dtype.itemsize == 2:
        depths = (65535,)
    else:
        depths = (255, min(65535, limit), limit)
    white = next(depth for depth in depths if most <= depth)
    if white > np.iinfo(np.uint32).max:
        raise ValueError(f"`{name}` holds integers up to {most}, of no usual depth. Pass uint16, or floats in [0, 1].")
    return white


def _check_floats(name: str, values: np.ndarray) -> np.ndarray:
    least, most = float(values.min()), float(values.max())
    if not np.isfinite([least, most]).all():
        raise ValueError(f"`{name}` holds NaN or infinite values. Floats must lie in [0, 1].")
    if least < -ROUNDING or most > 1 + ROUNDING:
        if least < 0:
            remedy = "For values in [-1, 1], pass `(x + 1) / 2`"
        else:
            remedy = "Divide them by 255, or pass uint8" if most <= 255 else "Divide them by their white"
        raise ValueError(f"`{name}` holds floats from {least:g} to {most:g}; they must lie in [0, 1]. {remedy}.")
    return values.astype(np.float32).clip(0, 1)


def _in_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """(height, width, channels) of (height, width, 1 to 4)."""
    pixels = pixels[..., : 1 if pixels.shape[2] == GREY_AND_ALPHA else 3]
    if pixels.shape[2] == channels:
        return pixels
    if channels == 3:
        return pixels.repeat(3, axis=2)
    if pixels.dtype == np.uint8:
        return np.asarray(PIL.Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))[..., None]
    red, green, blue = (pixels[..., i : i + 1] for i in range(3))
    # ITU-R 601-2, as Pillow; written so that grey stays grey to the bit.
    return green + np.float32(0.299) * (red - green) + np.float32(0.114) * (blue - green)


__all__ = [
    "ImageInput",
    "ImageSource",
    "image_size",
    "open_image",
    "read_images",
    "read_masks",
    "to_tensor",
    "upright",
]
