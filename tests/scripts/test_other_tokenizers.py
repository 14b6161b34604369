"""Everybody's tokenizers and other grids, through the commands: tokens cached, a model trained, images generated."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, VQModel

from tests.in_process import MODEL_FLAGS
from transformers_mage import MagePipeline
from transformers_mage.data.token_cache import CachedTokens

pytestmark = pytest.mark.slow

Script = Callable[[list[str]], None]

TRAINING = ["--max_train_steps", "2", "--learning_rate", "0.01", "--checkpointing_steps", "0"]


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline's folder with a tokenizer as latent diffusion's f4: attention, few numbers a code, [-1, 1]."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3}
    sizes = {"block_out_channels": [8, 8, 16], "norm_num_groups": 4, "latent_channels": 4, "vq_embed_dim": 3}
    folder = tmp_path_factory.mktemp("foreign")
    vqvae = VQModel(in_channels=1, out_channels=1, num_vq_embeddings=32, **blocks, **sizes)
    vqvae.quantize.embedding.weight.data.normal_()
    vqvae.save_pretrained(folder / "vqvae")
    return folder


def generated(folder: Path, **kwargs) -> torch.Tensor:
    pipe = MagePipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe(num_images=2, num_inference_steps=2, generator=generator, **kwargs).images


@torch.no_grad()
@pytest.mark.parametrize("cached", [True, False], ids=["from a cache", "from pixels"])
def test_another_grid_and_range(
    cache_tokens: Script, train_mage: Script, image_folder: Path, foreign: Path, tmp_path: Path, cached: bool
):
    flags = ["--dataset_name", image_folder, "--tokenizer_name_or_path", foreign, "--tokenizer_subfolder", "vqvae"]
    flags += ["--tokenizer_pixel_range", "symmetric"]
    if cached:
        size = ["--image_size", "16", "--views", "1", "--output_dir", tmp_path / "tokens"]
        cache_tokens([*flags, *size])
        assert CachedTokens(tmp_path / "tokens" / "train").metadata.grid_size == [4, 4]
        flags = ["--token_cache", tmp_path / "tokens"]
    with torch.enable_grad():
        train_mage([*MODEL_FLAGS, *flags, *TRAINING, "--model.image_size", "16", "--output_dir", tmp_path / "mage"])

    tokens, images = generated(tmp_path / "mage", output_type="latent"), generated(tmp_path / "mage", output_type="pt")

    assert tokens.shape == (2, 4, 4)
    stock = VQModel.from_pretrained(foreign / "vqvae").eval()
    latents = stock.quantize.embedding(tokens).permute(0, 3, 1, 2)
    decoded = stock.decoder(stock.post_quant_conv(latents))
    torch.testing.assert_close(images, ((decoded + 1) / 2).clamp(0, 1))


def test_1024_tokens_from_a_model_of_256(
    train_mage: Script, image_folder: Path, tokenizer_folder: Path, tmp_path: Path
):
    """As a model of 512 pixels starts from one of 256: on the grid of 32 x 32, at small size."""
    flags = [*MODEL_FLAGS, "--dataset_name", image_folder, "--tokenizer_name_or_path", tokenizer_folder, *TRAINING]
    train_mage([*flags, "--model.image_size", "32", "--output_dir", tmp_path / "small"])
    flags = ["--dataset_name", image_folder, "--train_batch_size", "2", "--report_to", "none", *TRAINING]
    flags += ["--pretrained_model_name_or_path", tmp_path / "small", "--model.image_size", "64"]

    train_mage([*flags, "--output_dir", tmp_path / "large"])

    assert generated(tmp_path / "large", output_type="pt").shape == (2, 1, 64, 64)


@pytest.mark.parametrize(
    ("kind", "size", "message"),
    [
        ("continuous", "16", "holds a AutoencoderKL.*continuous latents"),
        ("foreign", "18", "16 or 20 would do"),
    ],
)
def test_what_does_not_fit_is_refused(
    cache_tokens: Script, image_folder: Path, foreign: Path, tmp_path: Path, kind: str, size: str, message: str
):
    AutoencoderKL(norm_num_groups=4, block_out_channels=[8]).save_pretrained(tmp_path / "continuous" / "vqvae")
    name = foreign if kind == "foreign" else tmp_path / "continuous"
    flags = ["--dataset_name", image_folder, "--tokenizer_name_or_path", name, "--tokenizer_subfolder", "vqvae"]
    with pytest.raises(SystemExit, match=message):
        cache_tokens([*flags, "--image_size", size, "--output_dir", tmp_path / "tokens"])
