"""
What is known of an image before decoding, and how it is put back afterwards: canvas sizes, padding, seams, and windows
over canvases larger than the model was trained on.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F

from .checks import is_whole_number, share, whole_number
from .image_inputs import ImageInput, read_images, read_masks

# Beyond this ratio of the sides a canvas is mostly windows that never see each other, and its memory grows with it.
LARGEST_ASPECT_RATIO = 8


@dataclass(frozen=True)
class Edit:
    """
    What to change in which images, as it was read.

    Attributes:
        images (`list[np.ndarray]`): each of shape `(height, width, channels)`, uint8, or float32 in [0, 1].
        masks (`list[np.ndarray]`, *optional*): one, or one an image, of shape `(height, width, 1)`.
        padding (`tuple[int, int, int, int]`): pixels on the left, at the top, on the right and at the bottom.
        strength (`float`, *optional*): share of the hidden tokens that is made anew.
        feather (`int`): pixels over which the seam is blended.
    """

    images: list[np.ndarray]
    masks: list[np.ndarray] | None
    padding: tuple[int, int, int, int]
    strength: float | None
    feather: int

    @property
    def forgets(self) -> bool:
        """Whether nothing of what is made anew depends on what was there: in all edits but variations."""
        return self.strength is None

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of each image."""
        return _sizes(self.images)


def read_edit(
    image: ImageInput | None,
    mask_image: ImageInput | None,
    padding: int | Sequence[int] | None,
    strength: float | None,
    feather: int | None,
    channels: int,
    patch_size: int,
) -> Edit | None:
    """
    The arguments of [`MagePipeline`] of the same names, checked; None where no image is given.

    Raises:
        ValueError: for arguments that change nothing, contradict each other or cannot be read.
    """
    _check_what_changes(image, {"mask_image": mask_image, "padding": padding, "strength": strength})
    if image is None:
        if feather is not None:
            raise ValueError("`image` is missing: `feather` says how what is repainted in it is blended.")
        return None
    images = read_images("image", image, channels)
    masks = None if mask_image is None else read_masks("mask_image", mask_image, len(images))
    if masks is not None:
        _check_mask_sizes(_sizes(images), _sizes(masks))
    return Edit(
        images,
        masks,
        padding=parse_padding(padding, patch_size),
        strength=None if strength is None else share("strength", strength),
        feather=patch_size if feather is None else whole_number("feather", feather, 0, "a whole number of pixels"),
    )


def _check_what_changes(image: ImageInput | None, changes: dict[str, Any]):
    given = [name for name, value in changes.items() if value is not None]
    if image is None and given:
        raise ValueError(f"`image` is missing: `{given[0]}` says what to change in it.")
    if image is not None and not given:
        raise ValueError(
            "`mask_image` (white where to repaint), `padding` or `strength` is missing: say what to change in `image`."
        )
    if "strength" in given and "padding" in given:
        raise ValueError("`padding` has nothing to vary: pass either `strength` or `padding`.")


def _check_mask_sizes(image_sizes: list[tuple[int, int]], mask_sizes: list[tuple[int, int]]):
    if len(mask_sizes) not in (1, len(image_sizes)):
        raise ValueError(
            f"`mask_image` must be one mask, or one for each of the {len(image_sizes)} images, got {len(mask_sizes)}."
        )
    for number, size in enumerate(image_sizes):
        mask_size = mask_sizes[number % len(mask_sizes)]
        if mask_size != size:
            raise ValueError(
                f"`mask_image` must be as large as its image, {size} (height, width), got {mask_size}. Resize it."
            )


def _sizes(images: Sequence[np.ndarray]) -> list[tuple[int, int]]:
    return [image.shape[:2] for image in images]


