import importlib.util
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image
from diffusers import VQModel
from PIL import Image as PilImage

from transformers_mage.training.arguments import TrainingArguments


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
    path = Path(__file__).parents[2] / "scripts" / "train_mage.py"
    spec = importlib.util.spec_from_file_location("train_mage", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.MageArguments
