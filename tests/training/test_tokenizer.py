import pytest
import torch
from diffusers import VQModel

from transformers_mage.training.tokenizer import VQModelForTraining, code_counts, code_perplexity


@pytest.fixture
def model(tokenizer: VQModel) -> VQModelForTraining:
    torch.manual_seed(0)
    return VQModelForTraining(VQModel.from_config(tokenizer.config))


def test_reconstruction_is_that_of_the_stock_model(model: VQModelForTraining):
    pixels = torch.rand(2, 1, 4, 4)
    output = model(pixels)
    torch.testing.assert_close(output.reconstruction, model.vqvae(pixels).sample)
    assert output.token_ids.shape == (2, 2, 2)


def test_gradients_pass_straight_through_the_quantisation(model: VQModelForTraining):
    output = model(torch.rand(2, 1, 4, 4))
    output.reconstruction_loss.backward()
    assert model.vqvae.encoder.conv_in.weight.grad.abs().sum() > 0
    assert model.vqvae.quantize.embedding.weight.grad is None


def test_codes_move_to_latents_and_latents_to_codes(model: VQModelForTraining):
    pixels = torch.rand(2, 1, 4, 4)
    model(pixels).codebook_loss.backward()
    assert model.vqvae.encoder.conv_in.weight.grad is None
    assert model.vqvae.quantize.embedding.weight.grad.abs().sum() > 0
    model.zero_grad(set_to_none=True)
    model(pixels).commitment_loss.backward()
    assert model.vqvae.encoder.conv_in.weight.grad.abs().sum() > 0
    assert model.vqvae.quantize.embedding.weight.grad is None


def test_dead_codes_become_latents(model: VQModelForTraining):
    codes = model.vqvae.quantize.embedding.weight
    codes.data = 10 * torch.eye(8)[:, :2] + torch.arange(8)[:, None]
    before, latents = codes.clone(), torch.randn(20, 2) + 40
    model.track_usage(torch.tensor([5, 5, 5, 0, 5, 0, 5, 5]))
    repeats = model._repeats(torch.tensor(0.0))
    assert not repeats.any()
    model._repeats = lambda squared_error: repeats
    assert model.revive_dead_codes(latents, threshold=0.05) == 2
    is_latent = (codes[:, None] == latents).all(dim=-1).any(dim=1)
    assert is_latent.nonzero().flatten().tolist() == [3, 5]
    assert torch.equal(codes[~is_latent], before[~is_latent])
    assert model.revive_dead_codes(latents, threshold=0.05) == 0


def test_of_codes_that_repeat_each_other_the_most_used_stays(model: VQModelForTraining):
    model.vqvae.quantize.embedding.weight.data = torch.tensor(
        [[0, 0], [0.1, 0], [0.2, 0], *[[9.0 * i, 9] for i in range(5)]]
    )
    model.track_usage(torch.tensor([5, 9, 4, 5, 5, 5, 5, 5]))

    assert model._repeats(torch.tensor(0.5)).tolist() == [True, False, True] + [False] * 5


def test_codes_are_revived_where_there_are_none(model: VQModelForTraining):
    """Ten thousand latents at one place and one at another: the two dead codes take one each."""
    codes = model.vqvae.quantize.embedding.weight
    codes.data = 100 + 10 * torch.arange(16.0).reshape(8, 2)
    latents = torch.cat([torch.zeros(10_000, 2), torch.full((1, 2), 1000.0)])
    model.track_usage(torch.tensor([5, 5, 5, 5, 5, 5, 0, 0]))
    model._repeats = lambda squared_error: torch.zeros(8, dtype=torch.bool)

    model.revive_dead_codes(latents, threshold=0.05)

    assert sorted(codes[6:].mean(dim=1).tolist()) == [0.0, 1000.0]


def test_perplexity_counts_the_codes_in_use():
    counts = code_counts(torch.tensor([[0, 1], [2, 2], [1, 0]]), 8)
    assert counts.tolist() == [2, 2, 2, 0, 0, 0, 0, 0]
    torch.testing.assert_close(code_perplexity(counts), torch.tensor(3.0))
