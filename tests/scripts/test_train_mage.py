import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from transformers_mage import MagePipeline

from .conftest import MODEL_FLAGS

Script = Callable[[list[str]], None]


@pytest.fixture
def flags(image_folder: Path, tokenizer_folder: Path) -> list[str]:
    flags = ["--dataset_name", image_folder, "--tokenizer_name_or_path", tokenizer_folder]
    return [*MODEL_FLAGS, *flags, "--learning_rate", "0.01", "--checkpointing_steps", "0", "--logging_steps", "1"]


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_loss_falls_and_the_folder_generates(train_mage: Script, flags: list[str], tmp_path: Path):
    train_mage([*flags, "--max_train_steps", "60", "--tokenized_views", "2", "--output_dir", tmp_path])
    first, last = losses(tmp_path)[:10], losses(tmp_path)[-10:]
    assert sum(last) < 0.9 * sum(first)
    pipe = MagePipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    images = pipe(num_images=2, num_inference_steps=2, output_type="pt", generator=torch.Generator().manual_seed(0))
    assert images.images.shape == (2, 1, 8, 8)


@pytest.mark.parametrize("extra", [[], ["--tokenized_views", "3"], ["--contrastive_weight", "0.1", "--use_ema"]])
def test_resuming_gives_the_same_bits(train_mage: Script, flags: list[str], tmp_path: Path, extra: list[str]):
    flags = [*flags, "--max_train_steps", "6", "--checkpointing_steps", "4", *extra]
    train_mage([*flags, "--output_dir", tmp_path / "once"])
    checkpoint = tmp_path / "once" / "checkpoint-4"
    train_mage([*flags, "--output_dir", tmp_path / "twice", "--resume_from_checkpoint", checkpoint])
    once, twice = (load_file(tmp_path / run / "model.safetensors") for run in ("once", "twice"))
    assert all(torch.equal(once[name], twice[name]) for name in once)
    assert losses(tmp_path / "twice") == losses(tmp_path / "once")[4:]
