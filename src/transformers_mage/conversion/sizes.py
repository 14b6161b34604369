"""Reads an original model's sizes off its shapes, and holds every name and shape against them."""

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from diffusers import VQModel
from huggingface_hub.errors import StrictDataclassError

from ..configuration_mage import CLASS_TOKENS, MageConfig
from ..modeling_mage import MageForImageClassification, MageForMaskedImageModeling, MagePreTrainedModel
from ..representation_diffusion import RepresentationDiffusionModel
from .names import TOKENIZER_PREFIX, count, restore_model, restore_tokenizer, tokenizer_config
from .reading import CheckpointError, OriginalCheckpoint
from .representation_diffusion import convert_representation_diffusion, representation_diffusion_config

# What a checkpoint may become.
Convertible: TypeAlias = MagePreTrainedModel | VQModel | RepresentationDiffusionModel

# The published rule: shapes do not tell how many heads there are.
ENCODER_HEAD_DIM = 64
DECODER_HEADS = 16
PATCH_SIZE = 16
_LISTED = 12


def read_config(
    checkpoint: OriginalCheckpoint,
    num_attention_heads: int | None = None,
    decoder_num_attention_heads: int | None = None,
) -> MageConfig:
    """
    The configuration of the model in `checkpoint`.

    Args:
        checkpoint ([`OriginalCheckpoint`]): a pre-training checkpoint, a classifier or a probe.
        num_attention_heads (`int`, *optional*): of the encoder; by default the published 64 numbers a head.
        decoder_num_attention_heads (`int`, *optional*): of the decoder; by default the published 16.

    Raises:
        CheckpointError: where shapes are missing or make no model.
    """
    sizes = _encoder_sizes(checkpoint, num_attention_heads)
    sizes |= _decoder_sizes(checkpoint, sizes["hidden_size"], decoder_num_attention_heads)
    sizes |= _grid(checkpoint)
    sizes |= _condition_sizes(checkpoint)
    if checkpoint.kind != "pretraining":
        sizes |= _classifier_sizes(checkpoint)
    if checkpoint.tokenizer is not None:
        sizes["vq_config"] = read_tokenizer_config(checkpoint)
    try:
        return MageConfig(**sizes)
    except (StrictDataclassError, ValueError) as error:
        reason = str(error.__cause__ or error)
        raise CheckpointError(f"The sizes in {checkpoint.path} do not make a model: {reason}") from error


def read_tokenizer_config(checkpoint: OriginalCheckpoint) -> dict:
    """The configuration of the `VQModel` that the tokenizer in `checkpoint` becomes; see [`read_config`]."""
    try:
        config = tokenizer_config(checkpoint.tokenizer or {})
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(
            f"The tokenizer in {checkpoint.path} is not MAGE's: {error} is missing or of a wrong shape."
        ) from error
    groups = config["norm_num_groups"]
    if not config["block_out_channels"] or any(width % groups for width in config["block_out_channels"]):
        raise CheckpointError(
            f"The tokenizer in {checkpoint.path} is not MAGE's: its widths {config['block_out_channels']} are not "
            f"multiples of {groups}."
        )
    return config


def read_diffusion_config(checkpoint: OriginalCheckpoint) -> dict:
    """The configuration of the `RepresentationDiffusionModel` in `checkpoint`; see [`read_config`]."""
    try:
        return representation_diffusion_config(checkpoint.model)
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(
            f"The diffusion of representations in {checkpoint.path} is not RCG's: {error} is missing or of a wrong "
            "shape."
        ) from error


def build_empty(checkpoint: OriginalCheckpoint, config: MageConfig | dict[str, Any]) -> Convertible:
    """The model that `checkpoint` becomes, without memory for its weights."""
    with torch.device("meta"):
        if checkpoint.kind == "representation_diffusion":
            return RepresentationDiffusionModel.from_config(config)
        if not isinstance(config, MageConfig):
            return VQModel.from_config(config)
        if checkpoint.kind == "pretraining":
            return MageForMaskedImageModeling(config)
        return MageForImageClassification(config)


def check_names_and_shapes(checkpoint: OriginalCheckpoint, model: Convertible):
    """
    Holds every name and shape of `checkpoint` against what the original of `model` has.

    Raises:
        CheckpointError: listing what is missing, unexpected or of another shape.
    """
    if isinstance(model, RepresentationDiffusionModel):
        _check_shapes(checkpoint, _converted_diffusion(checkpoint), model.state_dict())
        return
    given = dict(checkpoint.model)
    expected = {}
    state = model.state_dict()
    if checkpoint.kind != "tokenizer":
        expected = restore_model(state)
        state = {name.split("vqvae.")[1]: weight for name, weight in state.items() if "vqvae." in name}
    if checkpoint.tokenizer is not None:
        prefix = "" if checkpoint.kind == "tokenizer" else TOKENIZER_PREFIX
        expected |= {prefix + name: weight for name, weight in restore_tokenizer(state).items()}
        given |= {prefix + name: weight for name, weight in checkpoint.tokenizer.items()}
    _check_shapes(checkpoint, given, expected)


