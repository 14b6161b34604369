"""The autoencoder of a VQGAN while it is trained: a stock `VQModel`, with the losses of VQ-VAE."""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import VQModel
from torch import Tensor, nn

from ...image_tokens import nearest_codes
from .codebook import revive_dead_codes


@dataclass
class Autoencoding:
    """
    Attributes:
        reconstruction_loss, codebook_loss, commitment_loss (`torch.Tensor`): scalars.
        latents (`torch.Tensor` of shape `(num_tokens, dim)`): of the batch.
        token_ids (`torch.Tensor` of shape `(batch_size, rows, columns)`): their nearest codes.
        reconstruction (`torch.Tensor` of shape `(batch_size, channels, height, width)`).
    """

    reconstruction_loss: Tensor
    codebook_loss: Tensor
    commitment_loss: Tensor
    latents: Tensor
    token_ids: Tensor
    reconstruction: Tensor


class VQModelForTraining(nn.Module):
    """
    A diffusers `VQModel` with the losses of VQ-VAE (arXiv 1711.00937, equation 3): the reconstruction passes its
    gradient straight through the quantisation, codes move to their latents, and latents commit to their codes.

    `VQModel` itself gives one loss with the weights of the last two exchanged, so they are computed here.

    Args:
        vqvae (`VQModel`): the model to train.
        l1_share (`float`): share of the absolute in the reconstruction error; the rest is squared.
        normalize_codes (`bool`): whether latents and codes are compared at length one (arXiv 2110.04627), which keeps
            codes of few dimensions (`vq_embed_dim`) in use. [`export`] puts codes of length one into the `VQModel`;
            which is nearest then does not depend on a latent's length, so that a stock model gives the same tokens
            and images. Only the latents that its `encode` returns are not normalised.
    """

    usage: Tensor

    def __init__(self, vqvae: VQModel, l1_share: float = 0.5, normalize_codes: bool = False):
        super().__init__()
        self.vqvae = vqvae
        self.l1_share = l1_share
        self.normalize_codes = normalize_codes
        self.register_buffer("usage", torch.zeros(vqvae.config.num_vq_embeddings))

    def autoencode(self, pixel_values: torch.FloatTensor) -> Autoencoding:
        latents, codebook = self.vqvae.quant_conv(self.vqvae.encoder(pixel_values)), self.codebook()
        if self.normalize_codes:
            latents = F.normalize(latents, dim=1)
        token_ids = nearest_codes(latents, codebook)
        quantized = F.embedding(token_ids, codebook).permute(0, 3, 1, 2)
        straight_through = latents + (quantized - latents).detach()
        reconstruction = self.vqvae.decoder(self.vqvae.post_quant_conv(straight_through))
        return Autoencoding(
            reconstruction_loss=self.reconstruction_loss(reconstruction, pixel_values),
            codebook_loss=F.mse_loss(quantized, latents.detach()),
            commitment_loss=F.mse_loss(latents, quantized.detach()),
            latents=latents.permute(0, 2, 3, 1).flatten(0, 2),
            token_ids=token_ids,
            reconstruction=reconstruction,
        )

    def codebook(self) -> Tensor:
        """(codebook_size, dim): the codes as latents are compared with them."""
        codes = self.vqvae.quantize.embedding.weight
        return F.normalize(codes, dim=1) if self.normalize_codes else codes

    def reconstruction_loss(self, reconstruction: Tensor, pixel_values: Tensor) -> Tensor:
        absolute = F.l1_loss(reconstruction, pixel_values)
        return self.l1_share * absolute + (1 - self.l1_share) * F.mse_loss(reconstruction, pixel_values)

    @torch.no_grad()
    def track_usage(self, counts: Tensor, decay: float = 0.99):
        """Keeps a moving average of how often each code occurs; `counts` of shape `(codebook_size,)`."""
        self.usage.lerp_(counts.to(self.usage), 1 - decay)

    @torch.no_grad()
    def revive_dead_codes(self, latents: Tensor, threshold: float) -> int:
        """See [`revive_dead_codes`]. Gives how many there were."""
        weight = self.vqvae.quantize.embedding.weight
        weight.copy_(self.codebook())
        dead = revive_dead_codes(weight, self.usage, latents, threshold)
        self.usage[dead] = self.usage.sum() / len(self.usage)
        return len(dead)

    @torch.no_grad()
    def export(self) -> VQModel:
        """A stock `VQModel` of its own that gives the same tokens and reconstructions."""
        vqvae = copy.deepcopy(self.vqvae)
        vqvae.quantize.embedding.weight.copy_(self.codebook())
        return vqvae
