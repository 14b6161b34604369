"""
Names and weights: the original's to ours, and back.

The original tokenizer becomes a stock diffusers `VQModel`: what its architecture lacks or has besides is folded into
weights (see `convert_tokenizer`), so that both compute the same.
"""

import re
from collections.abc import Iterable, Iterator, Mapping

import torch

from ..configuration_mage import MageConfig
from ..vq_shortcuts import average_pool_kernel

TOKENIZER_PREFIX = "vqgan."
# Parameters that the published checkpoints hold and nothing uses.
UNUSED_PARAMETERS = ("cls_token", "pos_embed", "patch_embed.", "mask_token", "decoder_pos_embed", "decoder_pred.")

# Original name -> ours.
_LAYER_NAMES = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.qkv": "attention.qkv",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_MODEL_NAMES = {
    "token_emb.word_embeddings.weight": "mage.embeddings.word_embeddings.weight",
    "token_emb.position_embeddings.weight": "mage.embeddings.position_embeddings",
    "token_emb.LayerNorm": "mage.embeddings.layernorm",
    "latent_prior_proj": "mage.embeddings.representation_embeddings.projection",
    "fake_latent": "mage.embeddings.representation_embeddings.empty",
    "class_emb": "mage.embeddings.class_embeddings",
    "norm": "mage.layernorm",
    "decoder_embed": "decoder.embed",
    "decoder_pos_embed_learned": "decoder.position_embeddings",
    "decoder_norm": "decoder.layernorm",
    "mlm_layer.bias": "head.bias",
    "mlm_layer.fc": "head.dense",
    "mlm_layer.ln": "head.layernorm",
    "fc_norm": "fc_norm",
    "head": "classifier",
}
# A linear probe's head is a batch norm and a linear layer.
_PROBE_NAMES = {"head.0": "batch_norm", "head.1": "classifier"}


def is_unused(name: str) -> bool:
    """Whether an original parameter is one that the original's forward pass never reads."""
    if name == "token_emb.position_ids":
        return True
    return any(name == unused or (unused.endswith(".") and name.startswith(unused)) for unused in UNUSED_PARAMETERS)


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
        new_name = _rename(name, _LAYER_NAMES, {**_MODEL_NAMES, **_PROBE_NAMES})
        if ".attention.qkv." in new_name:
            for letter, third in zip("qkv", weight.chunk(3, dim=0), strict=True):
                converted[new_name.replace("qkv", f"{letter}_proj")] = third.clone()
        elif new_name == "mage.embeddings.position_embeddings":
            converted[new_name] = weight[None]
        else:
            converted[new_name] = weight.flatten() if new_name == "head.bias" else weight
    return converted


