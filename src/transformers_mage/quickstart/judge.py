"""A feature network of the images themselves: for a Fréchet distance where networks of photographs see nothing."""

from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..progress import progress_bar

# Larger images are averaged down to this.
LARGEST_SIDE = 64
BATCH_SIZE = 64
ROTATIONS = 4


class Judge(nn.Module):
    """
    A small convolutional classifier, trained on the images that a model is trained on: of their classes or, where
    there are none, of how they are turned (arXiv 1803.07728). Features are those of its last hidden layer.

    Args:
        num_classes (`int`): of the images; 0 learns their rotations.
        width (`int`): channels of its finest level.
    """

    def __init__(self, num_classes: int = 0, width: int = 24):
        super().__init__()
        self.num_classes = num_classes
        self.layers = nn.Sequential(
            *_convolution(3, width),
            *_convolution(width, 2 * width, stride=2),
            *_convolution(2 * width, 2 * width),
            *_convolution(2 * width, 3 * width, stride=2),
            *_convolution(3 * width, 3 * width),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.classifier = nn.Linear(3 * width, num_classes or ROTATIONS)

    @property
    def kind(self) -> str:
        """What it was trained to tell, as tables have it."""
        return (
            "a small network trained on their classes" if self.num_classes else "a small network trained on rotations"
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            images (`torch.Tensor` of shape `(N, 1 or 3, height, width)`): uint8, or floats in [0, 1].

        Returns:
            Features of shape `(N, 72)` and logits of shape `(N, num_classes)`.
        """
        pixels = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        if max(pixels.shape[2:]) > LARGEST_SIDE:
            pixels = F.adaptive_avg_pool2d(pixels, LARGEST_SIDE)
        features = self.layers(2 * pixels.expand(-1, 3, -1, -1) - 1)
        return features, self.classifier(features)

    def save(self, path: str | Path):
        save_file(self.state_dict(), path)

    @classmethod
    def load(cls, path: str | Path, num_classes: int = 0) -> "Judge":
        judge = cls(num_classes)
        judge.load_state_dict(load_file(path))
        return judge.requires_grad_(False).eval()


def _convolution(in_channels: int, out_channels: int, stride: int = 1) -> list[nn.Module]:
    layer = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
    return [layer, nn.GroupNorm(8, out_channels), nn.SiLU()]


def train_judge(images: Tensor, labels: Tensor | None, num_classes: int, updates: int, seed: int = 0) -> Judge:
    """
    Args:
        images (`torch.Tensor` of shape `(N, 3, height, width)`): uint8.
        labels (`torch.Tensor` of shape `(N,)`, *optional*): their classes.
        num_classes (`int`): that there are; 0 without labels.
        updates (`int`): steps of 64 images.

    Returns:
        [`Judge`]: on the processor, wherever it was trained.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        judge = Judge(num_classes).train()
    device = PartialState().device
    judge.to(device)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=max(updates, 2))
    for _ in progress_bar(range(updates), desc="Training the judge", leave=False):
        chosen = torch.randint(len(images), (BATCH_SIZE,), generator=generator)
        pixels = images[chosen]
        if labels is None:
            targets = torch.arange(BATCH_SIZE) % ROTATIONS
            pixels = torch.stack(
                [image.rot90(int(turns), (1, 2)) for image, turns in zip(pixels, targets, strict=True)]
            )
        else:
            targets = labels[chosen]
        F.cross_entropy(judge(pixels.to(device))[1], targets.to(device)).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return judge.cpu().requires_grad_(False).eval()
