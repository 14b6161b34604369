"""The losses of the two players: who tells reconstructions from photographs, and who makes that hard."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from .differentiable_augmentation import augment


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's: scores of real patches should pass 1, those of others -1 (arXiv 1705.02894)."""
    return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


def hinge_generator_loss(fake: Tensor) -> Tensor:
    return -fake.mean()


def non_saturating_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's cross-entropy (arXiv 1406.2661)."""
    return (F.softplus(-real).mean() + F.softplus(fake).mean()) / 2


def non_saturating_generator_loss(fake: Tensor) -> Tensor:
    return F.softplus(-fake).mean()


# The discriminator's loss and the generator's.
LOSSES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "hinge": (hinge_loss, hinge_generator_loss),
    "non-saturating": (non_saturating_loss, non_saturating_generator_loss),
}


class LeCam(nn.Module):
    """
    The regulariser of arXiv 2104.03310 for small sets: scores must not pass the moving averages of the other side's.

    The averages move once an update, by the mean score of all its images, and [`penalty`] takes those of before: so
    neither depends on how the images are spread over processes and passes.
    """

    real: Tensor
    fake: Tensor

    def __init__(self, decay: float = 0.999):
        super().__init__()
        self.decay = decay
        self.register_buffer("real", torch.zeros(()))
        self.register_buffer("fake", torch.zeros(()))

    def penalty(self, real: Tensor, fake: Tensor) -> Tensor:
        return F.relu(real - self.fake).square().mean() + F.relu(self.real - fake).square().mean()

    @torch.no_grad()
    def update(self, real: Tensor, fake: Tensor):
        """Takes the update's mean scores."""
        self.real.lerp_(real.to(self.real), 1 - self.decay)
        self.fake.lerp_(fake.to(self.fake), 1 - self.decay)


class Adversary(nn.Module):
    """
    A discriminator, and what both players learn from its scores.

    Args:
        discriminator (`nn.Module`): images to scores of any shape, positive where they look real.
        loss (`str`): `"hinge"` or `"non-saturating"`.
        lecam_weight (`float`): of [`LeCam`]'s penalty.
        augmentation (`tuple[str, ...]`): see [`augment`].
    """

    def __init__(
        self,
        discriminator: nn.Module,
        loss: str = "hinge",
        lecam_weight: float = 0.0,
        augmentation: tuple[str, ...] = (),
    ):
        super().__init__()
        self.discriminator = discriminator
        self.own_loss, self.loss_of_generator = LOSSES[loss]
        self.lecam_weight = lecam_weight
        self.lecam = LeCam()
        self.augmentation = augmentation

    def generator_loss(self, fake: Tensor) -> Tensor:
        """Of images, which get its gradients; the discriminator gets none."""
        # Detached weights rather than `requires_grad_(False)`: hooks of the topology hang on the weights themselves.
        weights = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        # Spectral norms are estimated anew in the discriminator's own pass only.
        self.discriminator.eval()
        scores = functional_call(self.discriminator, weights, (augment(fake, self.augmentation),))
        self.discriminator.train(self.training)
        return self.loss_of_generator(scores.float())

    def discriminator_loss(self, real: Tensor, fake: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Of images, which get none of its gradients; and what tells how the game stands."""
        images = torch.cat([augment(real, self.augmentation), augment(fake.detach(), self.augmentation)])
        real_scores, fake_scores = self.discriminator(images).float().chunk(2)
        loss = self.own_loss(real_scores, fake_scores)
        correct = (real_scores > 0).float().mean() + (fake_scores < 0).float().mean()
        metrics = {"discriminator_loss": loss.detach(), "discriminator_accuracy": correct / 2}
        metrics |= {"real_score": real_scores.detach().mean(), "fake_score": fake_scores.detach().mean()}
        if self.lecam_weight:
            penalty = self.lecam.penalty(real_scores, fake_scores)
            loss = loss + self.lecam_weight * penalty
            metrics["lecam_loss"] = penalty.detach()
        return loss, metrics


def adaptive_weight(image_loss: Tensor, adversarial_loss: Tensor, last_weight: Tensor) -> Tensor:
    """
    How many times larger the gradient of the other losses of the image is than the adversary's at the decoder's last
    layer, at most 10,000 (arXiv 2012.09841, equation 7): times this, both pull equally hard.
    """
    norms = [
        torch.autograd.grad(loss, last_weight, retain_graph=True)[0].norm() for loss in (image_loss, adversarial_loss)
    ]
    return (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4).detach()
