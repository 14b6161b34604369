"""A converted tokenizer runs without its no-op layers, and nobody can tell but by the clock."""

import copy
import pickle

import pytest
import torch
from diffusers import VQModel
from torch.utils.flop_counter import FlopCounterMode

from tests.conftest import SMALL_VQ_CONFIG
from tests.reference import TINY
from transformers_mage import MageConfig, MageModel
from transformers_mage.convert_original_checkpoint import tokenizer_config
from transformers_mage.vq_shortcuts import LeanModule, skip_noop_layers

TINY_SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture
def stock() -> VQModel:
    vqvae = VQModel(**tokenizer_config(TINY.tokenizer_weights)).requires_grad_(False)
    vqvae.load_state_dict(TINY.converted_tokenizer)
    return vqvae


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.rand(1, 3, 64, 64)


def test_outputs_and_state_dict_stay_the_same(stock, pixels):
    short = copy.deepcopy(stock)
    assert skip_noop_layers(short) == 13  # 4 poolings, 5 blocks more a level, 4 shortcuts

    assert torch.allclose(short.encode(pixels).latents, stock.encode(pixels).latents, atol=1e-5)
    latents = torch.randn(1, 32, 4, 4)
    assert torch.allclose(short.decoder(latents), stock.decoder(latents), atol=1e-5)
    assert short.state_dict().keys() == stock.state_dict().keys()
    assert all(
        torch.equal(a, b) for a, b in zip(short.state_dict().values(), stock.state_dict().values(), strict=True)
    )


def test_decoding_costs_what_the_original_costs(stock):
    """The stock decoder is 1.3 to 1.4 times the original's: one block in three, and a shortcut here and there."""
    latents = torch.randn(1, 32, 4, 4)

    def flops() -> int:
        with FlopCounterMode(display=False) as counter:
            stock.decoder(latents)
        return counter.get_total_flops()

    before = flops()
    skip_noop_layers(stock)
    assert 1.3 < before / flops() < 1.5


def test_trained_tokenizers_do_all_that_they_do_to_the_bit():
    vqvae = VQModel(**SMALL_VQ_CONFIG)
    lean = copy.deepcopy(vqvae)
    assert skip_noop_layers(lean) == 0
    pixels, latents = torch.rand(2, 3, 8, 8), torch.randn(2, 4, 2, 2)
    kept = pixels.clone()
    for inference in (torch.no_grad, torch.enable_grad):
        with inference():
            assert torch.equal(lean.encoder(pixels), vqvae.encoder(pixels))
            assert torch.equal(lean.decoder(latents), vqvae.decoder(latents))
    assert torch.equal(pixels, kept)


def test_gradients_pass_through_a_frozen_tokenizer(stock, pixels):
    """Nothing is done in place that the way back needs."""
    short = copy.deepcopy(stock)
    skip_noop_layers(short)
    gradients = []
    for vqvae in (stock, short):
        latents = torch.linspace(-1, 1, 32 * 16).view(1, 32, 4, 4).requires_grad_()
        vqvae.decoder(latents).square().mean().backward()
        gradients.append(latents.grad)
    assert torch.allclose(*gradients, atol=1e-7)
    assert gradients[0].abs().max() > 1e-4


def test_stock_names_in_the_stock_order(stock):
    names = list(stock.state_dict())

    skip_noop_layers(stock)

    assert list(stock.state_dict()) == names
    assert [name for name, _ in stock.named_parameters()] == names
    assert skip_noop_layers(stock) == 13  # once more changes nothing
    assert list(stock.state_dict()) == names


def test_loading_the_weights_again_keeps_the_shortcuts(stock):
    """Also into another model, whose weights were not there to be looked at when it was made."""
    with torch.device("meta"):
        empty = VQModel(**tokenizer_config(TINY.tokenizer_weights)).requires_grad_(False)
    assert skip_noop_layers(empty) == 0

    empty.load_state_dict(stock.state_dict(), assign=True)

    assert sum(module.skips for module in empty.modules() if isinstance(module, LeanModule)) == 13


def test_models_are_made_with_lean_tokenizers(stock, pixels):
    """Whether the weights come with `load_state_dict`, with `from_pretrained` or by another cast."""
    config = MageConfig(codebook_size=64, patch_size=16, image_size=64, vq_config=dict(stock.config), **TINY_SIZES)
    model = MageModel(config)
    model.vqvae.load_state_dict(stock.state_dict())
    tokens = model.get_image_tokens(pixels)

    for moved in (model, copy.deepcopy(model).to(torch.bfloat16), model.train()):
        assert sum(module.skips for module in moved.modules() if isinstance(module, LeanModule)) == 13
        assert torch.equal(moved.get_image_tokens(pixels), tokens)


def test_weights_that_learn_take_the_long_way(stock, pixels):
    skip_noop_layers(stock)
    stock.requires_grad_(True)
    stock.train()

    stock.decoder(stock.encoder(pixels)).mean().backward()

    assert all(parameter.grad is not None for parameter in stock.decoder.parameters())


def test_loading_other_weights_ends_the_shortcuts(stock, pixels):
    other = VQModel(**tokenizer_config(TINY.tokenizer_weights)).requires_grad_(False)
    skip_noop_layers(stock)

    stock.load_state_dict(other.state_dict())

    assert torch.allclose(stock.encode(pixels).latents, other.encode(pixels).latents, atol=1e-5)


def test_copies_and_pickles_keep_the_shortcuts(stock, pixels):
    skip_noop_layers(stock)
    expected = stock.encode(pixels).latents

    for copied in (copy.deepcopy(stock), pickle.loads(pickle.dumps(stock))):
        assert torch.equal(copied.encode(pixels).latents, expected)
