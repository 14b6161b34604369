"""
Names and weights of the original checkpoints, and of this package.

The original tokenizer becomes a stock diffusers `VQModel`: what its architecture lacks or has besides is folded into
weights (see `convert_tokenizer`), so that both compute the same.
"""

import re
from collections.abc import Iterable, Mapping

import torch

from .vq_shortcuts import average_pool_kernel

# Parameters that the published checkpoints hold and nothing uses.
UNUSED_PARAMETERS = ("cls_token", "pos_embed", "patch_embed.", "mask_token", "decoder_pos_embed", "decoder_pred.")
TOKENIZER_PREFIX = "vqgan."

# Original name -> ours, in order; {n} stands for a layer's number. "mage." precedes what belongs to the encoder.
_LAYER_NAMES = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_MODEL_NAMES = {
    "token_emb.word_embeddings.weight": "mage.embeddings.word_embeddings.weight",
    "token_emb.position_embeddings.weight": "mage.embeddings.position_embeddings",
    "token_emb.LayerNorm": "mage.embeddings.layernorm",
    "norm": "mage.layernorm",
    "decoder_embed": "decoder.embed",
    "decoder_pos_embed_learned": "decoder.position_embeddings",
    "decoder_norm": "decoder.layernorm",
    "mlm_layer.bias": "head.bias",
    "mlm_layer.fc": "head.dense",
    "mlm_layer.ln": "head.layernorm",
    "fc_norm": "fc_norm",
    "head.0": "batch_norm",
    "head.1": "classifier",
    "head": "classifier",
}


