"""Processes that end with those they belong to."""

import ctypes
import os
import signal
import sys
from pathlib import Path

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


def end_with_launcher():
    """
    Has this process told to stop when `accelerate launch` is. With one process, the launcher does not pass signals on,
    and would leave it behind.
    """
    try:
        command = Path(f"/proc/{os.getppid()}/cmdline").read_bytes()
    except OSError:
        return
    if b"accelerate" in command:
        end_with_parent(signal.SIGTERM)