@dataclass
class Canvas:
    """
    What decoding starts from.

    Attributes:
        tokens (`torch.LongTensor` of shape `(batch_size, rows, columns)`): those of the image, where there is one.
        is_hidden (`torch.BoolTensor` of shape `(batch_size, rows, columns)`): which of them are to be made.
        pixels (`torch.FloatTensor` of shape `(batch_size, channels, height, width)`, *optional*): known ones, [0, 1].
        mask (`torch.FloatTensor` of shape `(batch_size, 1, height, width)`, *optional*):
            0 where those are kept, 1 where they are replaced; between, how much of the new shows.
        is_cut (`torch.BoolTensor` of shape `(batch_size, rows, columns)`, *optional*):
            hidden tokens at the edge of a hole, of whose pixels at least half are kept.
    """

    tokens: torch.LongTensor
    is_hidden: torch.BoolTensor
    pixels: torch.FloatTensor | None = None
    mask: torch.FloatTensor | None = None
    is_cut: torch.BoolTensor | None = None

    @classmethod
    def blank(cls, batch_size: int, grid_size: tuple[int, int], device: torch.device) -> "Canvas":
        """Nothing is known."""
        tokens = torch.zeros(batch_size, *grid_size, dtype=torch.long, device=device)
        return cls(tokens, torch.ones_like(tokens, dtype=torch.bool))

    @classmethod
    def from_image(cls, tokens: torch.LongTensor, pixels: torch.FloatTensor, mask: torch.FloatTensor) -> "Canvas":
        """Tokens are hidden in whose patch some pixel is replaced at least by half."""
        mask = mask.expand(len(pixels), -1, -1, -1)
        is_replaced, (rows, columns) = (mask >= 0.5).to(pixels), tokens.shape[1:]
        replaced = F.adaptive_avg_pool2d(is_replaced, (rows, columns)).squeeze(1)
        is_hidden, is_hole = replaced > 0, replaced > 0.5
        # Where a mask does not reach beyond the edges of tokens, they are all that there is to make.
        is_cut = is_hidden & ~is_hole & is_hole.flatten(1).any(dim=1)[:, None, None]
        return cls(tokens, is_hidden, pixels, mask, is_cut)

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        rows, columns = self.tokens.shape[1:]
        return rows, columns

    def read_again(self, tokens: torch.LongTensor) -> "Canvas":
        """The same with tokens of an image without holes, which are known where the mask's edge runs too."""
        is_hidden = self.is_hidden if self.is_cut is None else self.is_hidden & ~self.is_cut
        return replace(self, tokens=tokens, is_hidden=is_hidden, is_cut=None)

    def repeat(self, count: int) -> "Canvas":
        """Each image `count` times in a row."""
        known = {name: part.repeat_interleave(count, dim=0) for name, part in vars(self).items() if part is not None}
        return Canvas(**known)

    def paste(self, decoded: torch.FloatTensor, feather: int) -> torch.FloatTensor:
        """Puts the known pixels back over decoded ones of the same shape, and blends the seam."""
        if self.pixels is None or self.mask is None:
            return decoded
        blended = blend_seam(decoded, self.pixels, self.mask, feather)
        # Not the formula everywhere: what is kept must not even be rounded.
        return torch.where(self.mask > 0, torch.lerp(self.pixels, blended, self.mask), self.pixels)


def canvas_size(
    image_sizes: Sequence[tuple[int, int]], trained_size: tuple[int, int], patch_size: int
) -> tuple[int, int]:
    """
    Height and width, in pixels, to which images are resized: the smallest whole number of tokens that covers the
    trained size at the images' own shape.

    Args:
        image_sizes (`Sequence[tuple[int, int]]`): height and width of each image.
        trained_size (`tuple[int, int]`): height and width that the model was trained on, in pixels.

    Raises:
        ValueError: for images of different shapes or too long ones.
    """
    fitted = {_fit(size, trained_size, patch_size) for size in image_sizes}
    if len(fitted) > 1:
        raise ValueError(
            f"Images of different shapes make no batch, got sizes {sorted(set(image_sizes))} (height, width). Pass "
            f"them one by one, or `height` and `width` to resize them all to, for instance {trained_size}."
        )
    return fitted.pop()