def _converted_diffusion(checkpoint: OriginalCheckpoint) -> dict[str, torch.Tensor]:
    try:
        return convert_representation_diffusion(checkpoint.model)
    except KeyError as error:
        raise CheckpointError(f"{checkpoint.path} does not hold together: {error} is unexpected.") from error


def _check_shapes(
    checkpoint: OriginalCheckpoint, given: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
):
    problems = [f"{name} is missing" for name in expected if name not in given]
    problems += [f"{name} is unexpected" for name in given if name not in expected]
    problems += [
        f"{name} has shape {tuple(given[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected
        if name in given and given[name].shape != expected[name].shape
    ]
    if problems:
        more = f"\n  and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        lines = "".join(f"\n  {problem}" for problem in problems[:_LISTED])
        raise CheckpointError(f"{checkpoint.path} does not hold together:{lines}{more}")


def _shape(checkpoint: OriginalCheckpoint, name: str, ndim: int) -> torch.Size:
    if name not in checkpoint.model:
        raise CheckpointError(f"{checkpoint.path} lacks {name}, which tells a size of the model.")
    shape = checkpoint.model[name].shape
    if len(shape) != ndim:
        raise CheckpointError(f"{checkpoint.path}: {name} must have {ndim} dimensions, got shape {tuple(shape)}.")
    return shape


def _encoder_sizes(checkpoint: OriginalCheckpoint, heads: int | None) -> dict:
    vocabulary, width = _shape(checkpoint, "token_emb.word_embeddings.weight", 2)
    if vocabulary <= CLASS_TOKENS + 1:
        raise CheckpointError(
            f"{checkpoint.path}: the vocabulary of MAGE is its codes and {CLASS_TOKENS + 1} more, got {vocabulary}."
        )
    if heads is None and width % ENCODER_HEAD_DIM:
        raise CheckpointError(
            f"{checkpoint.path}: the encoder's width {width} is not a multiple of {ENCODER_HEAD_DIM}, the published "
            "width of a head. Pass `--num_attention_heads`."
        )
    return {
        "codebook_size": vocabulary - CLASS_TOKENS - 1,
        "hidden_size": width,
        "num_hidden_layers": count(checkpoint.model, r"blocks\.(\d+)\."),
        "num_attention_heads": heads or width // ENCODER_HEAD_DIM,
        "intermediate_size": _shape(checkpoint, "blocks.0.mlp.fc1.weight", 2)[0],
        "qkv_bias": "blocks.0.attn.qkv.bias" in checkpoint.model,
    }


def _decoder_sizes(checkpoint: OriginalCheckpoint, encoder_width: int, heads: int | None) -> dict:
    if checkpoint.kind != "pretraining":
        # A classifier has no decoder; one built on it later is as wide as the encoder, as the published ones are.
        return {
            "decoder_hidden_size": encoder_width,
            "decoder_num_attention_heads": heads or math.gcd(encoder_width, DECODER_HEADS),
        }
    width = _shape(checkpoint, "decoder_embed.weight", 2)[0]
    if heads is None and width % DECODER_HEADS:
        raise CheckpointError(
            f"{checkpoint.path}: the decoder's width {width} is not a multiple of {DECODER_HEADS}, the published "
            "number of heads. Pass `--decoder_num_attention_heads`."
        )
    return {
        "decoder_hidden_size": width,
        "decoder_num_hidden_layers": count(checkpoint.model, r"decoder_blocks\.(\d+)\."),
        "decoder_num_attention_heads": heads or DECODER_HEADS,
        "decoder_intermediate_size": _shape(checkpoint, "decoder_blocks.0.mlp.fc1.weight", 2)[0],
    }


def _condition_sizes(checkpoint: OriginalCheckpoint) -> dict:
    """What RCG conditions on: a representation, or a class whose vector is not normalised."""
    if "latent_prior_proj.weight" in checkpoint.model:
        return {"representation_size": _shape(checkpoint, "latent_prior_proj.weight", 2)[1]}
    if "class_emb.weight" in checkpoint.model:
        classes = _shape(checkpoint, "class_emb.weight", 2)[0]
        return {"num_classes": classes, "class_embedding_is_normalized": False, "class_dropout_prob": 0.0}
    return {}


def _grid(checkpoint: OriginalCheckpoint) -> dict:
    """The original's images are square."""
    length = _shape(checkpoint, "token_emb.position_embeddings.weight", 2)[0] - 1
    side = math.isqrt(max(length, 0))
    if not side or side * side != length:
        raise CheckpointError(f"{checkpoint.path}: {length} positions do not make a square grid of tokens.")
    patch = PATCH_SIZE
    if checkpoint.tokenizer is not None:
        patch = 2 ** (count(checkpoint.tokenizer, r"encoder\.down\.(\d+)\.") - 1)
    return {"patch_size": patch, "image_size": side * patch}


def _classifier_sizes(checkpoint: OriginalCheckpoint) -> dict:
    is_probe = checkpoint.kind == "probe"
    return {
        "num_labels": _shape(checkpoint, "head.1.weight" if is_probe else "head.weight", 2)[0],
        "classifier_batch_norm": is_probe,
        "classifier_pooling": "mean" if "fc_norm.weight" in checkpoint.model else "cls",
    }
