"""Holes of images, filled with what is nearest to them."""

import torch


def fill_from_around(pixels: torch.FloatTensor, mask: torch.FloatTensor) -> torch.FloatTensor:
    """
    What a tokenizer is shown before anything is known of what is to be replaced: of each pixel there, the nearest one
    that is kept. It does not depend on what was there.

    Args:
        pixels (`torch.FloatTensor` of shape `(batch_size, channels, height, width)`): in [0, 1].
        mask (`torch.FloatTensor` of shape `(batch_size, 1, height, width)`): from 0.5 on where pixels are replaced.
    """
    is_kept = mask < 0.5
    height, width = mask.shape[2:]
    rows, columns = _nearest_kept(is_kept)
    index = (rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)).expand_as(pixels)
    return (pixels * is_kept).flatten(2).gather(2, index.flatten(2)).view_as(pixels)


def _nearest_kept(is_kept: torch.BoolTensor) -> tuple[torch.LongTensor, torch.LongTensor]:
    """
    Row and column of the nearest pixel that is kept, each of the shape of `is_kept`, `(batch_size, 1, height, width)`;
    rows outside of the image where none is. Exact, as Euclidean distances are found: in each column, then across.
    """
    height, width = is_kept.shape[2:]
    row = torch.arange(height, device=is_kept.device, dtype=torch.int32)[:, None]
    far = 2 * (height + width)
    above = torch.where(is_kept, row, -far).cummax(dim=2).values
    below = torch.where(is_kept, row, height + far).flip(2).cummin(dim=2).values.flip(2)
    rows = torch.where(row - above <= below - row, above, below)
    squares, column = (rows - row).square(), torch.arange(width, device=is_kept.device, dtype=torch.int32)
    across = (column[:, None] - column).square()
    columns = torch.stack([(across + squares[:, :, y, None]).argmin(dim=3) for y in range(height)], dim=2)
    return rows.gather(3, columns), columns
