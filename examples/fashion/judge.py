"""
What an image of 28 x 28 pixels shows: a classifier of the ten kinds of clothes and of an eleventh, junk.

A classifier of clothes alone calls much noise something to wear, with certainty. This one has also seen junk, so that
the share of samples it is sure of says something, next to its shares for real images and for junk.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

NUM_CLASSES = 10
JUNK = NUM_CLASSES
SURE = 0.8
IMAGE_SIZE = 28


class FashionJudge(nn.Module):
    """
    A small convolutional network. It is a feature network for [`FrechetInceptionDistance`] and its like: it returns
    the features of the last hidden layer and the logits of the ten kinds and of junk.
    """

    def __init__(self, width: int = 32):
        super().__init__()
        self.features = nn.Sequential(
            *_convolution(1, width),
            *_convolution(width, width, stride=2),
            *_convolution(width, 2 * width),
            *_convolution(2 * width, 2 * width, stride=2),
            *_convolution(2 * width, 4 * width),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.classifier = nn.Linear(4 * width, NUM_CLASSES + 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            images (`torch.Tensor` of shape `(N, 1 or 3, 28, 28)`): uint8, or floats in [0, 1].

        Returns:
            Features of shape `(N, 128)` and logits of shape `(N, 11)`.
        """
        features = self.features(2 * as_grey(images) - 1)
        return features, self.classifier(features)

    def save(self, path: str | Path):
        save_file(self.state_dict(), path)

    @classmethod
    def load(cls, path: str | Path) -> "FashionJudge":
        """A judge that `train_judge.py` trained, in evaluation mode."""
        judge = cls()
        judge.load_state_dict(load_file(path))
        return judge.eval()


def _convolution(in_channels: int, out_channels: int, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(out_channels), nn.ReLU()]


def as_grey(images: Tensor) -> Tensor:
    """(N, 1, height, width) floats in [0, 1] of grey or RGB images, uint8 or floats in [0, 1]."""
    scale = 255 if images.dtype == torch.uint8 else 1
    return (images.float() / scale).mean(dim=1, keepdim=True)


@dataclass(frozen=True)
class Verdicts:
    """
    What the judge says of some images.

    Attributes:
        features (`torch.Tensor` of shape `(N, 128)`).
        kinds (`torch.Tensor` of shape `(N,)`): the likeliest of the ten kinds, or [`JUNK`].
        certainty (`torch.Tensor` of shape `(N,)`): its probability.
    """

    features: Tensor
    kinds: Tensor
    certainty: Tensor

    @property
    def sure(self) -> float:
        """Share of the images that are clothes of one kind with a probability over 0.8."""
        return float(((self.kinds != JUNK) & (self.certainty > SURE)).float().mean())

    @property
    def junk(self) -> float:
        """Share of the images that are likelier junk than any kind of clothes."""
        return float((self.kinds == JUNK).float().mean())

    @property
    def shares(self) -> list[float]:
        """Share of each of the ten kinds among all images."""
        return (torch.bincount(self.kinds, minlength=NUM_CLASSES + 1)[:NUM_CLASSES] / len(self.kinds)).tolist()


@torch.no_grad()
def judge_images(judge: FashionJudge, images: Tensor, batch_size: int = 500) -> Verdicts:
    """The verdicts on images of shape `(N, 1 or 3, 28, 28)`, uint8 or floats in [0, 1]."""
    features, logits = zip(*(judge(batch) for batch in images.split(batch_size)), strict=True)
    certainty, kinds = torch.cat(logits).softmax(dim=1).max(dim=1)
    return Verdicts(torch.cat(features), kinds, certainty)


def shuffled_blocks(images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """The sixteen 7 x 7 blocks of each image in another order."""
    count, side = len(images), IMAGE_SIZE // 4
    blocks = F.unfold(images, side, stride=side)
    order = torch.rand(count, 16, generator=generator).argsort(dim=1)
    blocks = blocks.gather(2, order[:, None].expand_as(blocks))
    return F.fold(blocks, (IMAGE_SIZE, IMAGE_SIZE), side, stride=side)


def joined_halves(images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """One half of each image, upper, lower, left or right, and the other half of one of another kind."""
    partners = _of_another_kind(labels, generator)
    half = torch.arange(IMAGE_SIZE) < IMAGE_SIZE // 2
    halves = torch.stack([half[:, None].expand(-1, IMAGE_SIZE), half.expand(IMAGE_SIZE, -1)])
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
    """Images of which only the light of 9 x 9 neighbourhoods is left, twice averaged."""
    for _ in range(2):
        images = F.avg_pool2d(images, 9, stride=1, padding=4, count_include_pad=False)
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
        images (`torch.Tensor` of shape `(N, 1, 28, 28)`): real images, floats in [0, 1].
        labels (`torch.Tensor` of shape `(N,)`): their kinds.
        generator (`torch.Generator`): of the draws.

    Returns:
        `torch.Tensor` of shape `(N, 1, 28, 28)`.
    """
    parts = zip(JUNK_KINDS.values(), images.chunk(4), labels.chunk(4), strict=True)
    return torch.cat([junk(*part, generator) for junk, *part in parts])
