"""Progress bars that somebody watches, and lines in a file that somebody reads."""

import sys
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


def progress_bar(*args: Any, **kwargs: Any) -> std.tqdm:
    """A progress bar of tqdm, which takes the same arguments, or [`ProgressLines`] where stderr is a file."""
    is_notebook = auto.tqdm is not asyncio.tqdm
    is_watched = is_notebook or sys.stderr.isatty()
    return (auto.tqdm if is_watched else ProgressLines)(*args, **kwargs)
