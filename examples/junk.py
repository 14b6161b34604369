"""
Images that show nothing, made of images that do. A classifier that never saw any is sure of much of it, and its
certainty about samples then says little.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def shuffled_blocks(images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """The sixteen blocks of each image in another order."""
    side = images.shape[2] // 4
    blocks = F.unfold(images, side, stride=side)
    order = torch.rand(len(images), 16, generator=generator).argsort(dim=1)
    blocks = blocks.gather(2, order[:, None].expand_as(blocks))
    return F.fold(blocks, images.shape[2:], side, stride=side)


def joined_halves(images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """One half of each image, upper, lower, left or right, and the other half of one of another kind."""
    partners, side = _of_another_kind(labels, generator), images.shape[2]
    half = torch.arange(side) < side // 2
    halves = torch.stack([half[:, None].expand(side, side), half.expand(side, side)])
    halves = torch.cat([halves, ~halves])[torch.randint(4, (len(images),), generator=generator)]
    return torch.where(halves[:, None], images, images[partners])


def _of_another_kind(labels: Tensor, generator: torch.Generator) -> Tensor:
    """(N,) for each label the index of a random other one that differs, if any does."""
    scores = torch.rand(len(labels), len(labels), generator=generator)
    return scores.masked_fill_(labels[:, None] == labels, -1).argmax(dim=1)


def noise(images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform noise for half of the images, and the others under as much noise as image."""
    pixels = torch.rand(images.shape, generator=generator)
    share = torch.where(torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5, 1.0, 0.5)
    return images.lerp(pixels, share)


def blurred(images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Images of which only the averages of wide neighbourhoods are left, twice over."""
    side = images.shape[2] // 3 | 1
    for _ in range(2):
        images = F.avg_pool2d(images, side, stride=1, padding=side // 2, count_include_pad=False)
    return images


# By name, as they stand in tables.
JUNK_KINDS: dict[str, Callable[[Tensor, Tensor, torch.Generator], Tensor]] = {
    "shuffled blocks": shuffled_blocks,
    "halves of two images": joined_halves,
    "noise": noise,
    "blur": blurred,
}


def make_junk(images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """
    Junk of all four kinds, a quarter each.

    Args:
        images (`torch.Tensor` of shape `(N, 1, side, side)`): real images, floats in [0, 1].
        labels (`torch.Tensor` of shape `(N,)`): their kinds.
        generator (`torch.Generator`): of the draws.

    Returns:
        `torch.Tensor` of shape `(N, 1, side, side)`.
    """
    parts = zip(JUNK_KINDS.values(), images.chunk(4), labels.chunk(4), strict=True)
    return torch.cat([junk(*part, generator) for junk, *part in parts])
