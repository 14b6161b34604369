"""A few made images, and the training scripts as functions that run in this process."""

import importlib.util
import multiprocessing
import signal
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, load_from_disk
from PIL import Image as PilImage
from transformers import ViTImageProcessorPil

from transformers_mage import MageConfig, MageForMaskedImageModeling

ROOT = Path(__file__).parents[2]
VQ_FLAGS = ["--vq_config.in_channels", "1", "--vq_config.out_channels", "1", "--vq_config.num_vq_embeddings", "16"]
VQ_FLAGS += ["--vq_config.block_out_channels", "[8, 8]", "--vq_config.norm_num_groups", "4"]
VQ_FLAGS += ["--vq_config.down_block_types", "[DownEncoderBlock2D, DownEncoderBlock2D]"]
VQ_FLAGS += ["--vq_config.up_block_types", "[UpDecoderBlock2D, UpDecoderBlock2D]", "--image_size", "8"]
VQ_FLAGS += ["--vq_config.mid_block_add_attention", "false", "--train_batch_size", "8", "--report_to", "none"]
MODEL_FLAGS = ["--model.image_size", "8", "--model.hidden_size", "16", "--model.num_hidden_layers", "1"]
MODEL_FLAGS += ["--model.num_attention_heads", "2", "--model.decoder_hidden_size", "16"]
MODEL_FLAGS += ["--model.decoder_num_hidden_layers", "1", "--model.decoder_num_attention_heads", "2"]
MODEL_FLAGS += ["--train_batch_size", "8", "--report_to", "none"]


def load_module(name: str) -> ModuleType:
    """scripts/NAME.py."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_script(name: str) -> Callable[[list[str]], None]:
    """`main` of scripts/NAME.py, made to start afresh each time."""
    module = load_module(name)

    def run(argv: list[str]):
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
        try:
            module.main([str(word) for word in argv])
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    return run


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


def in_child(function: Callable[..., None], *args) -> int:
    """Runs `function` in a process of its own. Gives the exit status, negative the signal that ended it."""
    child = multiprocessing.get_context("fork").Process(target=_alone, args=(function, *args))
    child.start()
    child.join(300)
    assert child.exitcode is not None, "the child hangs"
    return child.exitcode


def _alone(function: Callable[..., None], *args):
    # Threads do not survive a fork.
    torch.set_num_threads(1)
    function(*args)


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
