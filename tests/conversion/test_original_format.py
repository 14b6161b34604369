"""The way back, and what the original has no format for."""

import json

import pytest
import torch
from diffusers import VQModel
from safetensors.torch import load_file

from tests.original_files import convert
from tests.reference import TINY
from transformers_mage import MageConfig, MageForMaskedImageModeling
from transformers_mage.conversion.names import convert_tokenizer, restore_tokenizer, tokenizer_config
from transformers_mage.conversion.original_format import write_original
from transformers_mage.conversion.reading import CheckpointError

# A tokenizer of other depth and widths than any published one.
SHALLOW = {
    "block_out_channels": [32, 64, 64],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "layers_per_block": 1,
    "latent_channels": 8,
    "num_vq_embeddings": 16,
    "norm_num_groups": 32,
    "mid_block_add_attention": False,
    "lookup_from_codebook": True,
}


def test_tokenizer_of_other_depth_there_and_back(tmp_path):
    """Levels, blocks and widths come from the shapes."""
    original = {name: torch.randn(w.shape) for name, w in restore_tokenizer(VQModel(**SHALLOW).state_dict()).items()}
    torch.save(original, tmp_path / "vqgan.ckpt")

    folder = convert(tmp_path / "vqgan.ckpt", tmp_path / "out")
    write_original(folder, tmp_path / "back.ckpt")

    config = json.loads((folder / "config.json").read_text())
    assert SHALLOW.items() <= config.items()
    back = torch.load(tmp_path / "back.ckpt", weights_only=True)["state_dict"]
    stored = load_file(folder / "diffusion_pytorch_model.safetensors")
    assert convert_tokenizer(back).keys() == stored.keys()
    assert all(torch.equal(weight, stored[name]) for name, weight in convert_tokenizer(back).items())


@torch.no_grad()
def test_folded_shortcuts_agree_to_rounding():
    """h + W h, the original's quirk, equals its folding to float32 rounding."""
    weights = TINY.tokenizer_weights
    block = "encoder.down.2.block.0"
    hidden = torch.randn(1, 64, 8, 8)
    branch = torch.nn.functional.conv2d(hidden, weights[f"{block}.conv2.weight"], padding=1)
    expected = branch + torch.nn.functional.conv2d(branch, weights[f"{block}.nin_shortcut.weight"])

    restored = restore_tokenizer(convert_tokenizer(weights))
    actual = torch.nn.functional.conv2d(hidden, restored[f"{block}.conv2.weight"], padding=1)

    assert not restored[f"{block}.nin_shortcut.weight"].any()
    assert tokenizer_config(restored) == tokenizer_config(weights)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_class_conditional_models_have_no_original_format(tmp_path):
    config = MageConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=1, num_classes=3)
    MageForMaskedImageModeling(config).save_pretrained(tmp_path / "mage")

    with pytest.raises(CheckpointError, match="class-conditional"):
        write_original(tmp_path / "mage", tmp_path / "back.pth")

    assert not (tmp_path / "back.pth").exists()


def test_trained_tokenizers_that_the_original_cannot_express(small_model, tmp_path):
    small_model.save_pretrained(tmp_path / "mage")

    with pytest.raises(CheckpointError, match="cannot express"):
        write_original(tmp_path / "mage", tmp_path / "back.pth")


@pytest.mark.parametrize(
    ("config", "message"),
    [(None, r"config\.json cannot be read"), ({"architectures": ["ViTModel"]}, "holds ViTModel")],
)
def test_other_folders(config, message, tmp_path):
    if config:
        (tmp_path / "config.json").write_text(json.dumps(config))

    with pytest.raises(CheckpointError, match=message):
        write_original(tmp_path, tmp_path / "back.pth")
