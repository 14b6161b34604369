"""Small models and images that the tests share."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, load_from_disk
from diffusers import VQModel
from PIL import Image as PilImage
from transformers import ViTImageProcessorPil, set_seed

from tests.in_process import VQ_FLAGS, forget_accelerate, load_module, load_script
from tests.reference import BASE, TINY, ReferenceCase
from transformers_mage import MageConfig, MageForMaskedImageModeling, MagePipeline, MageScheduler
from transformers_mage.training.arguments import TrainingArguments

SMALL_VQ_CONFIG = {
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "block_out_channels": [8, 16, 16],
    "layers_per_block": 1,
    "latent_channels": 4,
    "num_vq_embeddings": 16,
    "norm_num_groups": 4,
    "mid_block_add_attention": False,
    "lookup_from_codebook": True,
}


@pytest.fixture(autouse=True)
def _afresh():
    """No test knows of those before it, which are others with another number of workers."""
    set_seed(0)
    forget_accelerate()


@pytest.fixture
def clean_environment():
    """Takes back what launching processes says to those that come after."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session", params=["tiny", pytest.param("base", marks=pytest.mark.slow)])
def reference(request: pytest.FixtureRequest) -> ReferenceCase:
    """A case recorded from the original; the full-size one where its files lie beside the repository."""
    case = {"tiny": TINY, "base": BASE}[request.param]
    if not case.folder.is_dir():
        pytest.skip(f"{case.folder} is not there")
    return case


@pytest.fixture
def small_config() -> MageConfig:
    """A model of 32 x 32 pixels and 8 x 8 tokens that runs in milliseconds."""
    return MageConfig(
        codebook_size=16,
        image_size=32,
        patch_size=4,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        decoder_hidden_size=24,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=2,
        vq_config=SMALL_VQ_CONFIG,
    )


@pytest.fixture
def small_model(small_config: MageConfig) -> MageForMaskedImageModeling:
    return MageForMaskedImageModeling(small_config).eval()


@pytest.fixture
def small_pipeline(small_model: MageForMaskedImageModeling) -> MagePipeline:
    pipe = MagePipeline(small_model, MageScheduler(small_model.config.mask_token_id, num_inference_steps=4))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pixel_values() -> torch.Tensor:
    return torch.rand(2, 3, 32, 32)


@pytest.fixture(scope="session")
def numbered_images() -> Dataset:
    """50 grey images, the i-th of which is all of value i and has the label i. They are as encoded as on disk."""
    images = [PilImage.fromarray(np.full((4, 4), i, np.uint8)) for i in range(50)]
    features = Features({"image": Image(), "label": ClassLabel(num_classes=50)})
    dataset = Dataset.from_dict({"image": images, "label": list(range(50))}, features=features)
    return dataset.cast_column("image", Image(decode=False))


@pytest.fixture(scope="session")
def tokenizer() -> VQModel:
    """4 x 4 grey images to 2 x 2 tokens."""
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    sizes = {"block_out_channels": [4, 4], "norm_num_groups": 2, "num_vq_embeddings": 8, "latent_channels": 2}
    vqvae = VQModel(in_channels=1, out_channels=1, mid_block_add_attention=False, **blocks, **sizes)
    return vqvae.requires_grad_(False).eval()


@pytest.fixture(scope="session")
def train_mage_arguments() -> type[TrainingArguments]:
    """The arguments of scripts/train_mage.py."""
    return load_module("train_mage").MageArguments


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 grey images of a bright square somewhere, saved by `DatasetDict.save_to_disk`."""
    random = np.random.default_rng(0)
    images = []
    for row, column in random.integers(0, 5, (24, 2)):
        pixels = np.zeros((8, 8), np.uint8)
        pixels[row : row + 3, column : column + 3] = 255
        images.append(PilImage.fromarray(pixels))
    features = Features({"image": Image(), "label": ClassLabel(num_classes=2)})
    dataset = Dataset.from_dict({"image": images, "label": [0, 1] * 12}, features=features)
    folder = tmp_path_factory.mktemp("images")
    DatasetDict({"train": dataset, "test": dataset.select(range(8))}).save_to_disk(folder)
    return folder


@pytest.fixture(scope="session")
def cache_tokens() -> Callable[[list[str]], None]:
    return load_script("cache_tokens")


@pytest.fixture(scope="session")
def train_vqgan() -> Callable[[list[str]], None]:
    return load_script("train_vqgan")


@pytest.fixture(scope="session")
def train_mage() -> Callable[[list[str]], None]:
    return load_script("train_mage")


@pytest.fixture(scope="session")
def tokenizer_folder(
    tmp_path_factory: pytest.TempPathFactory, image_folder: Path, train_vqgan: Callable[[list[str]], None]
) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    flags = [
        "--dataset_name",
        image_folder,
        "--output_dir",
        folder,
        "--max_train_steps",
        "100",
        "--logging_steps",
        "10",
    ]
    flags += ["--learning_rate", "0.01", "--checkpointing_steps", "0", "--crop_scale_min", "1"]
    train_vqgan([*VQ_FLAGS, *flags])
    return folder


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 and 8 noisy images, reddish or bluish, saved by `DatasetDict.save_to_disk`."""
    random = np.random.default_rng(0)
    labels = [0, 1] * 16
    pixels = random.integers(0, 50, (32, 8, 8, 3), dtype=np.uint8)
    pixels[0::2, ..., 0] += 200
    pixels[1::2, ..., 2] += 200
    features = Features({"image": Image(), "label": ClassLabel(names=["red", "blue"])})
    columns = {"image": [PilImage.fromarray(image) for image in pixels], "label": labels}
    dataset = Dataset.from_dict(columns, features=features)
    folder = tmp_path_factory.mktemp("colours")
    DatasetDict({"train": dataset.take(24), "test": dataset.skip(24)}).save_to_disk(folder)
    return folder


@pytest.fixture(scope="session")
def mage_folder(tmp_path_factory: pytest.TempPathFactory, colours: Path) -> Path:
    """An untrained model of those images, of 4 x 4 tokens that tell them apart, as a folder."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    sizes = {"block_out_channels": [8, 8], "norm_num_groups": 4, "num_vq_embeddings": 16, "latent_channels": 4}
    vq_config = {**blocks, **sizes, "layers_per_block": 1, "mid_block_add_attention": False}
    model_sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    decoder_sizes = {f"decoder_{name}": size for name, size in model_sizes.items()}
    model = MageForMaskedImageModeling(
        MageConfig(codebook_size=16, image_size=8, patch_size=2, vq_config=vq_config, **model_sizes, **decoder_sizes)
    ).eval()
    images = load_from_disk(colours)["train"]["image"][:4]
    processor = ViTImageProcessorPil(size={"height": 8, "width": 8}, do_normalize=False)
    tokenizer = model.mage.vqvae
    with torch.no_grad():
        latents = tokenizer.encode(processor(images, return_tensors="pt")["pixel_values"]).latents
        tokenizer.quantize.embedding.weight.copy_(latents.permute(0, 2, 3, 1).flatten(0, 2)[::4])
    folder = tmp_path_factory.mktemp("mage")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
