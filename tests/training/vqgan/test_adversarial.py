"""The game: who gets whose gradients, and the losses by their definitions."""

import math

import pytest
import torch
from torch import nn

from transformers_mage.training.vqgan.adversarial import LOSSES, Adversary, LeCam, adaptive_weight
from transformers_mage.training.vqgan.differentiable_augmentation import KINDS, augment
from transformers_mage.training.vqgan.discriminator import BlurPool, PatchDiscriminator

REAL, FAKE = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.5])


@pytest.mark.parametrize(
    ("name", "discriminator_loss", "generator_loss"),
    [
        ("hinge", (0.25 + 0.75) / 2, 1.25),
        (
            "non-saturating",
            (
                math.log1p(math.exp(-2))
                + math.log1p(math.exp(-0.5))
                + math.log1p(math.exp(-3))
                + math.log1p(math.exp(0.5))
            )
            / 4,
            (math.log1p(math.exp(3)) + math.log1p(math.exp(-0.5))) / 2,
        ),
    ],
)
def test_losses_by_hand(name: str, discriminator_loss: float, generator_loss: float):
    of_discriminator, of_generator = LOSSES[name]
    assert of_discriminator(REAL, FAKE).item() == pytest.approx(discriminator_loss)
    assert of_generator(FAKE).item() == pytest.approx(generator_loss)


@pytest.fixture(params=[False, True], ids=["group norm", "spectral norm"])
def adversary(request: pytest.FixtureRequest) -> Adversary:
    return Adversary(PatchDiscriminator(3, channels=8, num_levels=2, spectral=request.param), lecam_weight=0.1)


def test_each_player_gets_the_gradients_of_its_own_loss(adversary: Adversary):
    real, fake = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16, requires_grad=True)
    adversary.generator_loss(fake).backward()
    assert fake.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in adversary.parameters())

    fake.grad = None
    loss, metrics = adversary.discriminator_loss(real, fake)
    loss.backward()
    assert fake.grad is None
    assert all(parameter.grad is not None for parameter in adversary.parameters())
    assert 0 <= metrics["discriminator_accuracy"] <= 1


def test_judging_reconstructions_leaves_the_spectral_norms_alone(adversary: Adversary):
    before = {name: buffer.clone() for name, buffer in adversary.named_buffers()}
    adversary.generator_loss(torch.rand(2, 3, 16, 16))
    assert adversary.discriminator.training
    assert all(torch.equal(buffer, before[name]) for name, buffer in adversary.named_buffers())


def test_a_score_does_not_depend_on_the_rest_of_the_batch(adversary: Adversary):
    images = torch.rand(4, 3, 16, 16)
    discriminator = adversary.discriminator.eval()
    scores = discriminator(images)
    assert scores.shape == (4, 1, 4, 4)
    torch.testing.assert_close(discriminator(images[:1]), scores[:1])


def test_blur_pooling_does_not_alias():
    """Stripes of one pixel, which every other pixel alone would turn into black or white, become grey."""
    stripes = torch.zeros(1, 2, 8, 8)
    stripes[..., ::2] = 1
    pooled = BlurPool()(stripes)
    assert pooled.shape == (1, 2, 4, 4)
    torch.testing.assert_close(pooled[..., 1:], torch.full((1, 2, 4, 3), 0.5))


def test_lecam_holds_scores_back_from_the_other_sides_average():
    lecam = LeCam(decay=0.5)
    assert lecam.penalty(torch.tensor([-1.0]), torch.tensor([1.0])) == 0
    lecam.update(torch.tensor(2.0), torch.tensor(-2.0))  # averages of 1 and -1
    penalty = lecam.penalty(real=torch.tensor([1.0]), fake=torch.tensor([0.0]))
    assert penalty == (1 - -1) ** 2 + (1 - 0) ** 2


def test_the_adaptive_weight_makes_both_losses_pull_equally_hard():
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    image_loss, adversarial_loss = weight.square().sum() / 2, 0.1 * weight.sum()
    scale = adaptive_weight(image_loss, adversarial_loss, weight)
    assert scale.item() == pytest.approx(5 / (0.1 * math.sqrt(2)), rel=1e-2)
    assert weight.grad is None


@pytest.mark.parametrize("kind", KINDS)
def test_augmentation_changes_each_image_in_its_own_way_and_lets_gradients_through(kind: str):
    images = torch.rand(1, 3, 16, 16).repeat(8, 1, 1, 1).requires_grad_()
    changed = augment(images, (kind,))
    assert changed.shape == images.shape
    assert len(torch.unique(changed.detach(), dim=0)) > 1
    changed.sum().backward()
    assert images.grad.abs().sum() > 0


def test_translation_and_cutout_move_and_remove_but_do_not_invent():
    images = torch.rand(16, 1, 16, 16) + 1
    for kind in ("translation", "cutout"):
        changed = augment(images, (kind,))
        values = changed[changed != 0]
        assert len(values) < changed.numel()
        assert torch.isin(values, images).all()


def test_no_augmentation_is_the_image_itself():
    images = torch.rand(2, 3, 8, 8)
    assert augment(images, ()) is images
