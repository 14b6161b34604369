"""Everybody's tokenizers: what is found out about them, and what is refused."""

import logging
from pathlib import Path

import pytest
import torch
from datasets import load_from_disk
from diffusers import AutoencoderKL, VQModel

from transformers_mage import MageConfig, MageForMaskedImageModeling
from transformers_mage.data.tokenization import (
    TokenizerError,
    check_image_size,
    load_tokenizer,
    patch_size,
    settle_pixel_range,
)
from transformers_mage.image_tokens import decode_images, encode_images, pixel_range, set_pixel_range, vq_config_of

# As aMUSEd's (f16), and latent diffusion's f8 and f4 with attention and few numbers a code; narrower.
SHAPES = {
    "f16": {"levels": 5, "num_vq_embeddings": 64, "latent_channels": 8},
    "f8": {"levels": 4, "num_vq_embeddings": 32, "latent_channels": 4, "vq_embed_dim": 2},
    "f4": {"levels": 3, "num_vq_embeddings": 16, "latent_channels": 3, "vq_embed_dim": 3, "norm_type": "spatial"},
}


def stock_tokenizer(levels: int, norm_type: str = "group", **config) -> VQModel:
    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels}
    widths = [32] * levels if norm_type == "spatial" else [8] * (levels - 1) + [16]
    return VQModel(**blocks, block_out_channels=widths, norm_num_groups=4, norm_type=norm_type, **config).eval()


def in_symmetric_range(vqvae: VQModel) -> VQModel:
    """The same tokenizer of pixels in [-1, 1], but for the images' edges, which are padded with grey."""
    first, last = vqvae.encoder.conv_in, vqvae.decoder.conv_out
    with torch.no_grad():
        first.bias += first.weight.sum(dim=(1, 2, 3)) / 2
        first.weight /= 2
        last.weight *= 2
        last.bias.mul_(2).sub_(1)
    return vqvae


@pytest.fixture(scope="module")
def squares(image_folder: Path) -> torch.Tensor:
    dataset = load_from_disk(image_folder)["train"].with_format("torch")
    return torch.stack([row["image"] for row in dataset.select(range(4))])


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_any_stock_model_in_a_subfolder_gives_tokens_and_images(shape: str, tmp_path: Path):
    stock = stock_tokenizer(**SHAPES[shape])
    stock.save_pretrained(tmp_path / "vqvae")
    tokenizer = load_tokenizer(tmp_path, "vqvae")
    side, pixels = patch_size(tokenizer), torch.rand(2, 3, 32, 32)

    tokens = encode_images(tokenizer, pixels)

    assert tokens.shape == (2, 32 // side, 32 // side)
    torch.testing.assert_close(decode_images(tokenizer, tokens), stock(pixels).sample)


@torch.no_grad()
def test_tokens_and_images_in_another_range_are_those_of_the_stock_model():
    stock = stock_tokenizer(**SHAPES["f8"])
    set_pixel_range(stock, -1, 1)
    pixels = torch.rand(2, 3, 32, 32)
    reconstruction = decode_images(stock, encode_images(stock, pixels))
    torch.testing.assert_close(reconstruction, (stock(2 * pixels - 1).sample + 1) / 2)


def test_the_range_is_saved_with_a_tokenizer_and_with_a_model(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    stock = stock_tokenizer(**SHAPES["f8"])
    set_pixel_range(stock, -1, 1)
    stock.save_pretrained(tmp_path / "vqvae")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {f"decoder_{name}": value for name, value in sizes.items()}
    config = MageConfig(codebook_size=32, image_size=32, patch_size=8, vq_config=vq_config_of(stock), **sizes)
    MageForMaskedImageModeling(config).save_pretrained(tmp_path / "mage")

    for name in ("vqvae", "mage"):
        assert pixel_range(load_tokenizer(tmp_path / name)) == (-1, 1)
    assert "not expected" not in caplog.text


def test_the_range_is_found_out(tokenizer_folder: Path, squares: torch.Tensor, caplog: pytest.LogCaptureFixture):
    unit, symmetric = load_tokenizer(tokenizer_folder), in_symmetric_range(load_tokenizer(tokenizer_folder))
    with caplog.at_level(logging.INFO):
        settle_pixel_range(unit, "auto", lambda: squares)
        assert pixel_range(unit) == (0, 1)
        assert not caplog.messages
        settle_pixel_range(symmetric, "auto", lambda: squares)
    assert pixel_range(symmetric) == (-1, 1)
    assert "takes pixels in [-1, 1]" in caplog.messages[0]


def test_an_untrained_tokenizer_keeps_the_usual_range(squares: torch.Tensor):
    stock = stock_tokenizer(levels=2, in_channels=1, out_channels=1)
    settle_pixel_range(stock, "auto", lambda: squares)
    assert pixel_range(stock) == (0, 1)


def test_what_is_said_or_known_is_not_found_out():
    stock = stock_tokenizer(**SHAPES["f8"])
    settle_pixel_range(stock, "symmetric", images=lambda: pytest.fail("there is no need of images"))
    settle_pixel_range(stock, "auto", images=lambda: pytest.fail("there is no need of images"))
    assert pixel_range(stock) == (-1, 1)


def test_ranges_that_are_none():
    with pytest.raises(ValueError, match=r'takes auto, unit, symmetric; got "-1,1"'):
        settle_pixel_range(stock_tokenizer(**SHAPES["f8"]), "-1,1", lambda: None)
    with pytest.raises(ValueError, match="from a lower value to a higher one, got 1 and 0"):
        set_pixel_range(stock_tokenizer(**SHAPES["f8"]), 1, 0)


def test_other_autoencoders_are_refused(tmp_path: Path):
    AutoencoderKL(norm_num_groups=4, block_out_channels=[8]).save_pretrained(tmp_path)
    with pytest.raises(TokenizerError, match=r"holds a AutoencoderKL.*continuous latents"):
        load_tokenizer(tmp_path)


def test_a_model_without_a_tokenizer_is_refused(tmp_path: Path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {f"decoder_{name}": value for name, value in sizes.items()}
    MageForMaskedImageModeling(MageConfig(**sizes)).save_pretrained(tmp_path)
    with pytest.raises(TokenizerError, match="the model takes tokens only"):
        load_tokenizer(tmp_path)


def test_a_pipelines_folder_asks_for_the_subfolder(tmp_path: Path):
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(TokenizerError, match="--tokenizer_subfolder vqvae"):
        load_tokenizer(tmp_path)


def test_sizes_that_are_no_whole_number_of_tokens():
    stock = stock_tokenizer(**SHAPES["f16"])
    check_image_size(stock, 512)
    with pytest.raises(TokenizerError, match="240 or 256 would do"):
        check_image_size(stock, 250)
