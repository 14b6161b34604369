"""Flipped bytes, cuts, full disks, vanishing servers, and two runs at once: named, repaired or survived."""

import json
import os
import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.in_process import MODEL_FLAGS
from transformers_mage.data.token_cache import CachedTokens

from .disturbing import TIMES, run_alone, said, start, wait_for_start
from .fault_kills import assert_same_tensors
from .table import note_damage

Script = Callable[[list[str]], None]


@pytest.fixture
def train(train_mage: Script, image_folder: Path, tokenizer_folder: Path) -> Callable[..., None]:
    flags = [*MODEL_FLAGS, "--dataset_name", image_folder, "--tokenizer_name_or_path", tokenizer_folder]
    flags += ["--max_train_steps", "12", "--checkpointing_steps", "3", "--checkpoints_total_limit", "9"]

    def run(folder: Path, *more: str):
        train_mage([*flags, "--resume_from_checkpoint", "latest", "--output_dir", folder, *more])

    return run


def damage(file: Path, draw: random.Random) -> str:
    content = bytearray(file.read_bytes())
    kind = draw.choice(["flipped", "cut", "zeros", "gone"]) if content else "gone"
    if kind == "gone":
        file.unlink()
    elif kind == "cut":
        os.truncate(file, draw.randrange(len(content)))
    elif kind == "zeros":
        file.write_bytes(bytes(len(content)))
    else:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        file.write_bytes(content)
    return kind


def test_damaged_checkpoints(train: Callable[..., None], tmp_path: Path):
    """The newest one is damaged somewhere: the one before it is taken, and the end is the same."""
    draw, kinds = random.Random(0), Counter()
    assert run_alone(train, tmp_path / "once") == 0
    shutil.rmtree(tmp_path / "once" / "checkpoint-12")
    for number in range(TIMES):
        folder = Path(shutil.copytree(tmp_path / "once", tmp_path / f"damaged-{number}"))
        files = sorted(path for path in (folder / "checkpoint-9").rglob("*") if path.name != "manifest.json")
        kinds[damage(draw.choice(files), draw)] += 1
        assert run_alone(train, folder) == 0, said(folder)
        assert_same_tensors(folder / "model.safetensors", tmp_path / "once" / "model.safetensors")
        shutil.rmtree(folder)
    note_damage("checkpoints, the newest", kinds, TIMES)


def test_damaged_caches(cache_tokens: Script, image_folder: Path, tokenizer_folder: Path, tmp_path: Path):
    draw, kinds, folder = random.Random(0), Counter(), tmp_path / "tokens"
    flags = ["--dataset_name", image_folder, "--tokenizer_name_or_path", tokenizer_folder, "--image_size", "8"]
    flags += ["--views", "2", "--rows_per_shard", "5", "--output_dir"]
    cache_tokens([*flags, folder])
    before = CachedTokens(folder / "train").__getitems__(list(range(24))).input_ids
    for _ in range(TIMES):
        files = sorted(path for path in folder.glob("train/shard-*/*") if path.is_file())
        kinds[damage(draw.choice(files), draw)] += 1
        assert run_alone(lambda folder: cache_tokens([*flags, folder]), folder) == 0
        assert torch.equal(CachedTokens(folder / "train").__getitems__(list(range(24))).input_ids, before)
    note_damage("token caches, any shard", kinds, TIMES)


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system takes more rights")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk(train: Callable[..., None], small_disk: Path, tmp_path: Path):
    """Checkpoints fail with a message; after room is made, the same command ends as it would have without that."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(250_000))
    run_alone(train, small_disk / "run")
    assert "could not be written" in said(small_disk / "run") or "No space left" in said(small_disk / "run")
    subprocess.run(["mount", "-o", "remount,size=50m", str(small_disk)], check=True)
    ballast.unlink()
    if (small_disk / "run" / "config.json").exists():
        shutil.rmtree(small_disk / "run")
    assert run_alone(train, small_disk / "run") == 0, said(small_disk / "run")
    assert run_alone(train, tmp_path / "once") == 0
    assert_same_tensors(small_disk / "run" / "model.safetensors", tmp_path / "once" / "model.safetensors")
    for line in (small_disk / "run" / "metrics.jsonl").read_text().splitlines():
        json.loads(line)
    note_damage("training", {"full disk": 1}, 1)


def test_two_runs_at_once(train: Callable[..., None], tmp_path: Path):
    """One of them has the folder; the other says so."""
    for number in range(max(TIMES // 4, 2)):
        folder = tmp_path / f"run-{number}"
        first = start(lambda folder: train(folder, "--max_train_steps", "100"), folder)
        wait_for_start(first, folder)
        while first.is_alive() and not (folder / ".lock").exists():
            pass
        second = start(train, folder)
        second.join(120)
        assert second.exitcode == 1
        assert "is in use by process" in said(folder)
        first.join(120)
        assert first.exitcode == 0
        assert len((folder / "metrics.jsonl").read_text().splitlines()) == 5
    note_damage("folders of a training", {"second run": number + 1}, number + 1)
