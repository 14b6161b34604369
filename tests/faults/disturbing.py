"""
Runs scripts in processes of their own, disturbs them at random moments, and looks at what is left behind.

A child of this process has everything imported already, so that a start costs next to nothing, and a run is disturbed
many times on its way to the end. What counts is a signal that hit: one that was sent to a process that was running,
and that ended it before its work was done. Moments that come too late are drawn again.
"""

import multiprocessing
import os
import random
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from .table import note

# How often each scenario is hit: `FAULTS=50 make test-faults` tries harder.
TIMES = int(os.environ.get("FAULTS", "16"))
NUMBERS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
TARGETS = ("the process", "its group", "one of its children")
# Requeue; Ctrl-C; and the signals themselves, before the script has begun to note them.
STATUSES = {75, 130, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGUSR1}
# In the environment of all that a run starts: PyTorch's agent gives every process that it starts a session of its own.
MARK = "FAULTS_SESSION"
SAVED = re.compile(r"after (\d+) updates. Resume with")

Run = Callable[[Path], None]


@dataclass
class Scenario:
    """
    A command that is disturbed.

    Args:
        name (`str`): what the table says.
        run (`Callable`): runs it with a folder as its output, in a child, and ends as a script does.
        same (`Callable`): asserts that a folder holds what an undisturbed one holds.
        progress (`Callable`): how far a folder is: a number that no disturbance may lower.
        statuses (`set[int]`): how a disturbed run may end.
        is_resumed (`bool`): whether the same command resumes, or does everything again.
    """

    name: str
    run: Run
    same: Callable[[Path, Path], None]
    progress: Callable[[Path], int]
    statuses: set[int] = field(default_factory=lambda: STATUSES)
    is_resumed: bool = True

    def disturb(self, folder: Path, times: int = TIMES, seed: int = 0):
        """Hits the run `times` times, lets it end, and holds every run that ended against an undisturbed one."""
        draw, hits, too_late = random.Random(seed), Counter(), 0
        once = folder.with_name("undisturbed")
        window = self._window(once, times)
        while hits.total() < times:
            assert too_late <= 2 * times, "the moments are too late"
            blow = draw.choice(NUMBERS), draw.choice(TARGETS)
            if self._hit(folder, draw.uniform(0, window), *blow):
                hits[blow] += 1
                continue
            too_late += 1
            self._check_end(folder, once)
            folder.rename(folder.with_name(f"{folder.name}-{too_late}"))
        assert run_alone(self.run, folder) == 0, said(folder)
        self._check_end(folder, once)
        note(self.name, hits, too_late, too_late + 1)

    def _window(self, once: Path, times: int) -> float:
        """Seconds within which to hit, so that most hits come while the run has still something to do."""
        whole = duration(self.run, once)
        if not self.is_resumed:
            return whole
        nothing_left = duration(self.run, once)
        return nothing_left + 3 * max(whole - nothing_left, 0.1) / times

    def _hit(self, folder: Path, after: float, number: int, target: str) -> bool:
        before = self.progress(folder)
        child = start(self.run, folder)
        wait_for_start(child, folder)
        child.join(after)
        sent = child.is_alive() and send(child.pid, number, target)
        child.join(1800)
        check_left_behind(child, folder)
        if child.exitcode == 0:
            return False
        allowed = self.statuses | {1} if target == TARGETS[2] else self.statuses
        assert sent, f"it ended by itself with {child.exitcode}: {said(folder)}"
        assert child.exitcode in allowed, f"{child.exitcode}: {said(folder)}"
        reached, saved = self.progress(folder), SAVED.search(said(folder))
        assert reached >= before, f"{reached} after {before}: {said(folder)}"
        assert saved is None or int(saved[1]) == reached, said(folder)
        return True

    def _check_end(self, folder: Path, once: Path):
        self.same(folder, once)
        left = [path for path in folder.rglob(".*") if path.name.endswith((".partial", ".removed"))]
        assert left == []


def duration(run: Run, folder: Path) -> float:
    began = time.monotonic()
    assert run_alone(run, folder) == 0, said(folder)
    return time.monotonic() - began


def run_alone(run: Run, folder: Path) -> int:
    child = start(run, folder)
    child.join(3600)
    check_left_behind(child, folder)
    return child.exitcode


def send(session: int, number: int, target: str) -> bool:
    """Sends a signal; whether there was somebody to send it to."""
    try:
        if target == "its group":
            os.killpg(session, number)
            return True
        children = [pid for pid in processes_of(session) if pid != session]
        chosen = random.choice(children) if children and target == "one of its children" else session
        os.kill(chosen, number)
    except ProcessLookupError:
        return False
    return True


def start(run: Run, folder: Path) -> multiprocessing.Process:
    folder.parent.mkdir(parents=True, exist_ok=True)
    started(folder).unlink(missing_ok=True)
    child = multiprocessing.get_context("fork").Process(target=_child, args=(run, folder))
    child.start()
    return child


def _child(run: Run, folder: Path):
    os.setsid()
    os.environ[MARK] = str(os.getpid())
    torch.set_num_threads(1)  # threads do not survive a fork
    errors = errors_file(folder).open("w", buffering=1)
    os.dup2(errors.fileno(), 2)
    sys.stderr = errors
    started(folder).touch()
    run_as_script(run, folder)
    os._exit(0)


def run_as_script(run: Run, folder: Path):
    """Ends a run that fails as the interpreter does it, but for its clean-up, in which nothing of ours is left."""
    try:
        run(folder)
    except KeyboardInterrupt:
        os._exit(130)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        os._exit(end.code if isinstance(end.code, int) else int(end.code is not None))


def on_two_processes(run: Run) -> Run:
    """
    The same run on two processes, which PyTorch's agent starts and watches over, as it does for `torchrun` and
    `accelerate launch`.
    """

    def launch(folder: Path):
        os.environ |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        config = LaunchConfig(
            1,
            1,
            2,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            run_id=str(os.getpid()),
            start_method="fork",
            max_restarts=0,
            local_addr="localhost",
        )
        agent = os.getpid()

        def run_under_agent(folder: Path):
            run_as_script(run, folder)
            # PyTorch lets what returns wait for its agent, which may have been killed.
            if os.getppid() != agent:
                os._exit(0)

        try:
            elastic_launch(config, run_under_agent)(folder)
        # They end with tracebacks of their own.
        except (ChildFailedError, SignalException):
            raise SystemExit(1) from None

    return launch


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
    check_no_orphans(child.pid)
    assert "Traceback" not in said(folder), said(folder)


def check_no_orphans(session: int):
    """What belonged to a process ends with it, or has saved its work soon after."""
    for _ in range(300):
        left = processes_of(session)
        if not left:
            break
        time.sleep(0.1)
    assert left == []


def processes_of(session: int) -> list[int]:
    """The processes of a session, and of those that were started from it, that are still there."""
    found, mark = [], f"{MARK}={session}".encode()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, its_session = (path / "stat").read_text().rpartition(")")[2].split()[:4]
            is_marked = mark in (path / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if state != "Z" and (int(its_session) == session or is_marked):
            found.append(int(path.name))
    return found
