"""A run that is killed and resumed ends with the bits of a run that was left alone."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from tests.in_process import MODEL_FLAGS, in_child
from transformers_mage.data.indexed import InMemoryImages
from transformers_mage.training import checkpointing
from transformers_mage.training.stopping import EXIT_INTERRUPTED

from .test_train_mage import assert_same_bits

pytestmark = pytest.mark.slow

Script = Callable[[list[str]], None]

# Where the process kills itself, and at which call: inside a step, loading data, in the middle of saving, before and
# after a checkpoint is put in its place.
MOMENTS = [
    (torch.optim.AdamW, "step", 3),
    (InMemoryImages, "__getitems__", 6),
    (Accelerator, "save_state", 1),
    (checkpointing, "replace", 1),
    (checkpointing, "_remove_old", 1),
]


def kill_at(owner: object, name: str, call: int):
    """Makes the `call`-th call of a function the last thing that the process does: it gets halfway."""
    original, calls = getattr(owner, name), []

    def deadly(*args, **kwargs):
        calls.append(name)
        if len(calls) == call:
            if name == "save_state":
                original(*args, **kwargs)
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, name, deadly)


@pytest.fixture
def flags(image_folder: Path, tokenizer_folder: Path) -> list[str]:
    flags = ["--dataset_name", image_folder, "--tokenizer_name_or_path", tokenizer_folder, "--max_train_steps", "10"]
    flags += ["--checkpointing_steps", "2", "--checkpoints_total_limit", "2", "--use_ema"]
    return [*MODEL_FLAGS, *flags, "--resume_from_checkpoint", "latest"]


def test_five_kills_change_nothing(train_mage: Script, flags: list[str], tmp_path: Path):
    def run(folder: str, moment: tuple | None = None):
        if moment is not None:
            kill_at(*moment)
        train_mage([*flags, "--output_dir", tmp_path / folder])

    assert in_child(run, "undisturbed") == 0
    for moment in MOMENTS:
        assert in_child(run, "killed", moment) == -signal.SIGKILL
    assert in_child(run, "killed") == 0
    assert_same_bits(tmp_path / "undisturbed", tmp_path / "killed")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_exits_for_a_requeue(train_mage: Script, flags: list[str], tmp_path: Path, number: int):
    def run(folder: str, is_signalled: bool):
        if is_signalled:
            signal_at_fetch(number)
        train_mage([*flags, "--checkpointing_steps", "100", "--output_dir", tmp_path / folder])

    assert in_child(run, "stopped", True) == EXIT_INTERRUPTED
    assert [path.name for path in (tmp_path / "stopped").glob("checkpoint-*")] == ["checkpoint-4"]
    assert in_child(run, "stopped", False) == 0
    assert in_child(run, "undisturbed", False) == 0
    assert_same_bits(tmp_path / "undisturbed", tmp_path / "stopped")


def signal_at_fetch(number: int, call: int = 5):
    original, calls = InMemoryImages.__getitems__, []

    def fetch(*args):
        calls.append(args)
        if len(calls) == call:
            signal.pthread_kill(threading.main_thread().ident, number)
        return original(*args)

    InMemoryImages.__getitems__ = fetch
