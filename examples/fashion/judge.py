"""
What an image of 28 x 28 pixels shows: a classifier of the ten kinds of clothes and of an eleventh, junk.

A classifier of clothes alone calls much noise something to wear, with certainty. This one has also seen junk, so that
the share of samples it is sure of says something, next to its shares for real images and for junk.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from examples.device import device

NUM_CLASSES = 10
JUNK = NUM_CLASSES
SURE = 0.8
# The judge that the model cards' figures are from; `train_judge.py` trains another such.
BUNDLED = Path(__file__).with_name("judge.safetensors")
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
    def load(cls, path: str | Path = BUNDLED) -> "FashionJudge":
        """A judge that `train_judge.py` trained, in evaluation mode."""
        judge = cls()
        judge.load_state_dict(load_file(path))
        return judge.to(device()).eval()


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
    """The verdicts on images of shape `(N, 1 or 3, 28, 28)`, uint8 or floats in [0, 1]; they are on the CPU."""
    where = judge.classifier.weight.device
    features, logits = zip(*(judge(batch.to(where)) for batch in images.split(batch_size)), strict=True)
    certainty, kinds = torch.cat(logits).softmax(dim=1).max(dim=1)
    return Verdicts(torch.cat(features).cpu(), kinds.cpu(), certainty.cpu())
