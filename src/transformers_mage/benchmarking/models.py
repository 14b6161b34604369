"""Models of the published sizes with random weights, as they come and in the plain way that they are compared with."""

import copy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from diffusers import VQModel
from diffusers.models.downsampling import Downsample2D
from torch import nn
from transformers import AttentionInterface
from transformers.models.vit.modeling_vit import eager_attention_forward

from ..configuration_mage import MageConfig
from ..dropout import MageDropout
from ..modeling_mage import MageForMaskedImageModeling, MageHead, MageMaskedImageModelingOutput
from ..vq_shortcuts import average_pool_kernel, skip_noop_layers

# That of transformers' ViT: step by step, with PyTorch's own dropout.
PLAIN_ATTENTION = "mage_plain"
AttentionInterface.register(PLAIN_ATTENTION, eager_attention_forward)


def _tokenizer(widths: list[int], num_codes: int, dim: int, num_layers: int) -> dict:
    return {
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "block_out_channels": widths,
        "layers_per_block": num_layers,
        "latent_channels": dim,
        "num_vq_embeddings": num_codes,
        "mid_block_add_attention": False,
        "lookup_from_codebook": True,
    }


# How matrices are rounded, and what torchao calls it.
QUANTIZATIONS = {"int8-weights": "Int8WeightOnlyConfig", "int8-products": "Int8DynamicActivationInt8WeightConfig"}

_PUBLISHED_TOKENIZER = _tokenizer([128, 128, 256, 256, 512], num_codes=1024, dim=256, num_layers=2)
_SMALL_TOKENIZER = _tokenizer([32, 64, 64], num_codes=64, dim=16, num_layers=1)

SIZES: dict[str, dict] = {
    "vit-base": {"vq_config": _PUBLISHED_TOKENIZER},
    "vit-large": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "decoder_hidden_size": 1024,
        "vq_config": _PUBLISHED_TOKENIZER,
    },
    "small": {
        "codebook_size": 64,
        "image_size": 32,
        "patch_size": 4,
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "decoder_hidden_size": 96,
        "decoder_num_hidden_layers": 3,
        "decoder_num_attention_heads": 4,
        "vq_config": _SMALL_TOKENIZER,
    },
}


def read_sizes(size: str) -> dict:
    """
    Values of a model's configuration.

    Args:
        size (`str`):
            One of `SIZES`, or a YAML file whose `model:` has them. What a recipe leaves to its tokenizer is that of
            `small` then for images below 256 pixels, and otherwise that of the published one.

    Raises:
        ValueError: if it is neither.
    """
    if size in SIZES:
        return SIZES[size]
    try:
        recipe = yaml.safe_load(Path(size).read_text(encoding="utf-8"))
        values = dict(recipe["model"])
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, KeyError, ValueError) as error:
        raise ValueError(
            f"A size is {', '.join(SIZES)}, or the file of a recipe with `model:` in it, as configs/mage_digits.yaml; "
            f"got `{size}`."
        ) from error
    tokenizer = SIZES["small" if values.get("image_size", 256) < 256 else "vit-base"]
    given = {name: tokenizer[name] for name in ("codebook_size", "patch_size", "vq_config") if name in tokenizer}
    return given | values


def build_model(size: str, device: torch.device | str = "cpu") -> MageForMaskedImageModeling:
    """
    A model with random weights, and a tokenizer with the layers that do nothing in a converted one.

    Args:
        size (`str`): one of `SIZES`, or the file of a recipe of `scripts/train_mage.py`; see [`read_sizes`].
        device (`torch.device`): where; on `"meta"` work can be counted without doing it.
    """
    config = MageConfig(**read_sizes(size))
    with torch.device(device):
        model = MageForMaskedImageModeling(config)
    # Made where its weights can be looked at.
    vqvae = VQModel.from_config(config.vq_config).requires_grad_(False)
    make_noop_layers(vqvae)
    skip_noop_layers(vqvae)
    model.mage.vqvae = vqvae.to(device)
    return model


def quantize(model: MageForMaskedImageModeling, how: str):
    """
    Rounds the matrices of encoder and decoder to eight bits by torchao; the tokenizer stays as it is.

    Args:
        how (`str`): one of `QUANTIZATIONS`.

    Raises:
        ValueError: without torchao.
    """
    try:
        from torchao import quantization
    except ImportError as error:
        raise ValueError(f"`{how}` needs torchao: pip install 'transformers-mage[deployment]'") from error
    quantization.quantize_(
        model,
        getattr(quantization, QUANTIZATIONS[how])(),
        filter_fn=lambda module, name: isinstance(module, nn.Linear) and "vqvae" not in name,
    )


def plain_copy(model: MageForMaskedImageModeling) -> MageForMaskedImageModeling:
    """The same weights without what makes them fast: see [`PlainMage`]."""
    config = copy.deepcopy(model.config)
    config._attn_implementation = PLAIN_ATTENTION
    with model.device:
        plain = PlainMage(config)
    plain.load_state_dict(model.state_dict())
    return plain.train(model.training)


class PlainHead(MageHead):
    """Scores the whole vocabulary, most of which means nothing, as the original does."""

    def forward(self, hidden_states: torch.Tensor, word_embeddings: torch.Tensor) -> torch.Tensor:
        hidden_states = self.layernorm(self.activation_fn(self.dense(hidden_states)))
        return F.linear(hidden_states, word_embeddings.detach(), self.bias)[..., : self.codebook_size]


class PlainMage(MageForMaskedImageModeling):
    """
    MAGE as the paper writes it down, to compare with: attention step by step, PyTorch's own dropout, logits of the
    whole vocabulary at all positions, and a stock tokenizer that executes its layers that do nothing.
    """

    def __init__(self, config: MageConfig):
        super().__init__(config)
        self.head = PlainHead(config)
        for module in self.modules():
            for name, child in module.named_children():
                if isinstance(child, MageDropout):
                    setattr(module, name, nn.Dropout(child.p))
        # The model's own skips layers.
        self.mage.vqvae = VQModel.from_config(config.vq_config).requires_grad_(False)

    def forward(self, *args: Any, max_masked: int | None = None, **kwargs: Any) -> MageMaskedImageModelingOutput:
        return super().forward(*args, **kwargs)

    def _predict(
        self,
        decoded: torch.Tensor,
        tokens: torch.LongTensor,
        bool_masked_pos: torch.BoolTensor | None,
        num_masked: int | None,
    ) -> dict[str, torch.Tensor | None]:
        logits = self.head(decoded, self.mage.embeddings.word_embeddings.weight)
        if bool_masked_pos is None:
            return {"logits": logits}
        losses = F.cross_entropy(
            logits.float().transpose(1, 2), tokens, label_smoothing=self.config.label_smoothing, reduction="none"
        )
        return {"loss": (losses * bool_masked_pos).sum() / bool_masked_pos.sum(), "logits": logits}


@torch.no_grad()
def make_noop_layers(vqvae: VQModel):
    """Gives the layers of a tokenizer that the original does not have the weights of a converted one."""
    for block in vqvae.decoder.up_blocks:
        nn.init.zeros_(block.resnets[-1].conv2.weight)
        nn.init.zeros_(block.resnets[-1].conv2.bias)
    for module in vqvae.modules():
        if getattr(module, "conv_shortcut", None) is not None:
            nn.init.zeros_(module.conv_shortcut.weight)
            nn.init.zeros_(module.conv_shortcut.bias)
        if isinstance(module, Downsample2D):
            module.conv.weight.copy_(average_pool_kernel(module.channels))
            nn.init.zeros_(module.conv.bias)