def _fit(size: tuple[int, int], trained_size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    scale = max(trained / side for trained, side in zip(trained_size, size, strict=True))
    tokens = [max(round(scale * side / patch_size), 1) for side in size]
    height, width = (max(patch_size * n, trained) for n, trained in zip(tokens, trained_size, strict=True))
    fitted = (height, width)
    if any(side > LARGEST_ASPECT_RATIO * trained for side, trained in zip(fitted, trained_size, strict=True)):
        raise ValueError(
            f"An image of {size} (height, width) would be {fitted} where it covers the model's {trained_size}, "
            f"more than {LARGEST_ASPECT_RATIO} times as long. Crop it, or pass `height` and `width` to resize it to."
        )
    return fitted


def check_canvas_side(name: str, side: int, patch_size: int) -> int:
    """`side` as an `int`. Raises ValueError where so many pixels are not a whole number of tokens."""
    if is_whole_number(side) and int(side) >= patch_size and int(side) % patch_size == 0:
        return int(side)
    is_number = is_whole_number(side) or (isinstance(side, float) and math.isfinite(side))
    nearest = max(1, round(int(side) / patch_size)) * patch_size if is_number else patch_size
    raise ValueError(
        f"`{name}` must be a multiple of {patch_size} pixels, so that the canvas has whole tokens, got {side!r}. "
        f"{nearest} would do."
    )


def parse_padding(padding: int | Sequence[int] | None, patch_size: int) -> tuple[int, int, int, int]:
    """
    Pixels to add on the left, at the top, on the right and at the bottom.

    Raises:
        ValueError: for padding that is negative, not in whole tokens, or not one or four numbers.
    """
    is_sequence = isinstance(padding, (Sequence, np.ndarray, torch.Tensor)) and not is_whole_number(padding)
    sides: tuple[Any, ...] = tuple(cast(Sequence[int], padding)) if is_sequence else (padding or 0,) * 4
    if len(sides) != 4 or not all(is_whole_number(side) for side in sides):
        raise ValueError(f"`padding` must be one number or (left, top, right, bottom), got {padding!r}.")
    left, top, right, bottom = (int(side) for side in sides)
    if any(side < 0 or side % patch_size for side in (left, top, right, bottom)):
        nearest = tuple(patch_size * max(0, round(side / patch_size)) for side in (left, top, right, bottom))
        raise ValueError(
            f"`padding` must be 0 or a multiple of {patch_size} pixels on each side, so that it makes whole tokens, "
            f"got {padding!r}. {nearest} (left, top, right, bottom) would do."
        )
    return left, top, right, bottom


def pad_with_unknown(
    pixels: torch.FloatTensor, mask: torch.FloatTensor, padding: tuple[int, int, int, int]
) -> tuple[torch.FloatTensor, torch.FloatTensor]:
    """Pixels and mask with pixels to make on the left, at the top, on the right and at the bottom."""
    left, top, right, bottom = padding
    sides = (left, right, top, bottom)
    return F.pad(pixels, sides), F.pad(mask, sides, value=1)


def blend_seam(
    decoded: torch.FloatTensor, known: torch.FloatTensor, mask: torch.FloatTensor, feather: int
) -> torch.FloatTensor:
    """
    Continues the known pixels smoothly into the replaced ones. Along the edge of what is kept the decoder's pixels
    are off by some tint; that difference is carried into the mask and fades out there. So the seam disappears, while
    nothing of what the mask covers comes through.

    Args:
        decoded, known (`torch.FloatTensor` of shape `(batch_size, channels, height, width)`): in [0, 1].
        mask (`torch.FloatTensor` of shape `(batch_size, 1, height, width)`): above 0 where pixels are replaced.
        feather (`int`): how far the difference reaches, in pixels; 0 leaves the seam as it is.

    Returns:
        `torch.FloatTensor` of the same shape, in [0, 1].
    """
    if feather == 0:
        return decoded
    is_kept = (mask == 0).to(decoded)
    kept = _blur(is_kept, feather)
    difference = _blur(is_kept * (known - decoded), feather) / kept.clamp(min=torch.finfo(kept.dtype).eps)
    # At a straight edge half of the neighbourhood is kept.
    weight = (2 * kept / _blur(torch.ones_like(is_kept), feather)).clamp(max=1)
    return (decoded + weight * difference).clamp(0, 1)


def _blur(image: torch.FloatTensor, radius: int) -> torch.FloatTensor:
    """Averages over a triangle of `radius` pixels to each side; beyond the image there is nothing."""
    weights = 1 - torch.arange(-radius, radius + 1, device=image.device).abs() / (radius + 1)
    weights = (weights / weights.sum()).to(image.dtype)
    flat = image.flatten(0, 1)[:, None]
    flat = F.conv2d(flat, weights[None, None, None], padding=(0, radius))
    flat = F.conv2d(flat, weights[None, None, :, None], padding=(radius, 0))
    return flat.view(image.shape)


def window_starts(length: int, window: int) -> list[int]:
    """Where windows begin that cover `length` tokens evenly and overlap by half or more."""
    if length < window:
        raise ValueError(f"A window of {window} tokens does not fit into {length}.")
    count = 1 + math.ceil(2 * (length - window) / window)
    return [round(i * (length - window) / max(count - 1, 1)) for i in range(count)]


def split_into_windows(tokens: torch.LongTensor, window: tuple[int, int]) -> torch.LongTensor:
    """(num_windows * batch_size, *window): all windows over (batch_size, rows, columns), one after the other."""
    height, width = window
    return torch.cat(
        [tokens[:, top : top + height, left : left + width] for top, left in _corners(tokens.shape[1:3], window)]
    )


def merge_windows(logits: torch.FloatTensor, grid_size: tuple[int, int], window: tuple[int, int]) -> torch.FloatTensor:
    """
    Logits of a canvas from those of its windows: their mean where windows overlap, as MultiDiffusion fuses its paths
    (arXiv 2302.08113).

    Args:
        logits (`torch.FloatTensor` of shape `(num_windows * batch_size, window tokens, codebook_size)`).

    Returns:
        `torch.FloatTensor` of shape `(batch_size, rows * columns, codebook_size)`, float32.
    """
    height, width = window
    corners = _corners(grid_size, window)
    parts = logits.float().unflatten(1, window).chunk(len(corners))
    total = parts[0].new_zeros(parts[0].shape[0], *grid_size, logits.shape[-1])
    count = total.new_zeros(*grid_size, 1)
    for (top, left), part in zip(corners, parts, strict=True):
        total[:, top : top + height, left : left + width] += part
        count[top : top + height, left : left + width] += 1
    return (total / count).flatten(1, 2)


def _corners(grid_size: Sequence[int], window: tuple[int, int]) -> list[tuple[int, int]]:
    tops, lefts = (window_starts(length, side) for length, side in zip(grid_size, window, strict=True))
    return [(top, left) for top in tops for left in lefts]


__all__ = [
    "Canvas",
    "Edit",
    "blend_seam",
    "canvas_size",
    "merge_windows",
    "pad_with_unknown",
    "parse_padding",
    "read_edit",
    "split_into_windows",
    "window_starts",
]
