"""How much precision the tokens of images need."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import VQModel
from torch import nn

from examples.digits import tasks as digits
from transformers_mage import MageModel
from transformers_mage.image_tokens import encode_images

DIGITS = Path(__file__).parents[1] / "model_cards" / "mage-digits"
# Bits of the fraction, the leading one not counted.
TF32, BFLOAT16 = 10, 7


def rounded(values: torch.Tensor, bits: int) -> torch.Tensor:
    """float32 to the nearest number with so many bits of fraction, ties to even."""
    spare = 23 - bits
    whole = values.contiguous().view(torch.int32)
    half = (1 << (spare - 1)) - 1 + ((whole >> spare) & 1)
    return (whole + half >> spare << spare).view(torch.float32)


def with_convolutions_of(bits: int, vqvae: VQModel) -> VQModel:
    """A tokenizer whose convolutions multiply as a GPU's do in a shorter format: rounded numbers, exact sums."""
    vqvae = copy.deepcopy(vqvae)
    for module in vqvae.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = rounded(module.weight.data, bits)
            module.register_forward_pre_hook(lambda module, inputs: (rounded(inputs[0], bits),))
    return vqvae


def test_rounding_is_that_of_the_format():
    values = torch.randn(1000)
    assert torch.equal(rounded(values, BFLOAT16), values.bfloat16().float())


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "least", "most"), [(TF32, 0.998, 0.9999), (BFLOAT16, 0.97, 0.998)])
def test_tokens_of_shorter_formats(bits: int, least: float, most: float):
    """TF32, PyTorch's default for a GPU's convolutions, changes one token in a thousand, bfloat16 one in a hundred."""
    vqvae = MageModel.from_pretrained(DIGITS).vqvae
    pixels = np.stack([np.asarray(image) for image in digits.load_digits_dataset()["test"]["image"][:]])
    pixels = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255

    same = encode_images(with_convolutions_of(bits, vqvae), pixels) == encode_images(vqvae, pixels)

    assert least < same.float().mean() < most
