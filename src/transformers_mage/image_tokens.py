"""Images to tokens and back, with a tokenizer (a diffusers `VQModel`)."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from diffusers import VQModel

# What the tokenizer takes at once, 8 images of 256 x 256. More keep no device busier, and take their memory.
PIXELS_AT_ONCE = 2**19
# What black and white are to a tokenizer whose configuration does not say it.
PIXEL_RANGE = (0.0, 1.0)
# Where it does. Of entries with an underscore a stock `VQModel` keeps what it does not know, without a warning.
PIXEL_RANGE_ENTRY = "_pixel_range"


def pixel_range(vqvae: VQModel) -> tuple[float, float]:
    """What black and white are to the tokenizer: (0, 1) for MAGE's, (-1, 1) for those of latent diffusion."""
    low, high = vqvae.config.get(PIXEL_RANGE_ENTRY) or PIXEL_RANGE
    return float(low), float(high)


def set_pixel_range(vqvae: VQModel, low: float, high: float):
    """
    Notes in the tokenizer's configuration, with which it is saved, what black and white are to it.

    Raises:
        ValueError: if black is not below white.
    """
    if low >= high:
        raise ValueError(
            f"The pixels of a tokenizer must go from a lower value to a higher one, got {low} and {high}."
        )
    vqvae.register_to_config(**{PIXEL_RANGE_ENTRY: [low, high]})


def vq_config_of(vqvae: VQModel) -> dict[str, Any]:
    """The `vq_config` of a [`MageConfig`] for models with this tokenizer."""
    config = {name: value for name, value in vqvae.config.items() if not name.startswith("_")}
    return config if pixel_range(vqvae) == PIXEL_RANGE else config | {PIXEL_RANGE_ENTRY: list(pixel_range(vqvae))}


@torch.no_grad()
def encode_images(vqvae: VQModel, pixel_values: torch.FloatTensor) -> torch.LongTensor:
    """
    Tokens of images, a few images at a time. They do not depend on autocast: in bfloat16, 2 % of the digits' tokens
    are others.

    Args:
        vqvae (`VQModel`): the tokenizer.
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): in [0, 1], whatever
            the tokenizer's own range is.

    Returns:
        `torch.LongTensor` of shape `(batch_size, rows, columns)`.
    """

    def encode(pixels: torch.Tensor) -> torch.LongTensor:
        pixels = _rescaled(pixels, PIXEL_RANGE, pixel_range(vqvae))
        return nearest_codes(vqvae.encode(pixels.to(vqvae.dtype)).latents, codebook)

    with without_autocast(pixel_values.device):
        # Looked up, not read: weights that are offloaded or sharded are there only while their module works.
        codebook = vqvae.quantize.embedding(torch.arange(vqvae.quantize.n_e, device=pixel_values.device))
        return _in_parts(encode, pixel_values, pixel_values.shape[2] * pixel_values.shape[3])


@torch.no_grad()
def decode_images(
    vqvae: VQModel, image_tokens: torch.LongTensor, dtype: torch.dtype | None = None
) -> torch.FloatTensor:
    """
    Pixels of tokens, a few images at a time.

    Args:
        vqvae (`VQModel`): the tokenizer.
        image_tokens (`torch.LongTensor` of shape `(batch_size, rows, columns)`): codes, without masks.
        dtype (`torch.dtype`, *optional*): what to compute in, by default as autocast says. The tokenizer of the digits
            model decodes in bfloat16 what it decodes in float32, within 4 of 255 shades (57 dB).

    Returns:
        `torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`, in about [0, 1].
    """

    def decode(tokens: torch.Tensor) -> torch.FloatTensor:
        # Contiguous, since group norm on the CPU loses a digit in channels-last.
        latents = vqvae.quantize.embedding(tokens).permute(0, 3, 1, 2).contiguous()
        # The decoders of `norm_type="spatial"` look at the codes in every norm.
        codes = latents if vqvae.config.norm_type == "spatial" else None
        pixels = vqvae.decoder(vqvae.post_quant_conv(latents), codes).to(vqvae.dtype)
        return _rescaled(pixels, pixel_range(vqvae), PIXEL_RANGE)

    patch_area = 4 ** (len(vqvae.config.block_out_channels) - 1)
    precision = nullcontext() if dtype is None else torch.autocast(image_tokens.device.type, dtype)
    with precision:
        return _in_parts(decode, image_tokens, image_tokens.shape[1] * image_tokens.shape[2] * patch_area)


@torch.no_grad()
def nearest_codes(latents: torch.Tensor, codebook: torch.Tensor) -> torch.LongTensor:
    """
    The nearest code, by Euclidean distance, of each latent.

    Args:
        latents (`torch.Tensor` of shape `(batch_size, dim, rows, columns)`): what a tokenizer encodes images to.
        codebook (`torch.Tensor` of shape `(codebook_size, dim)`): its codes.

    Returns:
        `torch.LongTensor` of shape `(batch_size, rows, columns)`.
    """
    vectors = latents.permute(0, 2, 3, 1).flatten(0, 2)
    # |z - e|^2 up to |z|^2, which is the same for all codes; float32 because tokens must not depend on autocast.
    with without_autocast(latents.device):
        vectors = vectors.float()
        codebook = codebook.to(vectors)
        distances = torch.addmm(codebook.pow(2).sum(dim=1), vectors, codebook.T, alpha=-2)
    return distances.argmin(dim=1).view(-1, *latents.shape[2:])


def _rescaled(pixels: torch.Tensor, range_: tuple[float, float], new: tuple[float, float]) -> torch.Tensor:
    if range_ == new:
        return pixels
    return (pixels - range_[0]) * ((new[1] - new[0]) / (range_[1] - range_[0])) + new[0]


def without_autocast(device: torch.device) -> AbstractContextManager:
    # The meta device, where work is counted, has none. Where it is off, exported graphs need not switch it off.
    if not torch.amp.is_autocast_available(device.type) or not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def _in_parts(
    function: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, pixels_per_image: int
) -> torch.Tensor:
    # A recorded loop would be as many copies of its body, and would stay as long for batches of other sizes.
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return function(images)
    size = max(1, PIXELS_AT_ONCE // pixels_per_image)
    if images.shape[0] <= size:
        return function(images)
    return torch.cat([function(part) for part in images.split(size)])


__all__ = [
    "decode_images",
    "encode_images",
    "nearest_codes",
    "pixel_range",
    "set_pixel_range",
    "vq_config_of",
    "without_autocast",
]
