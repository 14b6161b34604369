"""One forward and one backward pass for both networks."""

from collections.abc import Callable

import pytest
import torch
from diffusers import VQModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from transformers_mage.image_networks import ImageNetwork
from transformers_mage.training.vqgan.adversarial import Adversary
from transformers_mage.training.vqgan.discriminator import PatchDiscriminator
from transformers_mage.training.vqgan.objective import LossWeights, VQGANForTraining
from transformers_mage.training.vqgan.perceptual import PerceptualDistance

PIXELS = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def vqgan(tokenizer: VQModel, adapts_weight: bool = False, **weights: float) -> VQGANForTraining:
    torch.manual_seed(0)
    adversary = Adversary(PatchDiscriminator(1, channels=4, num_levels=1)) if weights.get("adversarial") else None
    return VQGANForTraining(
        VQModel.from_config(tokenizer.config), LossWeights(**weights), None, adversary, adapts_weight=adapts_weight
    )


def gradients(model: VQGANForTraining, loss: torch.Tensor, prefix: str) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    loss.backward(retain_graph=True)
    parameters = model.named_parameters()
    return {name: p.grad.clone() for name, p in parameters if name.startswith(prefix) and p.grad is not None}


def test_without_weights_it_is_the_plain_autoencoder(tokenizer: VQModel):
    output = vqgan(tokenizer)(PIXELS)
    made = output.autoencoding
    expected = made.reconstruction_loss + made.codebook_loss + 0.25 * made.commitment_loss
    torch.testing.assert_close(output.loss, expected)
    assert set(output.metrics) == {"loss", "reconstruction_loss", "codebook_loss", "commitment_loss"}


def test_the_sum_gives_each_network_the_gradients_of_its_own_loss(tokenizer: VQModel):
    model = vqgan(tokenizer, adversarial=0.5)
    output = model(PIXELS)
    made = output.autoencoding
    adversarial = model.adversary.generator_loss(made.reconstruction)
    own = made.reconstruction_loss + made.codebook_loss + 0.25 * made.commitment_loss + 0.5 * adversarial
    discriminator_loss, _ = model.adversary.discriminator_loss(PIXELS, made.reconstruction)

    for prefix, loss in (("vqvae.", own), ("adversary.", discriminator_loss)):
        together, alone = gradients(model, output.loss, prefix), gradients(model, loss, prefix)
        assert together
        torch.testing.assert_close(together, alone)
    torch.testing.assert_close(output.metrics["loss"], own.detach())


def test_before_its_start_the_discriminator_gets_gradients_of_zero(tokenizer: VQModel):
    model = vqgan(tokenizer, adversarial=0.5)
    output = model(PIXELS, adversarial_share=0.0)
    judging = gradients(model, output.loss, "adversary.")
    assert len(judging) == len(list(model.adversary.parameters()))
    assert not any(gradient.any() for gradient in judging.values())
    assert "adversarial_loss" not in output.metrics


def test_the_ramp_scales_the_adversarial_loss(tokenizer: VQModel):
    model = vqgan(tokenizer, adversarial=0.5)
    without, half, whole = (model(PIXELS, share).metrics["loss"] for share in (0.0, 0.5, 1.0))
    torch.testing.assert_close(half - without, (whole - without) / 2)


def test_the_adaptive_weight_is_tracked(tokenizer: VQModel):
    output = vqgan(tokenizer, adapts_weight=True, adversarial=0.5)(PIXELS)
    metrics = output.metrics
    expected = metrics["reconstruction_loss"] + metrics["codebook_loss"] + 0.25 * metrics["commitment_loss"]
    torch.testing.assert_close(
        metrics["loss"], expected + 0.5 * metrics["adversarial_loss"] * metrics["adaptive_weight"]
    )


def test_the_entropy_reaches_the_encoder_and_the_codes(tokenizer: VQModel):
    model = vqgan(tokenizer, entropy=1.0, reconstruction=0.0, codebook=0.0, commitment=0.0)
    found = gradients(model, model(PIXELS).loss, "vqvae.")
    assert found["vqvae.encoder.conv_in.weight"].abs().sum() > 0
    assert found["vqvae.quantize.embedding.weight"].abs().sum() > 0


class Grey(ImageNetwork):
    """A network of one convolution, which sees."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def feature_maps(self, images: Tensor, limit: int | None = None) -> list[Tensor]:
        return [self.conv(self.normalize(images))]


def operations(function: Callable[[], Tensor]) -> int:
    """Of a forward and a backward pass."""
    with FlopCounterMode(display=False) as counter:
        function().backward()
    return counter.get_total_flops()


def test_a_step_costs_what_its_parts_cost_and_nothing_twice(tokenizer: VQModel):
    perceptual, adversary = (
        PerceptualDistance(Grey().freeze()),
        Adversary(PatchDiscriminator(1, channels=4, num_levels=1)),
    )
    whole = VQGANForTraining(
        VQModel.from_config(tokenizer.config), LossWeights(perceptual=1, adversarial=1), perceptual, adversary
    )
    plain = VQGANForTraining(whole.vqvae, LossWeights())
    made = torch.rand(2, 1, 8, 8, requires_grad=True)

    parts = [
        operations(lambda: plain(PIXELS).loss),
        operations(lambda: perceptual(made, PIXELS).mean()),
        operations(lambda: adversary.generator_loss(made)),
        operations(lambda: adversary.discriminator_loss(PIXELS, made)[0]),
    ]

    assert min(parts) > 0
    assert operations(lambda: whole(PIXELS).loss) == sum(parts)


@pytest.mark.parametrize("adversarial", [0.0, 0.5])
def test_names_of_the_autoencoder_do_not_depend_on_the_recipe(tokenizer: VQModel, adversarial: float):
    names = set(vqgan(tokenizer, adversarial=adversarial).state_dict())
    assert {f"vqvae.{name}" for name in tokenizer.state_dict()} | {"usage"} <= names