def convert_model(original: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    Weights of an original model, classifier or probe, without the tokenizer, under this package's names.

    Args:
        original (`Mapping[str, torch.Tensor]`): the original `state_dict`; what its model never uses is left out.

    Returns:
        `dict[str, torch.Tensor]`: for `MageForMaskedImageModeling` or `MageForImageClassification`.

    Raises:
        KeyError: names that the original does not have.
    """
    converted = {}
    for name, weight in original.items():
        if is_unused(name) or name.startswith(TOKENIZER_PREFIX):
            continue
        new_name = _rename(name)
        if "attn.qkv" in name:
            for letter, third in zip("qkv", weight.chunk(3, dim=0), strict=True):
                converted[new_name.replace("qkv", f"{letter}_proj")] = third
        elif new_name.endswith("embeddings.position_embeddings"):
            converted[new_name] = weight[None]
        else:
            converted[new_name] = weight.flatten() if new_name == "head.bias" else weight
    return converted


def is_unused(name: str) -> bool:
    """Whether an original parameter is one that the original's forward pass never reads."""
    if name == "token_emb.position_ids":
        return True
    return any(name == unused or (unused.endswith(".") and name.startswith(unused)) for unused in UNUSED_PARAMETERS)


def _rename(name: str) -> str:
    layer = re.fullmatch(r"(decoder_)?blocks\.(\d+)\.(.+?)\.(weight|bias)", name)
    if layer:
        decoder, number, part, kind = layer.groups()
        part = "attention.qkv" if part == "attn.qkv" else _LAYER_NAMES[part]
        return f"{'decoder' if decoder else 'mage'}.layers.{number}.{part}.{kind}"
    if name in _MODEL_NAMES:
        return _MODEL_NAMES[name]
    module, _, kind = name.rpartition(".")
    return f"{_MODEL_NAMES[module]}.{kind}"


def convert_tokenizer(original: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    Weights of the original tokenizer for a stock diffusers `VQModel` that computes the same.

    - Where a block's width changes, the original returns h + W h with h the block's own output (a quirk of the JAX
      original). With h = conv2(.), that is a block without shortcut whose second convolution is (I + W) conv2.
    - 2 x 2 average pooling is a convolution with stride 2.
    - The 1 x 1 output convolution sits in the centre of a 3 x 3 one; convolutions without bias get a zero one.
    - The stock decoder has one residual block more a level: the identity, by a zero second convolution.

    Args:
        original (`Mapping[str, torch.Tensor]`): the `state_dict`, its names without the `vqgan.` prefix.
    """
    config = tokenizer_config(original)
    converted = {"quantize.embedding.weight": original["quantize.embedding.weight"]}
    for half in ("encoder", "decoder"):
        for norm_or_conv, new_name in (
            ("norm_out", "conv_norm_out"),
            ("conv_in", "conv_in"),
            ("conv_out", "conv_out"),
        ):
            _copy_layer(original, f"{half}.{norm_or_conv}", converted, f"{half}.{new_name}")
        for number in (1, 2):
            _fold_block(original, f"{half}.mid.block_{number}", converted, f"{half}.mid_block.resnets.{number - 1}")
    channels = config["block_out_channels"]
    for level, width in enumerate(channels):
        _convert_down_level(original, converted, level, width, config)
        _convert_up_level(original, converted, level, width, config)
    latents = config["latent_channels"]
    for name in ("quant_conv", "post_quant_conv"):
        converted[f"{name}.weight"] = torch.eye(latents)[:, :, None, None]
        converted[f"{name}.bias"] = torch.zeros(latents)
    return converted


def tokenizer_config(original: Mapping[str, torch.Tensor]) -> dict:
    """Configuration of the `VQModel` that an original tokenizer becomes, read off its shapes."""
    levels = 1 + max(int(m[1]) for m in (re.match(r"encoder\.down\.(\d+)\.", name) for name in original) if m)
    blocks = 1 + max(
        int(m[1]) for m in (re.match(r"encoder\.down\.0\.block\.(\d+)\.", name) for name in original) if m
    )
    codebook_size, latent_channels = original["quantize.embedding.weight"].shape
    widths = [original[f"encoder.down.{level}.block.0.conv2.weight"].shape[0] for level in range(levels)]
    return {
        "in_channels": original["encoder.conv_in.weight"].shape[1],
        "out_channels": original["decoder.conv_out.weight"].shape[0],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": widths,
        "layers_per_block": blocks,
        "latent_channels": latent_channels,
        "num_vq_embeddings": codebook_size,
        "norm_num_groups": 32,
        "mid_block_add_attention": False,
        "lookup_from_codebook": True,
    }


def _count(names: Iterable[str], pattern: str) -> int:
    """How many numbers the names that match `pattern` run through."""
    return 1 + max(int(match[1]) for match in (re.match(pattern, name) for name in names) if match)


def _convert_down_level(original: Mapping, converted: dict, level: int, width: int, config: dict):
    for block in range(config["layers_per_block"]):
        new_name = f"encoder.down_blocks.{level}.resnets.{block}"
        _fold_block(original, f"encoder.down.{level}.block.{block}", converted, new_name)
    if level < len(config["block_out_channels"]) - 1:
        new_name = f"encoder.down_blocks.{level}.downsamplers.0.conv"
        converted[f"{new_name}.weight"] = average_pool_kernel(width)
        converted[f"{new_name}.bias"] = torch.zeros(width)


def _convert_up_level(original: Mapping, converted: dict, level: int, width: int, config: dict):
    blocks = config["layers_per_block"]
    up = f"decoder.up_blocks.{len(config['block_out_channels']) - 1 - level}"
    for block in range(blocks):
        _fold_block(original, f"decoder.up.{level}.block.{block}", converted, f"{up}.resnets.{block}")
    _add_identity_block(converted, f"{up}.resnets.{blocks}", width)
    if level > 0:
        _copy_layer(original, f"decoder.up.{level}.upsample.conv", converted, f"{up}.upsamplers.0.conv")


def _copy_layer(original: Mapping, name: str, converted: dict, new_name: str):
    weight = original[f"{name}.weight"]
    if weight.ndim == 4 and weight.shape[2:] == (1, 1):
        weight = torch.nn.functional.pad(weight, (1, 1, 1, 1))
    bias = original.get(f"{name}.bias")
    converted[f"{new_name}.weight"] = weight
    converted[f"{new_name}.bias"] = weight.new_zeros(weight.shape[0]) if bias is None else bias


def _fold_block(original: Mapping, name: str, converted: dict, new_name: str):
    for layer in ("norm1", "conv1", "norm2", "conv2"):
        _copy_layer(original, f"{name}.{layer}", converted, f"{new_name}.{layer}")
    shortcut = original.get(f"{name}.nin_shortcut.weight")
    conv2 = converted[f"{new_name}.conv2.weight"]
    if shortcut is not None:
        folded = torch.einsum("oi,ichw->ochw", shortcut[:, :, 0, 0].double(), conv2.double())
        converted[f"{new_name}.conv2.weight"] = (conv2.double() + folded).to(conv2.dtype)
    width_in, width_out = converted[f"{new_name}.conv1.weight"].shape[1], conv2.shape[0]
    if width_in != width_out:
        converted[f"{new_name}.conv_shortcut.weight"] = torch.zeros(width_out, width_in, 1, 1)
        converted[f"{new_name}.conv_shortcut.bias"] = torch.zeros(width_out)


def _add_identity_block(converted: dict, name: str, width: int):
    for number in (1, 2):
        converted[f"{name}.norm{number}.weight"] = torch.ones(width)
        converted[f"{name}.norm{number}.bias"] = torch.zeros(width)
        converted[f"{name}.conv{number}.weight"] = torch.zeros(width, width, 3, 3)
        converted[f"{name}.conv{number}.bias"] = torch.zeros(width)
