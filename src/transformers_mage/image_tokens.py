"""Images to tokens and back, with a tokenizer (a diffusers `VQModel`)."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from diffusers import VQModel

# What the tokenizer takes at once, 8 images of 256 x 256. More keep no device busier, and take their memory.
PIXELS_AT_ONCE = 2**19


@torch.no_grad()
def encode_images(vqvae: VQModel, pixel_values: torch.FloatTensor) -> torch.LongTensor:
    """
    Tokens of images, a few images at a time. They do not depend on autocast: in bfloat16, 2 % of the digits' tokens
    are others.

    Args:
        vqvae (`VQModel`): the tokenizer.
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): in [0, 1].

    Returns:
        `torch.LongTensor` of shape `(batch_size, rows, columns)`.
    """

    def encode(pixels: torch.Tensor) -> torch.LongTensor:
        return nearest_codes(vqvae.encode(pixels.to(vqvae.dtype)).latents, codebook)

    with _without_autocast(pixel_values.device):
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
        return vqvae.decoder(vqvae.post_quant_conv(latents)).to(vqvae.dtype)

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
    with _without_autocast(latents.device):
        vectors = vectors.float()
        codebook = codebook.to(vectors)
        distances = torch.addmm(codebook.pow(2).sum(dim=1), vectors, codebook.T, alpha=-2)
    return distances.argmin(dim=1).view(-1, *latents.shape[2:])


def _without_autocast(device: torch.device) -> AbstractContextManager:
    # The meta device, where work is counted, has none.
    if not torch.amp.is_autocast_available(device.type):
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


__all__ = ["decode_images", "encode_images", "nearest_codes"]
