import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import VQModel

from tests.in_process import VQ_FLAGS, last_step


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


def test_training_ends_where_reconstructions_are_good_enough(
    train_vqgan: Callable[[list[str]], None], image_folder: Path, tmp_path: Path
):
    flags = [*VQ_FLAGS, "--dataset_name", image_folder, "--learning_rate", "0.01", "--max_train_steps", "20"]
    flags += ["--validation_split", "train", "--validation_steps", "2"]
    train_vqgan([*flags, "--output_dir", tmp_path / "whole"])
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    reached = {line["step"]: line["validation_psnr"] for line in lines if "validation_psnr" in line}
    first = next(step for step, psnr in reached.items() if psnr >= reached[6])

    train_vqgan([*flags, "--stop_at_psnr", str(reached[6]), "--output_dir", tmp_path / "enough"])
    assert first < 20
    assert last_step(tmp_path / "enough") == first
    assert VQModel.from_pretrained(tmp_path / "enough")


@pytest.mark.parametrize("flags", [[], ["--validation_split", "train", "--validation_steps", "0"]])
def test_what_is_good_enough_is_seen_on_held_out_images(
    train_vqgan: Callable[[list[str]], None], image_folder: Path, tmp_path: Path, flags: list[str], capsys
):
    words = [*VQ_FLAGS, "--dataset_name", image_folder, "--output_dir", tmp_path, "--stop_at_psnr", "30"]
    with pytest.raises(SystemExit):
        train_vqgan([*words, *flags])
    assert "say `--validation_split NAME`, and `--validation_steps` above 0" in capsys.readouterr().err


def test_what_ended_early_stays_ended(train_vqgan: Callable[[list[str]], None], image_folder: Path, tmp_path: Path):
    """A run that is killed between its last checkpoint and its model, and given again; and with another bar."""
    flags = [*VQ_FLAGS, "--dataset_name", image_folder, "--max_train_steps", "8", "--checkpointing_steps", "2"]
    flags += ["--validation_split", "train", "--validation_steps", "2", "--output_dir", tmp_path / "run"]
    train_vqgan([*flags, "--stop_at_psnr", "1"])
    once = (tmp_path / "run" / "diffusion_pytorch_model.safetensors").read_bytes()
    (tmp_path / "run" / "diffusion_pytorch_model.safetensors").unlink()

    resumed = [*flags, "--resume_from_checkpoint", "latest", "--stop_at_psnr"]
    train_vqgan([*resumed, "1"])
    assert (tmp_path / "run" / "diffusion_pytorch_model.safetensors").read_bytes() == once
    assert last_step(tmp_path / "run") == 2
    train_vqgan([*resumed, "1000"])
    assert last_step(tmp_path / "run") == 8
