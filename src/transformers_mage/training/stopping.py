"""Runs that end before their last update: signals that are waited for, and the errors that say why a run ended."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..command_line import EXIT_CTRL_C
from ..processes import is_under_agent

# What a cluster may requeue on: EX_TEMPFAIL of sysexits.h.
EXIT_INTERRUPTED = 75
NUMBERS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class InterruptedRunError(RuntimeError):
    """
    A run that a signal stopped.

    Args:
        message (`str`): what was saved.
        exit_status (`int`): of the script that ran.
    """

    def __init__(self, message: str, exit_status: int):
        super().__init__(message)
        self.exit_status = exit_status


class NonFiniteLossError(RuntimeError):
    """A loss that is infinite or NaN, so that nothing after it is worth keeping."""


class WaitBrokenOffError(BaseException):
    """
    A signal came while waiting. It is no `Exception`, since it may be raised anywhere in what is waited for, which
    would take it for a broken image, or for a read to be tried again.
    """


def has_stopped_falling(losses: Sequence[float], patience: int) -> bool:
    """Whether the last `patience` losses are all above the lowest one before them."""
    return len(losses) > patience and min(losses[-patience:]) > min(losses[:-patience])


class LostWorkers:
    """
    Loading processes that are killed, as for want of memory. PyTorch raises an error for one wherever the main thread
    is, in the middle of an optimizer's step too. Here it is kept until data are waited for: nothing is half done then.
    """

    def __init__(self):
        self._error: RuntimeError | None = None
        # PyTorch's, which it sets up with the first loading process.
        self._handler: Callable[[int, Any], Any] | None = None

    @contextlib.contextmanager
    def raised(self) -> Iterator[None]:
        """
        Around a wait for data.

        Raises:
            RuntimeError: where a loading process was killed, now or since the last wait.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        if self._error is not None:
            raise self._error
        self.close()
        try:
            yield
        finally:
            handler = signal.getsignal(signal.SIGCHLD)
            if callable(handler):
                self._handler = handler
                signal.signal(signal.SIGCHLD, self._keep)

    def close(self):
        """Leaves it to PyTorch again."""
        if self._handler is not None:
            signal.signal(signal.SIGCHLD, self._handler)
            self._handler = None

    def _keep(self, number: int, frame: Any):
        try:
            if self._handler is not None:
                self._handler(number, frame)
        except RuntimeError as error:
            self._error = error


class StopSignals:
    """
    Notes SIGTERM, SIGUSR1 and Ctrl-C, for the run to end where nothing is half done. A second Ctrl-C does not wait.
    Under `torchrun` and `accelerate launch` each arrives twice, from the terminal and from the agent, which counts as
    one.

    Attributes:
        received (`signal.Signals`, *optional*): the signal that came.
    """

    def __init__(self):
        self.received: signal.Signals | None = None
        self._may_break_off = False
        self._patience = 2 if is_under_agent() else 1

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """While signals are noted. Only a main thread is sent any."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._note) for number in NUMBERS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def waiting(self, may_break_off: bool) -> Iterator[None]:
        """
        Around a wait in which nothing is half done.

        Raises:
            WaitBrokenOffError: when a signal comes, or came before, if it may.
        """
        self._may_break_off = may_break_off
        try:
            if may_break_off and self.received is not None:
                raise WaitBrokenOffError
            yield
        finally:
            self._may_break_off = False

    @property
    def exit_status(self) -> int:
        return EXIT_CTRL_C if self.received is signal.SIGINT else EXIT_INTERRUPTED

    @property
    def name(self) -> str:
        """The signal's, as a message has it."""
        if self.received is None:
            return "a signal to another process"
        return "Ctrl-C" if self.received is signal.SIGINT else self.received.name

    def _note(self, number: int, frame: object):
        if number == signal.SIGINT:
            self._patience -= 1
            if self._patience < 0:
                raise KeyboardInterrupt
        # An agent passes on what it was told after it was told so itself: the first one says why the run ends.
        self.received = self.received or signal.Signals(number)
        if self._may_break_off:
            raise WaitBrokenOffError
