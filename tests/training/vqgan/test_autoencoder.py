import pytest
import torch
from diffusers import VQModel

from transformers_mage.image_tokens import encode_images
from transformers_mage.training.vqgan.autoencoder import VQModelForTraining


@pytest.fixture
def model(tokenizer: VQModel) -> VQModelForTraining:
    torch.manual_seed(0)
    return VQModelForTraining(VQModel.from_config(tokenizer.config))


def test_reconstruction_is_that_of_the_stock_model(model: VQModelForTraining):
    pixels = torch.rand(2, 1, 4, 4)
    output = model.autoencode(pixels)
    torch.testing.assert_close(output.reconstruction, model.vqvae(pixels).sample)
    assert output.token_ids.shape == (2, 2, 2)


def test_gradients_pass_straight_through_the_quantisation(model: VQModelForTraining):
    output = model.autoencode(torch.rand(2, 1, 4, 4))
    output.reconstruction_loss.backward()
    assert model.vqvae.encoder.conv_in.weight.grad.abs().sum() > 0
    assert model.vqvae.quantize.embedding.weight.grad is None


def test_codes_move_to_latents_and_latents_to_codes(model: VQModelForTraining):
    pixels = torch.rand(2, 1, 4, 4)
    model.autoencode(pixels).codebook_loss.backward()
    assert model.vqvae.encoder.conv_in.weight.grad is None
    assert model.vqvae.quantize.embedding.weight.grad.abs().sum() > 0
    model.zero_grad(set_to_none=True)
    model.autoencode(pixels).commitment_loss.backward()
    assert model.vqvae.encoder.conv_in.weight.grad.abs().sum() > 0
    assert model.vqvae.quantize.embedding.weight.grad is None


def test_an_exported_model_of_normalised_codes_gives_the_same_tokens_and_images(tokenizer: VQModel):
    torch.manual_seed(0)
    model = VQModelForTraining(VQModel.from_config(tokenizer.config), normalize_codes=True)
    model.vqvae.quantize.embedding.weight.data.normal_()
    pixels = torch.rand(2, 1, 4, 4)
    made = model.autoencode(pixels)

    exported = model.export()

    torch.testing.assert_close(exported.quantize.embedding.weight.norm(dim=1), torch.ones(8))
    assert torch.equal(encode_images(exported, pixels), made.token_ids)
    torch.testing.assert_close(exported(pixels).sample, made.reconstruction)
    torch.testing.assert_close(made.latents.norm(dim=1), torch.ones(8))
