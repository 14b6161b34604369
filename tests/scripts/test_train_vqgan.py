import json
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import VQModel

from tests.in_process import VQ_FLAGS


def test_the_loss_falls_and_the_codes_are_used(tokenizer_folder: Path):
    lines = [json.loads(line) for line in (tokenizer_folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["reconstruction_loss"] < 0.5 * lines[0]["reconstruction_loss"]
    assert lines[-1]["codes_used"] > 2


def test_the_folder_is_a_plain_vqmodel(tokenizer_folder: Path):
    assert VQModel.from_pretrained(tokenizer_folder).config.num_vq_embeddings == 16


def test_resuming_gives_the_same_bits(train_vqgan: Callable[[list[str]], None], image_folder: Path, tmp_path: Path):
    """The use of the codes, which decides on those to revive, is part of a checkpoint."""
    flags = [*VQ_FLAGS, "--dataset_name", image_folder, "--max_train_steps", "8", "--checkpointing_steps", "3"]
    flags += ["--revive_codes_every", "2", "--learning_rate", "0.01", "--output_dir"]
    train_vqgan([*flags, tmp_path / "once"])
    train_vqgan([*flags, tmp_path / "twice", "--resume_from_checkpoint", tmp_path / "once" / "checkpoint-3"])
    once, twice = (VQModel.from_pretrained(tmp_path / name).state_dict() for name in ("once", "twice"))
    assert all(torch.equal(once[name], twice[name]) for name in once)
