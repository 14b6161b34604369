"""The same under a real `accelerate launch`: what it does with signals reaches the processes that it started."""

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.in_process import MODEL_FLAGS, ROOT

from .disturbing import MARK, check_no_orphans, processes_of
from .fault_kills import assert_same_training, newest_checkpoint
from .table import note

# What is sent, and to whom. Ctrl-C goes to the whole group, as a terminal sends it.
BLOWS = [
    (signal.SIGINT, "its group"),
    (signal.SIGTERM, "the process"),
    (signal.SIGKILL, "the process"),
    (signal.SIGTERM, "its group"),
    (signal.SIGKILL, "its group"),
]
ON_TWO = ["--multi_gpu", "--num_machines", "1", "--main_process_port", "0"]
UPDATES = 4000
OURS = re.compile(r'File ".*(transformers_mage|scripts)/.*", line')


def launch(folder: Path, flags: list, processes: int, updates: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", processes]
    command += ON_TWO if processes > 1 else ["--cpu"]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", ROOT / "scripts" / "train_mage.py"]
    command += [*flags, "--output_dir", folder, "--max_train_steps", updates]
    marked = ["sh", "-c", f'export {MARK}=$$; exec "$@"', "sh"]
    return subprocess.Popen(
        [*marked, *(str(word) for word in command)],
        start_new_session=True,
        stderr=folder.with_suffix(".stderr").open("w"),
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
    )


def hit(launcher: subprocess.Popen, folder: Path, number: int, target: str, after: float):
    """Sends the signal some time after the first new update was logged."""
    seen = size(folder)
    while size(folder) <= seen:
        assert launcher.poll() is None, folder.with_suffix(".stderr").read_text()
        time.sleep(0.1)
    time.sleep(after)
    assert launcher.poll() is None
    (os.killpg if target == "its group" else os.kill)(launcher.pid, number)
    launcher.wait(120)
    check_no_orphans(launcher.pid)


def size(folder: Path) -> int:
    file = folder / "metrics.jsonl"
    return file.stat().st_size if file.exists() else 0


@pytest.mark.parametrize("processes", [1, 2])
def test_accelerate_launch(image_folder: Path, tokenizer_folder: Path, tmp_path: Path, processes: int):
    flags = [*MODEL_FLAGS, "--dataset_name", image_folder, "--tokenizer_name_or_path", tokenizer_folder]
    flags += ["--checkpointing_steps", "50", "--logging_steps", "1", "--resume_from_checkpoint", "latest"]
    flags += ["--in_memory_limit", "0", "--dataloader_num_workers", "2", "--checkpoints_total_limit", "2"]
    # Nothing in a run depends on the update at which it will end.
    flags += ["--learning_rate", "1e-3", "--min_learning_rate", "1e-3", "--warmup_steps", "0"]
    draw, hits, folder = random.Random(0), Counter(), tmp_path / "run"
    for number, target in BLOWS:
        before = newest_checkpoint(folder)
        launcher = launch(folder, flags, processes, UPDATES)
        try:
            hit(launcher, folder, number, target, draw.uniform(0, 2))
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(launcher.pid, signal.SIGKILL)
        said = folder.with_suffix(".stderr").read_text()
        assert not OURS.search(said), said
        hits[number, target] += 1
        assert newest_checkpoint(folder) >= before
        if number != signal.SIGKILL or target == "the process":
            logged = int((folder / "metrics.jsonl").read_text().splitlines()[-1].split(",")[0].rpartition(" ")[2])
            assert newest_checkpoint(folder) == logged, said
    reached = newest_checkpoint(folder) + 10
    assert launch(folder, flags, processes, reached).wait(300) == 0
    assert launch(tmp_path / "undisturbed", flags, processes, reached).wait(600) == 0
    assert_same_training(folder, tmp_path / "undisturbed")
    assert processes_of(launcher.pid) == []
    note(f"`accelerate launch`, {processes} process{'es' if processes > 1 else ''}, 2 workers", hits, 0, 1)
