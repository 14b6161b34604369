"""Holes of images, filled with what is nearest to them."""

import torch
import torch.nn.functional as F


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
    rows, columns = _nearest_kept(is_kept, _places(height, width, mask.device)).split(1, dim=1)
    index = (rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)).expand_as(pixels)
    return (pixels * is_kept).flatten(2).gather(2, index.flatten(2)).view_as(pixels)


def _places(height: int, width: int, device: torch.device) -> torch.LongTensor:
    """(2, height, width): row and column of each pixel."""
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    return torch.stack([rows[:, None].expand(height, width), columns.expand(height, width)])


def _nearest_kept(is_kept: torch.BoolTensor, place: torch.LongTensor) -> torch.LongTensor:
    """
    (batch_size, 2, height, width): row and column of the nearest pixel that is kept, by jump flooding (Rong and Tan,
    2006): all pixels at once ask those at ever smaller steps from them which one they know. Outside where none is.
    """
    height, width = place.shape[1:]
    nowhere = -2 * (height + width)
    nearest = torch.where(is_kept, place, nowhere)
    step = 1 << (max(height, width) - 1).bit_length()
    while step := step // 2:
        known = F.pad(nearest, (step,) * 4, value=nowhere)
        for top in (0, step, 2 * step):
            for left in (0, step, 2 * step):
                other = known[:, :, top : top + height, left : left + width]
                is_nearer = _squares(other - place) < _squares(nearest - place)
                nearest = torch.where(is_nearer, other, nearest)
    return nearest


def _squares(offset: torch.LongTensor) -> torch.LongTensor:
    return offset.square().sum(dim=1, keepdim=True)
