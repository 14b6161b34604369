"""Pictures for the cards of the clothes: grids of enlarged images."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor


def draw_grid(images: Tensor, columns: int, scale: int = 2, gap: int = 2) -> Image.Image:
    """
    Images side by side on white, `columns` to a row.

    Args:
        images (`torch.Tensor` of shape `(N, 1, height, width)`): uint8.
        scale (`int`): pixels of the picture for each of theirs.
        gap (`int`): pixels between them.
    """
    images = images.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    missing = -len(images) % columns
    images = F.pad(images, (0, gap, 0, gap, 0, 0, 0, missing), value=255)
    rows = images.unflatten(0, (-1, columns)).squeeze(2)
    picture = rows.permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
    return Image.fromarray(picture[:-gap, :-gap].numpy())


def draw_rows(rows: Sequence[Tensor], **kwargs) -> Image.Image:
    """Rows of equally many images each; see [`draw_grid`]."""
    return draw_grid(torch.cat(list(rows)), columns=len(rows[0]), **kwargs)
