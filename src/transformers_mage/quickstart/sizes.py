"""How large tokenizers and models there are to choose from."""

import functools
from dataclasses import dataclass
from typing import Any

from diffusers import VQModel

from ..configuration_mage import MageConfig
from ..data.tokenization import build_tokenizer
from ..training.tracking import training_flops


@dataclass(frozen=True)
class TokenizerSize:
    """
    A tokenizer to choose.

    Attributes:
        image_size (`int`): side of its images, in pixels.
        patch_size (`int`): side of the square that a token stands for: 2, 4, 8 or 16.
        width (`int`): channels of its finest level.
        codebook_size (`int`): codes that it learns.
    """

    image_size: int
    patch_size: int
    width: int
    codebook_size: int

    @property
    def num_levels(self) -> int:
        return self.patch_size.bit_length()

    def values(self) -> dict[str, Any]:
        """What diffusers' `VQModel` is made of."""
        # Wider with each level, up to three times: what a level costs falls by four where its sides halve.
        channels = [self.width * min(level + 1, 3) for level in range(self.num_levels)]
        return {
            "in_channels": 3,
            "out_channels": 3,
            "down_block_types": ["DownEncoderBlock2D"] * self.num_levels,
            "up_block_types": ["UpDecoderBlock2D"] * self.num_levels,
            "block_out_channels": channels,
            "layers_per_block": 1 if self.width < 64 else 2,
            "norm_num_groups": 8,
            "latent_channels": 16 if self.patch_size <= 4 else 32,
            "num_vq_embeddings": self.codebook_size,
            "mid_block_add_attention": False,
            "lookup_from_codebook": True,
        }

    def build(self) -> VQModel:
        return build_tokenizer(self.values())


@dataclass(frozen=True)
class ModelSize:
    """
    A model to choose.

    Attributes:
        width, num_layers (`int`): of the encoder.
        decoder_width, decoder_num_layers (`int`): of the decoder, which features are not taken from.
    """

    width: int
    num_layers: int
    decoder_width: int
    decoder_num_layers: int

    def values(self) -> dict[str, Any]:
        """Fields of [`MageConfig`], what the tokenizer decides left out."""
        return {
            "hidden_size": self.width,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": _heads_of(self.width),
            "decoder_hidden_size": self.decoder_width,
            "decoder_num_hidden_layers": self.decoder_num_layers,
            "decoder_num_attention_heads": _heads_of(self.decoder_width),
        }

    def config(
        self, grid_size: tuple[int, int], codebook_size: int, patch_size: int = 4, dropout: float = 0.0
    ) -> MageConfig:
        """Without a tokenizer."""
        image_size = [side * patch_size for side in grid_size]
        values: dict[str, Any] = {"image_size": image_size, "patch_size": patch_size, "codebook_size": codebook_size}
        values |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": 0.0}
        return MageConfig(**self.values(), **values, vq_config=None)


def _heads_of(width: int) -> int:
    """Narrow models get narrow heads, wide ones those of a ViT."""
    return width // 64 if width >= 384 else width // 32


@functools.cache
def training_flops_of(model: ModelSize, tokenizer: TokenizerSize) -> float:
    """Operations an image of a model's training step on a tokenizer's tokens."""
    side = tokenizer.image_size // tokenizer.patch_size
    return training_flops(model.config((side, side), tokenizer.codebook_size, tokenizer.patch_size))


@dataclass
class Sizes:
    """
    What is trained.

    Attributes:
        tokenizer ([`TokenizerSize`]): with the codes that it learns.
        model ([`ModelSize`]): the MAGE.
        num_codes (`int`): that are left of the tokenizer's after k-means.
        dropout (`float`): of the model's activations.
        tokenizer_batch, model_batch (`int`): images in an update.
    """

    tokenizer: TokenizerSize
    model: ModelSize
    num_codes: int
    dropout: float
    tokenizer_batch: int
    model_batch: int

    @property
    def grid_side(self) -> int:
        return self.tokenizer.image_size // self.tokenizer.patch_size

    @property
    def grid(self) -> tuple[int, int]:
        return self.grid_side, self.grid_side


TOKENIZER_WIDTHS = (16, 32, 64, 128)
MODEL_SIZES = (
    ModelSize(96, 4, 96, 2),
    ModelSize(128, 4, 128, 2),
    ModelSize(192, 6, 128, 2),
    ModelSize(256, 8, 192, 4),
    ModelSize(384, 12, 256, 6),
    ModelSize(768, 12, 512, 8),
)
