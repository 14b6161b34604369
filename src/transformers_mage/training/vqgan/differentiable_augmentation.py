"""Differentiable augmentation (arXiv 2006.10738): what the discriminator sees is changed at random, real or not."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def augment(images: Tensor, kinds: tuple[str, ...]) -> Tensor:
    """
    Images `(N, C, H, W)` in [0, 1], each changed in its own way, drawn from torch's global generator. Gradients pass.

    Args:
        kinds (`tuple[str, ...]`): of `"color"`, `"translation"` and `"cutout"`.
    """
    for kind in kinds:
        images = KINDS[kind](images)
    return images


def jitter_color(images: Tensor) -> Tensor:
    """Brightness by up to half of the range, saturation by up to twice, contrast by up to half."""
    images = images + _uniform(images, -0.5, 0.5)
    grey = images.mean(dim=1, keepdim=True)
    images = grey + (images - grey) * _uniform(images, 0, 2)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (images - mean) * _uniform(images, 0.5, 1.5)


def translate(images: Tensor, share: float = 1 / 8) -> Tensor:
    """Shifts by up to an eighth of the sides; what comes in is black."""
    count, _, height, width = images.shape
    rows, columns = round(height * share), round(width * share)
    padded = F.pad(images, (columns, columns, rows, rows))
    down = torch.randint(0, 2 * rows + 1, (count, 1), device=images.device)
    right = torch.randint(0, 2 * columns + 1, (count, 1), device=images.device)
    down = (down + torch.arange(height, device=images.device))[:, :, None]
    right = (right + torch.arange(width, device=images.device))[:, None, :]
    number = torch.arange(count, device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[number, down, right].permute(0, 3, 1, 2)


def cut_out(images: Tensor, share: float = 1 / 2) -> Tensor:
    """Blackens a square of half of the sides, which may stick out."""
    inside = []
    for dim in (2, 3):
        size = images.shape[dim]
        side = round(size * share)
        start = torch.randint(-(side // 2), size - side // 2, (len(images), 1), device=images.device)
        position = torch.arange(size, device=images.device)
        inside.append((position >= start) & (position < start + side))
    kept = ~(inside[0][:, None, :, None] & inside[1][:, None, None, :])
    return images * kept


def _uniform(images: Tensor, low: float, high: float) -> Tensor:
    draws = torch.rand(len(images), 1, 1, 1, device=images.device, dtype=images.dtype)
    return low + (high - low) * draws


KINDS: dict[str, Callable[[Tensor], Tensor]] = {"color": jitter_color, "translation": translate, "cutout": cut_out}
