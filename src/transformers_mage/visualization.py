"""Pictures for people: grids of images, and images being filled in, step by step. Pillow is all it takes."""

import math
import os
from collections.abc import Sequence

import numpy as np
import PIL.Image
import torch

UNKNOWN_COLOR = 128
WHITE = 255
# Smaller images are enlarged to about this many pixels, as long as the picture stays within the width.
COMFORTABLE_SIDE = 64
COMFORTABLE_WIDTH = 1200


def draw_grid(
    images: Sequence[PIL.Image.Image], num_columns: int | None = None, scale: int | None = None, gap: int = 2
) -> PIL.Image.Image:
    """
    One picture of many, row by row, white between them.

    Args:
        images (`Sequence[PIL.Image.Image]`): of one size.
        num_columns (`int`, *optional*): images in a row; about a square of them by default.
        scale (`int`, *optional*): how many times as large; by default so that small images are seen well.
        gap (`int`, *optional*, defaults to 2): pixels between the images.

    Raises:
        ValueError: for no images, or images of several sizes.
    """
    pixels = _as_pixels(images)
    return _tile(_in_rows(pixels, num_columns), scale, gap)


def draw_steps(
    images: Sequence[PIL.Image.Image],
    steps: torch.LongTensor,
    mask_token_id: int,
    num_columns: int | None = None,
    scale: int | None = None,
) -> PIL.Image.Image:
    """
    One picture: a row an image, a column a step, from left to right. Tokens that are still unknown are grey.

    Args:
        images (`Sequence[PIL.Image.Image]`): the finished images, [`MagePipelineOutput`]'s `images`.
        steps (`torch.LongTensor` of shape `(num_steps, batch_size, rows, columns)`): its `steps`.
        mask_token_id (`int`): `pipe.model.config.mask_token_id`.
        num_columns (`int`, *optional*): so many steps, evenly spaced, the last among them; all by default.
        scale (`int`, *optional*): how many times as large; by default so that small images are seen well.

    Example:

    ```python
    >>> output = pipe(num_images=4, return_steps=True)
    >>> draw_steps(output.images, output.steps, pipe.model.config.mask_token_id).save("steps.png")
    ```
    """
    pixels = _step_pixels(images, steps, mask_token_id)
    if num_columns is not None and num_columns < len(pixels):
        pixels = pixels[np.linspace(len(pixels) / num_columns - 1, len(pixels) - 1, num_columns).round().astype(int)]
    return _tile(pixels.swapaxes(0, 1), scale)


def draw_frames(
    images: Sequence[PIL.Image.Image],
    steps: torch.LongTensor,
    mask_token_id: int,
    num_columns: int | None = None,
    scale: int | None = None,
) -> list[PIL.Image.Image]:
    """
    One picture a step, each a grid of all images, `num_columns` to a row (about a square by default). The other
    arguments are those of [`draw_steps`].
    """
    return [_tile(_in_rows(pixels, num_columns), scale) for pixels in _step_pixels(images, steps, mask_token_id)]


def save_gif(
    frames: Sequence[PIL.Image.Image],
    path: str | os.PathLike,
    seconds_per_frame: float = 0.2,
    seconds_at_end: float = 2,
):
    """Writes frames, for instance [`draw_frames`]'s, as a GIF that starts over after resting on the last one."""
    durations = [round(1000 * seconds_per_frame)] * (len(frames) - 1) + [round(1000 * seconds_at_end)]
    frames[0].save(path, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)


def _as_pixels(images: Sequence[PIL.Image.Image]) -> np.ndarray:
    """(number of images, height, width, 3)."""
    sizes = sorted({image.size for image in images})
    if len(sizes) != 1:
        raise ValueError(f"`images` must hold images of one size, got the sizes {sizes} (width, height).")
    return np.stack([np.asarray(image.convert("RGB")) for image in images])


def _step_pixels(images: Sequence[PIL.Image.Image], steps: torch.LongTensor, mask_token_id: int) -> np.ndarray:
    """(num_steps, batch_size, height, width, 3): the finished images, grey where a step knows no token."""
    if steps.ndim != 4 or steps.shape[1] != len(images):
        raise ValueError(
            f"`steps` must have shape (num_steps, {len(images)}, rows, columns) for {len(images)} images, got "
            f"{tuple(steps.shape)}. Pass those that came with the images."
        )
    finished = _as_pixels(images)
    height, width = (side // tokens for side, tokens in zip(finished.shape[1:3], steps.shape[2:], strict=True))
    is_unknown = (steps == mask_token_id).cpu().numpy().repeat(height, axis=2).repeat(width, axis=3)
    return np.where(is_unknown[..., None], np.uint8(UNKNOWN_COLOR), finished)


def _in_rows(pixels: np.ndarray, num_columns: int | None) -> np.ndarray:
    """(rows, columns, height, width, 3) of (number of images, height, width, 3), white where a place is empty."""
    columns = num_columns or math.ceil(math.sqrt(len(pixels)))
    empty = -len(pixels) % columns
    pixels = np.pad(pixels, [(0, empty), (0, 0), (0, 0), (0, 0)], constant_values=WHITE)
    return pixels.reshape(-1, columns, *pixels.shape[1:])


def _tile(pixels: np.ndarray, scale: int | None = None, gap: int = 2) -> PIL.Image.Image:
    """A picture of (rows, columns, height, width, 3) pixels, white between them."""
    if scale is None:
        scale = _comfortable_scale(pixels)
    pixels = pixels.repeat(scale, axis=2).repeat(scale, axis=3)
    pixels = np.pad(pixels, [(0, 0), (0, 0), (0, gap), (0, gap), (0, 0)], constant_values=WHITE)
    rows, columns, height, width, channels = pixels.shape
    tiled = pixels.swapaxes(1, 2).reshape(rows * height, columns * width, channels)
    return PIL.Image.fromarray(tiled[: rows * height - gap, : columns * width - gap])


def _comfortable_scale(pixels: np.ndarray) -> int:
    columns, height, width = pixels.shape[1:4]
    return max(1, min(math.ceil(COMFORTABLE_SIDE / min(height, width)), COMFORTABLE_WIDTH // (columns * width)))


__all__ = ["draw_frames", "draw_grid", "draw_steps", "save_gif"]
