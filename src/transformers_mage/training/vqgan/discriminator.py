"""What tells reconstructions from photographs, patch by patch."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


class BlurPool(nn.Module):
    """Halves a map without aliasing: a binomial filter, then every other pixel (arXiv 1904.11486)."""

    kernel: Tensor

    def __init__(self):
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("kernel", torch.outer(row, row)[None, None], persistent=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        channels = hidden_states.shape[1]
        padded = F.pad(hidden_states, (1, 1, 1, 1), mode="replicate")
        kernel = self.kernel.to(padded.dtype).expand(channels, 1, -1, -1)
        return F.conv2d(padded, kernel, stride=2, groups=channels)


class PatchDiscriminator(nn.Module):
    """
    A PatchGAN (arXiv 1611.07004) with blur-pooling in place of strides: a score for each patch, positive where it
    looks real. It normalises each image alone, so that a score does not depend on the rest of the batch.

    Args:
        in_channels (`int`): channels of the images.
        channels (`int`): of the finest level; each level has twice those of the one before, eight times at most.
        num_levels (`int`): halvings of the image.
        spectral (`bool`): whether the weights' spectral norms are held at one (arXiv 1802.05957), in place of
            the group norms.
    """

    def __init__(self, in_channels: int = 3, channels: int = 64, num_levels: int = 3, spectral: bool = False):
        super().__init__()
        widths = [channels * min(2**level, 8) for level in range(num_levels + 1)]
        layers: list[nn.Module] = [_conv(in_channels, widths[0], spectral), nn.LeakyReLU(0.2)]
        for before, width in pairwise(widths):
            norm = nn.Identity() if spectral else nn.GroupNorm(_groups(width), width)
            layers += [_conv(before, width, spectral, bias=spectral), BlurPool(), norm, nn.LeakyReLU(0.2)]
        layers.append(_conv(widths[-1], 1, spectral))
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """
        Args:
            images (`torch.Tensor` of shape `(batch_size, in_channels, height, width)`): in [0, 1].

        Returns:
            `torch.Tensor` of shape `(batch_size, 1, height / 2^num_levels, width / 2^num_levels)`.
        """
        return self.layers(2 * images - 1)


def _conv(in_channels: int, out_channels: int, spectral: bool, bias: bool = True) -> nn.Module:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=bias)
    return spectral_norm(conv) if spectral else conv


def _groups(channels: int) -> int:
    """The most groups up to 32 that divide the channels."""
    return next(groups for groups in range(min(32, channels), 0, -1) if channels % groups == 0)
