"""Files as the original's training scripts write them."""

import argparse
from pathlib import Path

import torch

from tests.reference import TINY, ReferenceCase
from transformers_mage.convert_original_checkpoint import main


def original_weights(
    kind: str = "model", tokenizer: bool = True, case: ReferenceCase = TINY
) -> dict[str, torch.Tensor]:
    """The `state_dict` of a pre-training `model`, a `classifier` or a `probe`."""
    weights = dict(case.weights(kind))
    if not tokenizer:
        return {name: weight for name, weight in weights.items() if not name.startswith("vqgan.")}
    if kind != "model":
        weights |= {f"vqgan.{name}": weight for name, weight in case.tokenizer_weights.items()}
    return weights


def save_original(path: Path, weights: dict[str, torch.Tensor], **kwargs) -> Path:
    """With the training state that the original's scripts write beside the weights."""
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1.5e-4, "params": [0]}]}
    args = argparse.Namespace(model="mage_vit_base_patch16", lr=1.5e-4, output_dir="./output_dir")
    payload = {"model": weights, "optimizer": optimizer, "epoch": 1599, "scaler": {"scale": 65536.0}, "args": args}
    torch.save(payload, path, **kwargs)
    return path


def save_tokenizer(path: Path, **changes: torch.Tensor) -> Path:
    torch.save({"state_dict": {**TINY.tokenizer_weights, **changes}}, path)
    return path


def convert(checkpoint: Path, out: Path, *flags: str, case: ReferenceCase = TINY) -> Path:
    """The command, in this process. The small case has not the published width of a head."""
    sizes = case.manifest["config"]
    heads = ["--num_attention_heads", sizes["heads"], "--decoder_num_attention_heads", sizes["dec_heads"]]
    main([str(argument) for argument in (checkpoint, out, *heads, *flags)])
    return out
