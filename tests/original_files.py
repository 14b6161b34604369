"""Files as the original's training scripts write them, of the small recorded case."""

import argparse
from pathlib import Path

import torch

from tests.reference import TINY
from transformers_mage.convert_original_checkpoint import main

# The small case has not the published width of a head.
HEADS = ("--num_attention_heads", "4", "--decoder_num_attention_heads", "4")


def original_weights(kind: str = "model", tokenizer: bool = True) -> dict[str, torch.Tensor]:
    """The `state_dict` of a pre-training `model`, a `classifier` or a `probe`, with or without the tokenizer inside."""
    weights = {name: weight for name, weight in TINY.weights(kind).items() if not name.startswith("vqgan.")}
    inside = {f"vqgan.{name}": weight for name, weight in TINY.tokenizer_weights.items()} if tokenizer else {}
    return {**weights, **inside}


def save_original(path: Path, weights: dict[str, torch.Tensor], **kwargs) -> Path:
    """Writes what the original's training scripts write beside the weights, too."""
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1.5e-4, "params": [0]}]}
    args = argparse.Namespace(model="mage_vit_base_patch16", lr=1.5e-4, output_dir="./output_dir")
    payload = {"model": weights, "optimizer": optimizer, "epoch": 1599, "scaler": {"scale": 65536.0}, "args": args}
    torch.save(payload, path, **kwargs)
    return path


def save_tokenizer(path: Path, **changes: torch.Tensor) -> Path:
    torch.save({"state_dict": {**TINY.tokenizer_weights, **changes}}, path)
    return path


def convert(checkpoint: Path, out: Path, *flags: str) -> Path:
    """The command, in this process."""
    main([str(checkpoint), str(out), *HEADS, *map(str, flags)])
    return out
