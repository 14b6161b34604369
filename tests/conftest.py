"""Small models and images that the tests share."""

import pytest
import torch
from transformers import set_seed

from tests.reference import BASE, TINY, ReferenceCase
from transformers_mage import MageConfig, MageForMaskedImageModeling, MagePipeline, MageScheduler

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
def _seed():
    set_seed(0)


@pytest.fixture(scope="session", params=["tiny", "base"])
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