def restore_model(converted: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    The inverse of `convert_model`: a `state_dict` under the original's names, without tokenizer and unused parameters.

    Args:
        converted (`Mapping[str, torch.Tensor]`):
            the `state_dict` of `MageForMaskedImageModeling` or `MageForImageClassification`.
    """
    is_probe = any(name.startswith("batch_norm.") for name in converted)
    names = {**_MODEL_NAMES, **(_PROBE_NAMES if is_probe else {})}
    names = {ours: original for original, ours in names.items()}
    layer_names = {ours: original for original, ours in _LAYER_NAMES.items()}
    restored = {}
    for name, weight in converted.items():
        if "vqvae." in name or re.search(r"\.[kv]_proj\.", name):
            continue
        if ".q_proj." in name:
            weight = torch.cat([converted[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"])
        original_name = _rename(name.replace("q_proj", "qkv"), layer_names, names)
        if original_name == "token_emb.position_embeddings.weight":
            weight = weight[0]
        restored[original_name] = weight[None, None] if original_name == "mlm_layer.bias" else weight
    return restored


def unused_parameters(config: MageConfig, channels: int, has_decoder: bool) -> dict[str, torch.Tensor]:
    """
    Stand-ins, zero, for the parameters that the original's forward pass never reads but its strict loading asks for.

    Args:
        config ([`MageConfig`]): the sizes.
        channels (`int`): of an image.
        has_decoder (`bool`): whether it is a pre-training checkpoint, rather than a classifier.
    """
    width, decoder_width, patch = config.hidden_size, config.decoder_hidden_size, config.patch_size
    positions = 1 + config.sequence_length
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, positions, width),
        "patch_embed.proj.weight": (width, channels, patch, patch),
        "patch_embed.proj.bias": (width,),
    }
    if has_decoder:
        shapes |= {
            "mask_token": (1, 1, decoder_width),
            "decoder_pos_embed": (1, positions, decoder_width),
            "decoder_pred.weight": (patch * patch * channels, decoder_width),
            "decoder_pred.bias": (patch * patch * channels,),
        }
    zeros = {name: torch.zeros(shape) for name, shape in shapes.items()}
    return {**zeros, "token_emb.position_ids": torch.arange(positions)[None]}


def _rename(name: str, layer_names: Mapping[str, str], names: Mapping[str, str]) -> str:
    stems = {"blocks": "mage.layers", "decoder_blocks": "decoder.layers"}
    stems |= {ours: original for original, ours in stems.items()}
    layer = re.fullmatch(r"(decoder_blocks|blocks|mage\.layers|decoder\.layers)\.(\d+)\.(.+)\.(weight|bias)", name)
    if layer:
        stem, number, part, kind = layer.groups()
        return f"{stems[stem]}.{number}.{layer_names[part]}.{kind}"
    if name in names:
        return names[name]
    module, _, kind = name.rpartition(".")
    return f"{names[module]}.{kind}"


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
    widths, blocks = config["block_out_channels"], config["layers_per_block"]
    converted = {"quantize.embedding.weight": original["quantize.embedding.weight"]}
    for name, new_name in _plain_layers(len(widths)):
        _copy_layer(original, name, converted, new_name)
    for name, new_name in _residual_blocks(len(widths), blocks):
        _fold_block(original, name, converted, new_name)
    for level, width in enumerate(widths):
        _add_identity_block(converted, f"decoder.up_blocks.{len(widths) - 1 - level}.resnets.{blocks}", width)
    for level, width in enumerate(widths[:-1]):
        new_name = f"encoder.down_blocks.{level}.downsamplers.0.conv"
        converted[f"{new_name}.weight"] = average_pool_kernel(width)
        converted[f"{new_name}.bias"] = torch.zeros(width)
    latents = config["latent_channels"]
    for name in ("quant_conv", "post_quant_conv"):
        converted[f"{name}.weight"] = torch.eye(latents)[:, :, None, None]
        converted[f"{name}.bias"] = torch.zeros(latents)
    return converted


def has_maskgit_names(names: Iterable[str]) -> bool:
    """Whether a tokenizer's names are those that open-muse and TiTok give MaskGIT's."""
    return any(re.match(r"(encoder|decoder)\.mid\.\d+\.|decoder\.up\.\d+\.upsample_conv\.", name) for name in names)


def rename_maskgit(original: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    The weights of MaskGIT's tokenizer under the names of MAGE's, whose architecture is the same.

    Args:
        original (`Mapping[str, torch.Tensor]`): in the naming of open-muse and TiTok.
    """
    return {_without_maskgit_names(name): weight for name, weight in original.items()}


def _without_maskgit_names(name: str) -> str:
    name = re.sub(r"\.mid\.(\d+)\.", lambda match: f".mid.block_{int(match[1]) + 1}.", name)
    return name.replace(".upsample_conv.", ".upsample.conv.")


def restore_tokenizer(converted: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    A `state_dict` for the original tokenizer that computes what a converted one does. Shortcuts stay folded into the
    second convolutions, so that theirs are zero. What the original cannot express is left out: whether anything was,
    tells a comparison of `convert_tokenizer(restored)` with `converted`.

    Args:
        converted (`Mapping[str, torch.Tensor]`): the `state_dict` of a diffusers `VQModel`.
    """
    levels = count(converted, r"encoder\.down_blocks\.(\d+)\.")
    blocks = count(converted, r"encoder\.down_blocks\.0\.resnets\.(\d+)\.")
    restored = {"quantize.embedding.weight": converted["quantize.embedding.weight"]}
    for name, new_name in _plain_layers(levels):
        weight = converted[f"{new_name}.weight"]
        restored[f"{name}.weight"] = weight[:, :, 1:2, 1:2].clone() if name == "encoder.conv_out" else weight
        if name != "encoder.conv_in":
            restored[f"{name}.bias"] = converted[f"{new_name}.bias"]
    for name, new_name in _residual_blocks(levels, blocks):
        for kind in ("norm1.weight", "norm1.bias", "conv1.weight", "norm2.weight", "norm2.bias", "conv2.weight"):
            restored[f"{name}.{kind}"] = converted[f"{new_name}.{kind}"]
        width_out, width_in = converted[f"{new_name}.conv1.weight"].shape[:2]
        if width_in != width_out:
            shortcut = restored[f"{name}.conv2.weight"].new_zeros(width_out, width_out, 1, 1)
            restored[f"{name}.nin_shortcut.weight"] = shortcut
    return restored


def tokenizer_config(original: Mapping[str, torch.Tensor]) -> dict:
    """Configuration of the `VQModel` that an original tokenizer becomes, read off its shapes."""
    levels = count(original, r"encoder\.down\.(\d+)\.")
    codebook_size, latent_channels = original["quantize.embedding.weight"].shape
    widths = [original[f"encoder.down.{level}.block.0.conv2.weight"].shape[0] for level in range(levels)]
    return {
        "in_channels": original["encoder.conv_in.weight"].shape[1],
        "out_channels": original["decoder.conv_out.weight"].shape[0],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": widths,
        "layers_per_block": count(original, r"encoder\.down\.0\.block\.(\d+)\."),
        "latent_channels": latent_channels,
        "num_vq_embeddings": codebook_size,
        "norm_num_groups": 32,
        "mid_block_add_attention": False,
        "lookup_from_codebook": True,
    }


def count(names: Iterable[str], pattern: str) -> int:
    """How many numbers, from 0 on, the names that match `pattern` run through."""
    return 1 + max((int(match[1]) for match in (re.match(pattern, name) for name in names) if match), default=-1)


def _plain_layers(levels: int) -> Iterator[tuple[str, str]]:
    """Names of the tokenizer's layers outside its residual blocks: the original's and ours."""
    for half in ("encoder", "decoder"):
        yield f"{half}.norm_out", f"{half}.conv_norm_out"
        yield f"{half}.conv_in", f"{half}.conv_in"
        yield f"{half}.conv_out", f"{half}.conv_out"
    for level in range(1, levels):
        yield f"decoder.up.{level}.upsample.conv", f"decoder.up_blocks.{levels - 1 - level}.upsamplers.0.conv"


def _residual_blocks(levels: int, blocks: int) -> Iterator[tuple[str, str]]:
    """Names of the tokenizer's residual blocks: the original's and ours."""
    for half in ("encoder", "decoder"):
        for number in (1, 2):
            yield f"{half}.mid.block_{number}", f"{half}.mid_block.resnets.{number - 1}"
    for level in range(levels):
        for block in range(blocks):
            yield f"encoder.down.{level}.block.{block}", f"encoder.down_blocks.{level}.resnets.{block}"
            yield f"decoder.up.{level}.block.{block}", f"decoder.up_blocks.{levels - 1 - level}.resnets.{block}"


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
