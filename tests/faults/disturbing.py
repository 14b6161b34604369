"""Runs scripts in processes of their own, disturbs them at random moments, and looks at what is left behind."""

import multiprocessing
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

# How often each scenario is disturbed: `FAULTS=50 make test-faults` tries harder.
TIMES = int(os.environ.get("FAULTS", "20"))
NUMBERS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# Finished; requeue; Ctrl-C; and the signals themselves, before the script has begun to note them.
STATUSES = {0, 75, 130, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGUSR1}


def disturb(run: Callable[[Path], None], folder: Path, times: int = TIMES, seed: int = 0) -> Counter:
    """
    Runs again and again in one folder, each time disturbed at a random moment, and then to the end.

    Returns:
        `Counter`: how each of them ended.
    """
    draw, ends = random.Random(seed), Counter()
    longest = duration(run, folder.with_name("undisturbed"))
    for number in range(times):
        status = run_disturbed(run, folder, draw.uniform(0, 0.8 * longest), draw.choice(NUMBERS), draw.random() < 0.5)
        ends[status] += 1
        if status == 0:
            folder.rename(folder.with_name(f"{folder.name}-{number}"))
    assert run_alone(run, folder) == 0
    return ends


def duration(run: Callable[[Path], None], folder: Path) -> float:
    began = time.monotonic()
    assert run_alone(run, folder) == 0
    return time.monotonic() - began


def run_alone(run: Callable[[Path], None], folder: Path) -> int:
    child = start(run, folder)
    child.join(300)
    check_left_behind(child, folder)
    return child.exitcode


def run_disturbed(run: Callable[[Path], None], folder: Path, after: float, number: int, to_group: bool) -> int:
    child = start(run, folder)
    wait_for_start(child, folder)
    child.join(after)
    if child.is_alive():
        (os.killpg if to_group else os.kill)(child.pid, number)
    child.join(120)
    check_left_behind(child, folder)
    assert child.exitcode in STATUSES, said(folder)
    return child.exitcode


def start(run: Callable[[Path], None], folder: Path) -> multiprocessing.Process:
    folder.parent.mkdir(parents=True, exist_ok=True)
    started(folder).unlink(missing_ok=True)
    child = multiprocessing.get_context("fork").Process(target=_child, args=(run, folder))
    child.start()
    return child


def _child(run: Callable[[Path], None], folder: Path):
    os.setsid()
    torch.set_num_threads(1)  # threads do not survive a fork
    errors = errors_file(folder).open("w", buffering=1)
    os.dup2(errors.fileno(), 2)
    sys.stderr = errors
    started(folder).touch()
    try:
        run(folder)
    except SystemExit as end:
        # As the interpreter does it, but for its clean-up, in which nothing of ours is left to be disturbed.
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        os._exit(end.code if isinstance(end.code, int) else int(end.code is not None))
    os._exit(0)


def wait_for_start(child: multiprocessing.Process, folder: Path):
    while child.is_alive() and not started(folder).exists():
        time.sleep(0.01)


def started(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.started")


def errors_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.stderr")


def said(folder: Path) -> str:
    return errors_file(folder).read_text()


def check_left_behind(child: multiprocessing.Process, folder: Path):
    """No process and no traceback."""
    assert child.exitcode is not None, "it hangs"
    for _ in range(50):
        left = processes_of(child.pid)
        if not left:
            break
        time.sleep(0.1)
    assert left == []
    assert "Traceback" not in said(folder), said(folder)


def processes_of(session: int) -> list[int]:
    """The processes of a session that are still there."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, its_session = (path / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(its_session) == session and state != "Z":
            found.append(int(path.name))
    return found
