"""Masking for training (MAGE, section 3.2): a variable ratio, tokens that are dropped, and tokens that are masked."""

import math
from dataclasses import dataclass

import torch

from .checks import whole_number
from .configuration_mage import MageConfig


@dataclass
class MageMasks:
    """
    What one training step hides. Unpack it into the model: `model(input_ids=..., **masks.as_kwargs())`.

    Attributes:
        bool_masked_pos (`torch.BoolTensor` of shape `(batch_size, sequence_length)`): positions to predict.
        bool_dropped_pos (`torch.BoolTensor` of shape `(batch_size, sequence_length)`):
            those of them that the encoder does not see at all.
        num_dropped (`int`): dropped positions in each image.
        num_masked (`int`, *optional*):
            masked positions in the whole batch, where the host knows it. It spares the model a device synchronisation.
        max_masked (`int`, *optional*):
            most masked positions of an image, where the host knows it. It spares the model work at the others.
    """

    bool_masked_pos: torch.BoolTensor
    bool_dropped_pos: torch.BoolTensor
    num_dropped: int
    num_masked: int | None = None
    max_masked: int | None = None

    def as_kwargs(self) -> dict[str, torch.Tensor | int | None]:
        return dict(vars(self))


def sample_mask_ratio(
    config: MageConfig, num_ratios: int = 1, generator: torch.Generator | None = None
) -> torch.Tensor:
    """
    Draws masking ratios from the truncated normal distribution of `config`, by inverting its cumulative distribution.

    Returns:
        `torch.Tensor` of shape `(num_ratios,)`, float64, on the generator's device.
    """
    device = generator.device if generator is not None else None
    uniform = torch.rand(num_ratios, generator=generator, device=device, dtype=torch.float64)
    low, high, mean, std = config.mask_ratio_min, config.mask_ratio_max, config.mask_ratio_mean, config.mask_ratio_std
    if std == 0:
        return torch.full_like(uniform, min(max(mean, low), high))
    low_quantile, high_quantile = (_normal_cdf((bound - mean) / std) for bound in (low, high))
    quantile = low_quantile + uniform * (high_quantile - low_quantile)
    return (mean + std * torch.special.ndtri(quantile)).clamp(low, high)


def sample_masks(
    config: MageConfig,
    batch_size: int,
    sequence_length: int | None = None,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    per_image: bool = False,
) -> MageMasks:
    """
    Draws what a training step hides: ceil(drop_ratio L) dropped tokens and ceil(ratio L) masked ones, the dropped
    among them, uniformly for each image.

    Everything is drawn on the generator's device and nothing waits for an accelerator. A generator on the CPU gives
    the same masks whatever `device` is, and lets the host know how many tokens are masked.

    Args:
        sequence_length (`int`, *optional*): tokens an image; `config.sequence_length` by default.
        device (`torch.device`, *optional*): where the masks are wanted; the generator's device by default.
        per_image (`bool`): draw a ratio for each image. The original draws one for a step's whole batch.

    Raises:
        ValueError: for sizes that are not whole numbers of at least 1.
    """
    batch_size = whole_number("batch_size", batch_size, least=1)
    length = config.sequence_length
    if sequence_length is not None:
        length = whole_number("sequence_length", sequence_length, least=1)
    ratio = sample_mask_ratio(config, batch_size if per_image else 1, generator)
    noise = torch.rand(batch_size, length, generator=generator, device=ratio.device)
    num_masked = torch.ceil(length * ratio).long()[:, None]
    num_dropped = math.ceil(length * (config.drop_ratio or 0))
    rank = to_device(noise, device).argsort(dim=1).argsort(dim=1)
    on_host = ratio.device.type == "cpu"
    return MageMasks(
        bool_masked_pos=rank < to_device(num_masked, device),
        bool_dropped_pos=rank < num_dropped,
        num_dropped=num_dropped,
        num_masked=int(num_masked.expand(batch_size, 1).sum()) if on_host else None,
        max_masked=int(num_masked.max()) if on_host else None,
    )


def to_device(tensor: torch.Tensor, device: torch.device | str | None) -> torch.Tensor:
    """Moves `tensor` without making the host wait for the accelerator."""
    if device is None or torch.device(device) == tensor.device:
        return tensor
    if torch.device(device).type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _normal_cdf(value: float) -> float:
    return 0.5 * (1 + math.erf(value / math.sqrt(2)))


__all__ = ["MageMasks", "sample_mask_ratio", "sample_masks"]
