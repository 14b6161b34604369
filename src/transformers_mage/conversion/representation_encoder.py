"""RCG's encoder, a ViT of MoCo v3 with its projection: names, sizes and weights."""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from transformers import ViTConfig

from ..representation_encoders import ViTWithProjection
from ..representations import RepresentationSource
from .names import count

ENCODER_PREFIX = "pretrained_encoder."
_NAMES = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}
_LAYER_NAMES = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
# Each linear layer of the projection is followed by a batch norm, and a ReLU that is not the last one's.
_PROJECTION = {"head.0": "head.1", "head.3": "head.4", "head.6": "head.7"}
_BATCH_NORM_EPS = 1e-5
# MoCo v3 has 12 heads in its small model too.
_SMALL_WIDTH, _SMALL_HEADS, _HEAD_DIM = 384, 12, 64
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def has_projection(original: Mapping[str, torch.Tensor]) -> bool:
    """Whether an encoder is one of MoCo v3 as RCG has them, rather than of DINO, iBOT or DeiT."""
    return all(
        f"{linear}.weight" in original and f"{norm}.running_var" in original for linear, norm in _PROJECTION.items()
    )


def representation_encoder_config(original: Mapping[str, torch.Tensor]) -> ViTConfig:
    """
    Sizes of the encoder, read off its shapes.

    Args:
        original (`Mapping[str, torch.Tensor]`): its weights, without `ENCODER_PREFIX`.
    """
    width, channels, patch, _ = original["patch_embed.proj.weight"].shape
    side = math.isqrt(original["pos_embed"].shape[1] - 1)
    projection: dict[str, Any] = {
        "projection_hidden_size": original["head.0.weight"].shape[0],
        "projection_size": original["head.6.weight"].shape[0],
    }
    return ViTConfig(
        hidden_size=width,
        num_hidden_layers=count(original, r"blocks\.(\d+)\."),
        num_attention_heads=_SMALL_HEADS if width == _SMALL_WIDTH else max(width // _HEAD_DIM, 1),
        intermediate_size=original["blocks.0.mlp.fc1.weight"].shape[0],
        image_size=side * patch,
        patch_size=patch,
        num_channels=channels,
        layer_norm_eps=1e-6,
        **projection,
    )


def convert_representation_encoder(original: Mapping[str, torch.Tensor]) -> ViTWithProjection:
    """
    The encoder, with the batch norms of its projection folded into the linear layers before them.

    Raises:
        KeyError: for names that such an encoder does not have.
    """
    model = ViTWithProjection(representation_encoder_config(original))
    weights: dict[str, torch.Tensor] = {}
    for name, weight in original.items():
        if not name.startswith("head."):
            weights |= {f"vit.{new}": part for new, part in _convert(name, weight)}
    for number, (linear, norm) in enumerate(_PROJECTION.items()):
        scale, shift = _folded(original, norm)
        weights[f"projection.{2 * number}.weight"] = (original[f"{linear}.weight"].double() * scale[:, None]).float()
        weights[f"projection.{2 * number}.bias"] = shift.float()
    model.load_state_dict(weights)
    return model.requires_grad_(False).eval()


def representation_source(config: Any) -> RepresentationSource:
    """What RCG takes of an encoder with this `ViTConfig`, and how it prepares images for it."""
    return RepresentationSource(
        "MoCo v3",
        pooling="pooler",
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
        image_size=config.image_size,
        antialias=False,
    )


def _convert(name: str, weight: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    layer = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", name)
    if layer and layer[2] == "attn.qkv":
        thirds = zip("qkv", weight.chunk(3), strict=True)
        return [(f"layers.{layer[1]}.attention.{letter}_proj.{layer[3]}", third.clone()) for letter, third in thirds]
    if layer:
        return [(f"layers.{layer[1]}.{_LAYER_NAMES[layer[2]]}.{layer[3]}", weight)]
    if name in _NAMES:
        return [(_NAMES[name], weight)]
    module, _, kind = name.rpartition(".")
    return [(f"{_NAMES[module]}.{kind}", weight)]


def _folded(original: Mapping[str, torch.Tensor], norm: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What a batch norm multiplies by and adds, once it has learned; the last one has no weights of its own."""
    mean, variance = (original[f"{norm}.running_{what}"].double() for what in ("mean", "var"))
    scale = 1 / (variance + _BATCH_NORM_EPS).sqrt()
    if f"{norm}.weight" not in original:
        return scale, -mean * scale
    scale = scale * original[f"{norm}.weight"].double()
    return scale, original[f"{norm}.bias"].double() - mean * scale
