"""The published sizes, from shapes alone."""

from pathlib import Path

import pytest
import torch

from transformers_mage.conversion.reading import CheckpointError, OriginalCheckpoint
from transformers_mage.conversion.sizes import build_empty, check_names_and_shapes, read_config


def _published(depth: int, width: int, vocabulary: int = 2025, positions: int = 257) -> OriginalCheckpoint:
    """The original's parameters that matter, with encoder and decoder of the same width, without memory."""
    shapes = {
        "token_emb.word_embeddings.weight": (vocabulary, width),
        "token_emb.position_embeddings.weight": (positions, width),
        "decoder_embed.weight": (width, width),
        "decoder_embed.bias": (width,),
        "decoder_pos_embed_learned": (1, positions, width),
        "mlm_layer.bias": (1, 1, vocabulary),
        "mlm_layer.fc.weight": (width, width),
        "mlm_layer.fc.bias": (width,),
    }
    norms = ["token_emb.LayerNorm", "norm", "decoder_norm", "mlm_layer.ln"]
    for block in (*(f"blocks.{i}" for i in range(depth)), *(f"decoder_blocks.{i}" for i in range(8))):
        norms += [f"{block}.norm1", f"{block}.norm2"]
        layers = {"attn.qkv": (3, 1), "attn.proj": (1, 1), "mlp.fc1": (4, 1), "mlp.fc2": (1, 4)}
        for layer, (rows, columns) in layers.items():
            shapes[f"{block}.{layer}.weight"] = (rows * width, columns * width)
            shapes[f"{block}.{layer}.bias"] = (rows * width,)
    shapes |= {f"{norm}.{kind}": (width,) for norm in norms for kind in ("weight", "bias")}
    model = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    return OriginalCheckpoint(Path("mage.pth"), "pretraining", model)


@pytest.mark.parametrize(
    ("depth", "width", "heads", "millions"), [(12, 768, 12, 145), (24, 1024, 16, 408)], ids=["ViT-B", "ViT-L"]
)
def test_published_sizes(depth, width, heads, millions):
    checkpoint = _published(depth, width)

    config = read_config(checkpoint)
    model = build_empty(checkpoint, config)
    check_names_and_shapes(checkpoint, model)

    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (depth, width, heads)
    assert (config.decoder_num_hidden_layers, config.decoder_num_attention_heads) == (8, 16)
    assert (config.codebook_size, config.image_size, config.patch_size) == (1024, 256, 16)
    assert round(model.num_parameters() / 1e6) == millions


def test_heads_can_be_told():
    config = read_config(_published(12, 768), num_attention_heads=8, decoder_num_attention_heads=4)

    assert (config.num_attention_heads, config.decoder_num_attention_heads) == (8, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 48}, r"width 48 is not a multiple of 64.*--num_attention_heads"),
        ({"positions": 200}, "199 positions do not make a square grid"),
        ({"vocabulary": 1001}, "got 1001"),
    ],
)
def test_sizes_that_make_no_model(changes, message):
    with pytest.raises(CheckpointError, match=message):
        read_config(_published(**{"depth": 2, "width": 64, **changes}))


def test_heads_that_do_not_divide_the_width():
    with pytest.raises(CheckpointError, match=r"`num_attention_heads` must divide `hidden_size` \(768\), got 7"):
        read_config(_published(2, 768), num_attention_heads=7)


def test_many_problems_are_listed_shortly():
    checkpoint = _published(2, 64)
    model = build_empty(checkpoint, read_config(checkpoint))
    checkpoint.model = {name: weight for name, weight in checkpoint.model.items() if "mlp" not in name}

    with pytest.raises(CheckpointError, match=r"blocks\.0\.mlp\.fc1\.weight is missing(.|\n)*and 28 more"):
        check_names_and_shapes(checkpoint, model)
