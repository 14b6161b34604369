"""The tokenizer: loading a trained one, and training a VQGAN's autoencoder with a codebook that stays in use."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import VQModel
from torch import nn

from ..image_tokens import nearest_codes


@dataclass
class TokenizerOutput:
    """
    Attributes:
        reconstruction_loss, codebook_loss, commitment_loss (`torch.Tensor`): scalars.
        latents (`torch.Tensor` of shape `(num_tokens, dim)`): of the batch, detached.
        token_ids (`torch.Tensor` of shape `(batch_size, rows, columns)`): their nearest codes.
        reconstruction (`torch.Tensor` of shape `(batch_size, channels, height, width)`).
    """

    reconstruction_loss: torch.Tensor
    codebook_loss: torch.Tensor
    commitment_loss: torch.Tensor
    latents: torch.Tensor
    token_ids: torch.Tensor
    reconstruction: torch.Tensor


class VQModelForTraining(nn.Module):
    """
    A diffusers `VQModel` with the losses of VQ-VAE (arXiv 1711.00937, equation 3): the reconstruction passes its
    gradient straight through the quantisation, codes move to their latents, and latents commit to their codes.

    `VQModel` itself gives one loss with the weights of the last two exchanged, so they are computed here.

    Args:
        vqvae (`VQModel`): the model to train.
        l1_share (`float`): share of the absolute in the reconstruction error; the rest is squared.
    """

    def __init__(self, vqvae: VQModel, l1_share: float = 0.5):
        super().__init__()
        self.vqvae = vqvae
        self.l1_share = l1_share
        self.register_buffer("usage", torch.zeros(vqvae.config.num_vq_embeddings))

    def forward(self, pixel_values: torch.FloatTensor) -> TokenizerOutput:
        latents = self.vqvae.quant_conv(self.vqvae.encoder(pixel_values))
        token_ids = nearest_codes(latents, self.vqvae.quantize.embedding.weight)
        quantized = self.vqvae.quantize.embedding(token_ids).permute(0, 3, 1, 2)
        straight_through = latents + (quantized - latents).detach()
        reconstruction = self.vqvae.decoder(self.vqvae.post_quant_conv(straight_through))
        return TokenizerOutput(
            reconstruction_loss=self.reconstruction_loss(reconstruction, pixel_values),
            codebook_loss=F.mse_loss(quantized, latents.detach()),
            commitment_loss=F.mse_loss(latents, quantized.detach()),
            latents=latents.detach().permute(0, 2, 3, 1).flatten(0, 2),
            token_ids=token_ids,
            reconstruction=reconstruction.detach(),
        )

    def reconstruction_loss(self, reconstruction: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        absolute = F.l1_loss(reconstruction, pixel_values)
        return self.l1_share * absolute + (1 - self.l1_share) * F.mse_loss(reconstruction, pixel_values)

    @torch.no_grad()
    def track_usage(self, counts: torch.Tensor, decay: float = 0.99):
        """Keeps a moving average of how often each code occurs; `counts` of shape `(codebook_size,)`."""
        self.usage.lerp_(counts.to(self.usage), 1 - decay)

    @torch.no_grad()
    def revive_dead_codes(self, latents: torch.Tensor, threshold: float) -> int:
        """
        Moves codes that are hardly used, or that only repeat another, to latents that no code is near.

        A code is dead if its share of the tokens is below `threshold` times the even share, or if a code that is used
        more lies closer to it than latents lie to their codes on average. Otherwise codes crowd where most latents
        are, say on a plain background, and which of them a patch gets is chance, which a model then has to predict.

        Args:
            latents (`torch.Tensor` of shape `(num_tokens, dim)`): the same on all processes.

        Returns:
            `int`: how many there were.
        """
        codebook = self.vqvae.quantize.embedding.weight
        even_share = self.usage.sum() / len(self.usage)
        distances = torch.cdist(latents.float(), codebook.float()).square()
        is_dead = self.usage <= threshold * even_share
        is_dead |= self._repeats(distances.min(dim=1).values.mean())
        dead = is_dead.nonzero().squeeze(1)
        if len(dead) == len(codebook):
            distances = torch.ones_like(distances[:, 0])
        else:
            distances = distances[:, ~is_dead].min(dim=1).values
        for code in dead.tolist():
            # As k-means++ chooses its seeds: the likelier, the farther from every code that there is.
            chosen = latents[torch.multinomial(distances.clamp(min=1e-12), 1)]
            codebook[code] = chosen[0].to(codebook.dtype)
            distances = torch.minimum(distances, (latents - chosen).float().square().sum(dim=1))
        self.usage[dead] = even_share
        return len(dead)

    def _repeats(self, squared_error: torch.Tensor) -> torch.BoolTensor:
        """(codebook_size,): whether a code that is used more lies closer than `squared_error`."""
        codebook = self.vqvae.quantize.embedding.weight.float()
        is_near = torch.cdist(codebook, codebook).square() < squared_error
        rank = self.usage.argsort(descending=True, stable=True).argsort()
        return (is_near & (rank[None, :] < rank[:, None])).any(dim=1)


def code_counts(token_ids: torch.Tensor, codebook_size: int) -> torch.Tensor:
    """(codebook_size,) how often each code occurs, without waiting for the device."""
    flat = token_ids.flatten()
    counts = torch.zeros(codebook_size, device=flat.device)
    return counts.scatter_add_(0, flat, torch.ones_like(flat, dtype=counts.dtype))


def code_perplexity(counts: torch.Tensor) -> torch.Tensor:
    """exp of the entropy of how the tokens spread over the codes: `codebook_size` if evenly, 1 if all are the same."""
    return torch.special.entr(counts / counts.sum()).sum().exp()
