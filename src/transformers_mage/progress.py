"""Progress bars that somebody watches, and lines in a file that somebody reads."""

import io
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from tqdm import asyncio, auto, std

SECONDS_BETWEEN_LINES = 30.0


class ProgressLines(std.tqdm):
    """A progress bar for a file: a line now and then, and one at the end."""

    def __init__(self, *args: Any, **kwargs: Any):
        intervals = {"mininterval": SECONDS_BETWEEN_LINES, "maxinterval": SECONDS_BETWEEN_LINES}
        super().__init__(*args, **intervals | kwargs)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        # The first one, of nothing done, tells nothing; nor does what would clear a bar.
        if msg is None and self.n > self.initial:
            self.fp.write(f"{self}\n")
            self.fp.flush()
        return True


class ToldBar(std.tqdm):
    """A progress bar that shows nothing, and tells somebody how far it is: see [`told_to`]."""

    def __init__(self, *args: Any, **kwargs: Any):
        # None asks whether the file is a terminal.
        is_disabled = bool(kwargs.pop("disable", False))
        super().__init__(*args, **{**kwargs, "file": io.StringIO(), "disable": is_disabled, "mininterval": 0.5})

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        if msg is None and _LISTENERS:
            _LISTENERS[-1](self)
        return True


_LISTENERS: list[Callable[[std.tqdm], None]] = []


@contextmanager
def told_to(listener: Callable[[std.tqdm], None]) -> Iterator[None]:
    """While all progress bars of this package are one display's business: none is shown, `listener` gets each."""
    _LISTENERS.append(listener)
    try:
        with library_bars_hidden():
            yield
    finally:
        _LISTENERS.pop()


@contextmanager
def library_bars_hidden() -> Iterator[None]:
    """Without the progress bars of transformers, diffusers and datasets, which no choice of ours reaches otherwise."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    # Of an extra: what has not been imported by now shows nothing either.
    of_datasets = [sys.modules["datasets"]] if "datasets" in sys.modules else []
    shown = [library for library in (of_transformers, of_diffusers, *of_datasets) if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()


@contextmanager
def load_report_hidden() -> Iterator[None]:
    """Without transformers' table of weights that a file lacks, for those who look at the missing ones themselves."""
    # A filter: where this logger's level is set, transformers warns of weights that tensor parallelism does not split.
    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(_is_no_load_report)
    try:
        yield
    finally:
        logger.removeFilter(_is_no_load_report)


def _is_no_load_report(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()


def library_bars_where_watched() -> AbstractContextManager[None]:
    """The same where stderr is a file: many a line there, and each is of what took no time."""
    return nullcontext() if sys.stderr.isatty() else library_bars_hidden()


def terminal_bar(*args: Any, **kwargs: Any) -> std.tqdm:
    """A progress bar of tqdm, for those who write lines of their own where stderr is a file."""
    return (ToldBar if _LISTENERS else auto.tqdm)(*args, **kwargs)


def progress_bar(*args: Any, **kwargs: Any) -> std.tqdm:
    """A progress bar of tqdm, which takes the same arguments, or [`ProgressLines`] where stderr is a file."""
    if _LISTENERS:
        return ToldBar(*args, **kwargs)
    is_notebook = auto.tqdm is not asyncio.tqdm
    is_watched = is_notebook or sys.stderr.isatty()
    return (auto.tqdm if is_watched else ProgressLines)(*args, **kwargs)
