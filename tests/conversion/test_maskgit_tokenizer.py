"""MaskGIT's tokenizer, as open-muse and TiTok publish it, becomes a stock `VQModel` that computes the same."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import VQModel
from huggingface_hub import ModelCard

from tests.reference import FIXTURES, TINY, ReferenceCase, relative_error
from transformers_mage.convert_original_checkpoint import main
from transformers_mage.image_tokens import decode_images, encode_images

MASKGIT = ReferenceCase(FIXTURES, "maskgit_tokenizer")
# Relative; the pixels of these weights reach 4.9, and the recorded ones are 4.5e-6 from the float64 result.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("maskgit")
    torch.save(MASKGIT.weights("tokenizer"), folder / "maskgit-vqgan-imagenet-f16-256.bin")
    main([str(folder / "maskgit-vqgan-imagenet-f16-256.bin"), str(folder / "vqvae")])
    return folder / "vqvae"


def test_tokens_latents_and_pixels_are_the_recorded_ones(converted: Path):
    vqvae, recorded = VQModel.from_pretrained(converted).eval(), MASKGIT.recorded
    with torch.no_grad():
        latents = vqvae.encode(TINY.pixel_values).latents
    tokens = encode_images(vqvae, TINY.pixel_values)

    assert torch.equal(tokens.flatten(1), recorded["tokenizer.token_ids"])
    pixels = decode_images(vqvae, tokens)
    assert relative_error(latents[:, ::8, ::4, ::4], recorded["tokenizer.latents"]) < TOLERANCE
    assert relative_error(pixels[:, :, ::4, ::4], recorded["tokenizer.reconstruction"]) < TOLERANCE


@pytest.mark.slow
def test_it_loads_where_this_package_is_not(converted: Path):
    code = (
        "import sys; sys.modules['transformers_mage'] = None\n"
        f"from diffusers import VQModel; print(VQModel.from_pretrained({str(converted)!r}).config.num_vq_embeddings)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "64"


def test_its_card_names_maskgit(converted: Path):
    card = ModelCard.load(converted / "README.md")
    assert "# Image tokenizer of MaskGIT" in card.text
    assert "google-research/maskgit" in card.text
    assert card.data.license == "apache-2.0"


def test_a_missing_weight_is_named(tmp_path: Path):
    weights = dict(MASKGIT.weights("tokenizer"))
    del weights["decoder.up.3.upsample_conv.weight"]
    torch.save(weights, tmp_path / "broken.bin")
    with pytest.raises(SystemExit, match=r"decoder\.up\.3\.upsample"):
        main([str(tmp_path / "broken.bin"), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_the_architecture_is_that_of_mage(converted: Path):
    """The same sizes in MAGE's naming give the same configuration."""
    config = json.loads((converted / "config.json").read_text())
    assert config["block_out_channels"] == list(TINY.config().vq_config["block_out_channels"])
