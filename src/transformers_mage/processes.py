"""Processes that end with those they belong to."""

import ctypes
import os
import signal
import sys
from pathlib import Path
from types import TracebackType

# Of prctl(2): the signal that a process gets when its parent has ended.
_SET_PARENT_DEATH_SIGNAL = 1


def end_with_parent(number: signal.Signals = signal.SIGKILL):
    """Has the kernel send this process a signal when its parent ends, however it ends. Only Linux can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, int(number))


def be_a_loading_process(worker_id: int):
    """
    Makes a loading process its parent's business alone: signals to the parent's group, as Ctrl-C is one, do not reach
    it, since what they ask for is for the parent to decide; and it does not outlive the parent.
    """
    os.setpgrp()
    end_with_parent()
    sys.excepthook = _tell_but_lost_connections


def _tell_but_lost_connections(kind: type[BaseException], error: BaseException, trace: TracebackType | None):
    """A parent that stops waiting in the middle of a batch closes the connection that it comes through."""
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


def is_under_agent() -> bool:
    """Whether PyTorch's agent started this process, for `torchrun` or `accelerate launch` with several of them."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def end_with_launcher():
    """
    Has this process told to stop when what launched it ends. With one process, `accelerate launch` does not pass
    signals on, and would leave it behind; so would PyTorch's agent when it is killed.
    """
    if is_under_agent():
        end_with_parent(signal.SIGTERM)
        return
    try:
        command = Path(f"/proc/{os.getppid()}/cmdline").read_bytes()
    except OSError:
        return
    if b"accelerate" in command:
        end_with_parent(signal.SIGTERM)
