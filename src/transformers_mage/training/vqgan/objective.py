"""What a VQGAN is trained for: true and natural images from a codebook in use, against a critic that learns too."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import VQModel
from torch import Tensor

from .adversarial import Adversary, adaptive_weight
from .autoencoder import Autoencoding, VQModelForTraining
from .codebook import entropy_loss


@dataclass(frozen=True)
class LossWeights:
    """What each loss counts in the sum; 0 leaves it out."""

    reconstruction: float = 1.0
    codebook: float = 1.0
    commitment: float = 0.25
    entropy: float = 0.0
    perceptual: float = 0.0
    adversarial: float = 0.0


@dataclass
class VQGANOutput:
    """
    Attributes:
        loss (`torch.Tensor`): the sum to go backward from, the discriminator's own loss in it. Neither of the two
            networks gets gradients of what the other minimises.
        metrics (`dict[str, torch.Tensor]`): its parts, detached.
        autoencoding ([`Autoencoding`]): what was made of the images.
    """

    loss: Tensor
    metrics: dict[str, Tensor]
    autoencoding: Autoencoding


class VQGANForTraining(VQModelForTraining):
    """
    The two networks of a VQGAN (arXiv 2012.09841) in one: one forward and one backward pass give the gradients of
    both, each for its own loss. So they train on every topology as one model does.

    Args:
        vqvae (`VQModel`): the autoencoder.
        weights ([`LossWeights`]): of the losses.
        perceptual (callable, *optional*): a [`PerceptualDistance`].
        adversary ([`Adversary`], *optional*): the discriminator and its losses.
        adapts_weight (`bool`): whether the adversarial loss also counts [`adaptive_weight`] times.
        l1_share, normalize_codes: see [`VQModelForTraining`].
    """

    def __init__(
        self,
        vqvae: VQModel,
        weights: LossWeights,
        perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
        adversary: Adversary | None = None,
        adapts_weight: bool = False,
        l1_share: float = 0.5,
        normalize_codes: bool = False,
    ):
        super().__init__(vqvae, l1_share, normalize_codes)
        self.weights = weights
        self.perceptual = perceptual
        self.adversary = adversary
        self.adapts_weight = adapts_weight

    def forward(self, pixel_values: torch.FloatTensor, adversarial_share: float = 1.0) -> VQGANOutput:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, channels, height, width)`): in [0, 1].
            adversarial_share (`float`): how much of its weight the adversarial loss has yet; at 0 the discriminator
                learns nothing either.
        """
        made = self.autoencode(pixel_values)
        losses = self._losses(pixel_values, made)
        loss = self._weighted(losses)
        metrics = {f"{name}_loss": value.detach() for name, value in losses.items()}
        if self.adversary is None:
            return VQGANOutput(loss, {"loss": loss.detach(), **metrics}, made)
        if not adversarial_share:
            # Data parallelism waits for gradients of every weight.
            nothing = sum(0 * parameter.sum() for parameter in self.adversary.parameters())
            return VQGANOutput(loss + nothing, {"loss": loss.detach(), **metrics}, made)
        adversarial_loss, game = self._adversarial_loss(self.adversary, losses, made.reconstruction)
        loss = loss + adversarial_share * self.weights.adversarial * adversarial_loss
        discriminator_loss, scores = self.adversary.discriminator_loss(pixel_values, made.reconstruction)
        return VQGANOutput(loss + discriminator_loss, {"loss": loss.detach(), **metrics, **game, **scores}, made)

    def _losses(self, pixel_values: Tensor, made: Autoencoding) -> dict[str, Tensor]:
        losses = {
            "reconstruction": made.reconstruction_loss,
            "codebook": made.codebook_loss,
            "commitment": made.commitment_loss,
        }
        if self.perceptual is not None:
            losses["perceptual"] = self.perceptual(made.reconstruction, pixel_values).mean()
        if self.weights.entropy:
            losses["entropy"] = entropy_loss(made.latents, self.codebook())
        return losses

    def _weighted(self, losses: dict[str, Tensor]) -> Tensor:
        return sum(getattr(self.weights, name) * value for name, value in losses.items())

    def _adversarial_loss(
        self, adversary: Adversary, losses: dict[str, Tensor], reconstruction: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        loss = adversary.generator_loss(reconstruction)
        metrics = {"adversarial_loss": loss.detach()}
        if self.adapts_weight:
            of_image = {name: value for name, value in losses.items() if name in ("reconstruction", "perceptual")}
            weight = adaptive_weight(self._weighted(of_image), loss, self.vqvae.decoder.conv_out.weight)
            loss, metrics = weight * loss, metrics | {"adaptive_weight": weight}
        return loss, metrics
