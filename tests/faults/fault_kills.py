"""Kills and signals at random moments: in the end there is what there would have been without them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.in_process import MODEL_FLAGS, load_script
from transformers_mage.data.token_cache import CachedTokens

from .disturbing import disturb

Script = Callable[[list[str]], None]
TRAINING = {
    "in memory": [],
    "decoded": ["--in_memory_limit", "0"],
    "decoded by workers": ["--in_memory_limit", "0", "--dataloader_num_workers", "2"],
    "streamed": ["--streaming", "--shuffle_window", "5"],
    "streamed by workers": ["--streaming", "--shuffle_window", "5", "--dataloader_num_workers", "2"],
    "accumulated": ["--in_memory_limit", "0", "--gradient_accumulation_steps", "3", "--contrastive_weight", "0.1"],
}


def same_tensors(first: Path, second: Path) -> bool:
    ours, theirs = load_file(first), load_file(second)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("loading", TRAINING.values(), ids=TRAINING)
def test_training(train_mage: Script, image_folder: Path, tokenizer_folder: Path, tmp_path: Path, loading: list[str]):
    flags = [*MODEL_FLAGS, "--dataset_name", image_folder, "--tokenizer_name_or_path", tokenizer_folder, "--use_ema"]
    flags += ["--max_train_steps", "24", "--checkpointing_steps", "3", "--checkpoints_total_limit", "2"]
    flags += ["--resume_from_checkpoint", "latest", *loading]
    ends = disturb(lambda folder: train_mage([*flags, "--output_dir", folder]), tmp_path / "run")
    print(ends)
    assert same_tensors(tmp_path / "run" / "model.safetensors", tmp_path / "undisturbed" / "model.safetensors")


def test_training_from_cached_tokens(
    train_mage: Script, cache_tokens: Script, image_folder: Path, tokenizer_folder: Path, tmp_path: Path
):
    made_of = ["--dataset_name", image_folder, "--tokenizer_name_or_path", tokenizer_folder, "--image_size", "8"]
    cache_tokens([*made_of, "--views", "3", "--output_dir", tmp_path / "tokens"])
    flags = [*MODEL_FLAGS, "--token_cache", tmp_path / "tokens", "--max_train_steps", "24"]
    flags += ["--checkpointing_steps", "3", "--resume_from_checkpoint", "latest"]
    print(disturb(lambda folder: train_mage([*flags, "--output_dir", folder]), tmp_path / "run"))
    assert same_tensors(tmp_path / "run" / "model.safetensors", tmp_path / "undisturbed" / "model.safetensors")


def test_caching_tokens(cache_tokens: Script, image_folder: Path, tokenizer_folder: Path, tmp_path: Path):
    flags = ["--dataset_name", image_folder, "--tokenizer_name_or_path", tokenizer_folder, "--image_size", "8"]
    flags += ["--views", "3", "--rows_per_shard", "2", "--output_dir"]
    print(disturb(lambda folder: cache_tokens([*flags, folder]), tmp_path / "run"))
    ours, theirs = (CachedTokens(tmp_path / name / "train") for name in ("run", "undisturbed"))
    draws = list(range(3 * len(theirs)))
    assert torch.equal(ours.__getitems__(draws).input_ids, theirs.__getitems__(draws).input_ids)


def files_of(folder: Path, pattern: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob(pattern)}


def test_generating(train_mage: Script, image_folder: Path, tokenizer_folder: Path, tmp_path: Path):
    flags = [*MODEL_FLAGS, "--dataset_name", image_folder, "--tokenizer_name_or_path", tokenizer_folder]
    train_mage([*flags, "--max_train_steps", "1", "--output_dir", tmp_path / "model"])
    generate = load_script("generate")
    flags = ["--pretrained_model_name_or_path", tmp_path / "model", "--num_images", "64", "--batch_size", "8"]
    print(disturb(lambda folder: generate([*flags, "--output_dir", folder]), tmp_path / "run"))
    ours, theirs = (files_of(tmp_path / name, "*.png") for name in ("run", "undisturbed"))
    assert len(theirs) == 64
    assert ours == theirs


def test_extracting_features(colours: Path, mage_folder: Path, tmp_path: Path):
    extract = load_script("extract_features")
    flags = ["--dataset_name", colours, "--model_name_or_path", mage_folder, "--images_per_shard", "3"]
    flags += ["--output_format", "safetensors", "--output_dir"]
    print(disturb(lambda folder: extract([*flags, folder]), tmp_path / "run"))
    ours, theirs = (files_of(tmp_path / name, "*.safetensors") for name in ("run", "undisturbed"))
    assert len(theirs) == 8
    assert ours == theirs
